"""Serve the bundle `fedsr_site` with MONAI Label, in an environment of its own (`make label-env`).

Segmentation and training belong to the bundle. This package makes the app folder, starts the server process and
connects the two.
"""

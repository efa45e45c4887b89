"""What serves the bundle `fedsr_site` with MONAI Label; it runs in an environment of its own (`make label-env`).

Segmentation and training are the bundle's; here are the app folder, the server process and what the two need of each other.
"""

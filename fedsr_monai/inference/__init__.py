"""Labelling and registering scans with trained weights: the list of scans, the bundle's workflow, and the files that are written."""

"""Labelling and registering scans with trained weights: the list of scans, the bundle's workflow over it, and the files that it writes."""

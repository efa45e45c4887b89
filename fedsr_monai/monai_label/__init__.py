"""Serving the bundle `fedsr_site` with MONAI Label."""

"""Measure accuracy beside classical registration, and speed. Nothing else in the package depends on this."""

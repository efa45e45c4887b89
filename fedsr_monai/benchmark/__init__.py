"""Measure accuracy in comparison with classical registration, and speed. Nothing else in the package depends on this."""

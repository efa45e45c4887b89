"""Write a run and its evaluation as one HTML file. Nothing is measured here: that belongs to `evaluation`."""

from fedsr_monai.report.page import write_report

__all__ = ["write_report"]

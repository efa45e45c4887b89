"""The report of a run and its evaluation as one HTML file."""

from fedsr_monai.report.page import write_report

__all__ = ["write_report"]

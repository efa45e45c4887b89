"""Measures of segmentation and registration, their tables, and the evaluation of a site's network."""

from fedsr_monai.metrics.evaluate import evaluate_network
from fedsr_monai.metrics.registration import folded_percent, jacobian_determinant, ncc
from fedsr_monai.metrics.structures import structure_metrics
from fedsr_monai.metrics.tables import structure_rows, summarise

__all__ = [
    "evaluate_network",
    "folded_percent",
    "jacobian_determinant",
    "ncc",
    "structure_metrics",
    "structure_rows",
    "summarise",
]

"""Measure trained networks on labelled scans: metrics, tables of them, and the evaluation of sites and runs.

Measures that need no labels (losses, quality of a single result) belong to `losses` and `inference`.
"""

from fedsr_monai.evaluation.registration import folded_percent, jacobian_determinant, ncc
from fedsr_monai.evaluation.site import evaluate_network
from fedsr_monai.evaluation.structures import structure_metrics
from fedsr_monai.evaluation.tables import structure_rows, summarise

__all__ = [
    "evaluate_network",
    "folded_percent",
    "jacobian_determinant",
    "ncc",
    "structure_metrics",
    "structure_rows",
    "summarise",
]

"""Ignite handlers that MONAI does not have: each does one thing and attaches itself to events. Engines are in
`engines`.
"""

from fedsr_monai.handlers.checkpoint import AtomicCheckpoint, save_checkpoint
from fedsr_monai.handlers.history import HistoryWriter, read_history, write_history
from fedsr_monai.handlers.progress import TrainingProgress
from fedsr_monai.handlers.resume import ResumableCheckpoint

__all__ = [
    "AtomicCheckpoint",
    "HistoryWriter",
    "ResumableCheckpoint",
    "TrainingProgress",
    "read_history",
    "save_checkpoint",
    "write_history",
]

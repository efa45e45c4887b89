"""The labels of the paper: their names and colours, label map files and volumes; nothing here makes labels."""

from fedsr_monai.labels.structures import ABBREVIATIONS, COLOURS, LABELS, NUM_CLASSES, SNOMED_CT

__all__ = ["ABBREVIATIONS", "COLOURS", "LABELS", "NUM_CLASSES", "SNOMED_CT"]

"""Transforms that MONAI does not have."""

from fedsr_monai.transforms.check_scan import CheckScand
from fedsr_monai.transforms.labelled_scans import LabelledScans
from fedsr_monai.transforms.labels_on_scan import LabelsOnScand
from fedsr_monai.transforms.random_appearance import RandomAppearance
from fedsr_monai.transforms.random_atlas import RandomAtlas
from fedsr_monai.transforms.random_deformation import RandomDeformation
from fedsr_monai.transforms.resample_to_grid import ResampleToGrid, ResampleToGridd
from fedsr_monai.transforms.save_label_map import SaveLabelMapd
from fedsr_monai.transforms.scale_brain_intensity import ScaleBrainIntensityd

__all__ = [
    "CheckScand",
    "LabelledScans",
    "LabelsOnScand",
    "RandomAppearance",
    "RandomAtlas",
    "RandomDeformation",
    "ResampleToGrid",
    "ResampleToGridd",
    "SaveLabelMapd",
    "ScaleBrainIntensityd",
]

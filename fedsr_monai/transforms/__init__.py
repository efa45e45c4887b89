"""MONAI-style transforms that MONAI does not have; anything that is not a `Transform` belongs elsewhere."""

from fedsr_monai.transforms.check_scan import CheckScand
from fedsr_monai.transforms.labels_on_scan import LabelsOnScand
from fedsr_monai.transforms.remove_strays import RemoveStraysd
from fedsr_monai.transforms.resample_to_grid import ResampleToGrid, ResampleToGridd
from fedsr_monai.transforms.save_label_map import SaveImageLabelMapd
from fedsr_monai.transforms.scale_brain_intensity import ScaleBrainIntensityd

__all__ = [
    "CheckScand",
    "LabelsOnScand",
    "RemoveStraysd",
    "ResampleToGrid",
    "ResampleToGridd",
    "SaveImageLabelMapd",
    "ScaleBrainIntensityd",
]

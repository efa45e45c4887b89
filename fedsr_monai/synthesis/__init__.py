"""Training images drawn from the labelled atlas, with random anatomy and appearance. They are not MONAI transforms."""

from fedsr_monai.synthesis.labelled_scans import LabelledScans
from fedsr_monai.synthesis.random_anatomy import RandomAnatomy
from fedsr_monai.synthesis.random_appearance import RandomAppearance
from fedsr_monai.synthesis.random_atlas import RandomAtlas
from fedsr_monai.synthesis.random_contrast import RandomContrast
from fedsr_monai.synthesis.random_deformation import RandomDeformation

__all__ = ["LabelledScans", "RandomAnatomy", "RandomAppearance", "RandomAtlas", "RandomContrast", "RandomDeformation"]

"""What draws training images from the labelled atlas: random anatomy, random appearance."""

from fedsr_monai.synthesis.labelled_scans import LabelledScans
from fedsr_monai.synthesis.random_appearance import RandomAppearance
from fedsr_monai.synthesis.random_atlas import RandomAtlas
from fedsr_monai.synthesis.random_deformation import RandomDeformation

__all__ = ["LabelledScans", "RandomAppearance", "RandomAtlas", "RandomDeformation"]

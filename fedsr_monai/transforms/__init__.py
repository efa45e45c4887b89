"""Transforms that MONAI does not have."""

from fedsr_monai.transforms.random_appearance import RandomAppearance
from fedsr_monai.transforms.random_atlas import RandomAtlas
from fedsr_monai.transforms.random_deformation import RandomDeformation

__all__ = ["RandomAppearance", "RandomAtlas", "RandomDeformation"]

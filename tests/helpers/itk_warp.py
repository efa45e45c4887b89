"""ITK's own warping, from files alone: an outside truth for the deformations that are written."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np


def warped_by_itk(moving: Path, field: Path, reference: Path) -> np.ndarray:
    """Return an image on the voxels [D, H, W] of the reference, as ITK places all three."""
    image = itk.imread(moving, itk.F)
    warp = itk.WarpImageFilter.New(image)
    warp.SetDisplacementField(itk.imread(field, itk.Vector[itk.F, 3]))
    warp.SetOutputParametersFromImage(itk.imread(reference, itk.F))
    warp.Update()
    return itk.array_from_image(warp.GetOutput()).transpose(2, 1, 0)

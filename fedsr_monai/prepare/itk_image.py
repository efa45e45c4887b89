"""Arrays with a NIfTI affine as ITK images and back.

ITK is used as SimpleITK: a single library that loads in 0.3 seconds. The first filter of the package `itk` would load a thousand
modules, in five to ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk

from fedsr_monai.spatial.displacement import LPS

RAS_TO_LPS = np.diag([*LPS, 1.0])


def to_itk(volume: np.ndarray, affine: np.ndarray, dtype: type = np.float32) -> sitk.Image:
    """Return a volume as an ITK image at the same position in space.

    Args:
        volume: the voxels [D, H, W].
        affine: [4, 4], voxel to millimetre, RAS+; oblique and left-handed ones are kept as they are.
        dtype: type of the image's voxels.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=dtype))
    matrix = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image


def from_itk(image: sitk.Image) -> np.ndarray:
    """Return the voxels [D, H, W] of an ITK image."""
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def to_itk_affine(matrix: np.ndarray, centre: np.ndarray) -> sitk.AffineTransform:
    """Return a matrix between points in RAS+ millimetres as an ITK transform.

    Args:
        matrix: the map [4, 4].
        centre: centre of the transform in ITK's LPS+ millimetres, which changes of its rotation and scale leave fixed.
    """
    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    transform = sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation((lps[:3, :3] @ centre + lps[:3, 3] - centre).tolist())
    return transform


def from_itk_affine(transform: sitk.AffineTransform) -> np.ndarray:
    """Return the matrix [4, 4] in RAS+ millimetres of an ITK affine transform, its centre included."""
    matrix, centre = np.eye(4), np.array(transform.GetCenter())
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = centre + transform.GetTranslation() - matrix[:3, :3] @ centre
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


@contextmanager
def one_thread() -> Iterator[None]:
    """Run ITK on one thread, because with more the order of summation depends on which thread finishes first."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)

"""Arrays with a NIfTI affine as ITK images and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import itk
import numpy as np

from fedsr_monai.spatial.displacement import LPS

RAS_TO_LPS = np.diag([*LPS, 1.0])


def to_itk(volume: np.ndarray, affine: np.ndarray, kind=itk.F) -> itk.Image:
    """Return a volume as an ITK image of floats, or of `kind`, at the same position in space.

    Args:
        volume: the voxels [D, H, W].
        affine: [4, 4], voxel to millimetre, RAS+; oblique and left-handed ones are kept as they are.
        kind: ITK's type of a voxel.
    """
    dtype = np.uint8 if kind == itk.UC else np.float32
    image = itk.image_from_array(np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=dtype))
    matrix = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3] / spacing)))
    return image


def from_itk(image: itk.Image) -> np.ndarray:
    """Return the voxels [D, H, W] of an ITK image."""
    return itk.array_from_image(image).transpose(2, 1, 0)


def to_itk_affine(matrix: np.ndarray, centre: np.ndarray) -> itk.AffineTransform:
    """Return a matrix between points in RAS+ millimetres as an ITK transform.

    Args:
        matrix: the map [4, 4].
        centre: the point, in ITK's LPS+ millimetres, that changes of the transform's rotation and scale leave fixed.
    """
    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3])))
    transform.SetTranslation((lps[:3, :3] @ centre + lps[:3, 3] - centre).tolist())
    return transform


def from_itk_affine(transform: itk.AffineTransform) -> np.ndarray:
    """Return the matrix [4, 4] in RAS+ millimetres of an ITK affine transform, its centre included."""
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = list(transform.GetOffset())
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


@contextmanager
def one_thread() -> Iterator[None]:
    """Let ITK run on one thread: with more, sums are added up in the order in which threads finish."""
    before = itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(before)

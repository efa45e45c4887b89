"""Arrays with a NIfTI affine as ITK images and back."""

from __future__ import annotations

import itk
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's x and y run against those of NIfTI
Image = itk.Image[itk.F, 3]


def to_itk(volume: np.ndarray, affine: np.ndarray, kind=itk.F) -> itk.Image:
    """A volume [D, H, W] as an ITK image of floats, or of `kind`, at the same places in space.

    Args:
        volume: the voxels.
        affine: [4, 4], voxel to millimetre, RAS+; oblique and left-handed ones are kept as they are.
        kind: ITK's type of a voxel.
    """
    dtype = np.uint8 if kind == itk.UC else np.float32
    image = itk.image_from_array(np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=dtype))
    matrix = LPS @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3] / spacing)))
    return image


def from_itk(image: itk.Image) -> np.ndarray:
    """The voxels [D, H, W] of an ITK image."""
    return itk.array_from_image(image).transpose(2, 1, 0)


def to_itk_affine(matrix: np.ndarray, centre: np.ndarray, rigid: bool = False) -> itk.MatrixOffsetTransformBase:
    """A matrix [4, 4] between points in RAS+ millimetres as an ITK transform about `centre` (in ITK's own LPS points).

    Args:
        matrix: the map.
        centre: the point that a change of the transform's rotation and scale leaves where it is.
        rigid: a transform of rotation and shift instead of an affine one; the matrix must be such.
    """
    lps = LPS @ matrix @ LPS
    transform = itk.Euler3DTransform[itk.D].New() if rigid else itk.AffineTransform[itk.D, 3].New()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3])))
    transform.SetTranslation((lps[:3, :3] @ centre + lps[:3, 3] - centre).tolist())
    return transform


def from_itk_affine(transform: itk.AffineTransform) -> np.ndarray:
    """The matrix [4, 4] in RAS+ millimetres of an ITK affine transform, its centre included."""
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = list(transform.GetOffset())
    return LPS @ matrix @ LPS

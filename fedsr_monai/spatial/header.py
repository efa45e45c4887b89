"""Where a scan is in space: the two forms of a NIfTI header, and how programs interpret them.

A header holds two maps from voxels to millimetres, each with a code that is 0 if the form is not set: the *sform*, any
affine map, and the *qform*, a rotation, a shift and the voxel sizes in `pixdim`. This package reads the sform if its
code is above 0, else the qform, as nibabel, FSL, SPM and FreeSurfer do. ITK (ANTs, 3D Slicer) has a different rule; see
`itk_affine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

FORM_FIELDS = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
WORTH_A_WARNING = 0.1  # mm
SAME_AFFINE = 1e-3  # mm; headers keep float32


def header_of(affine: np.ndarray, codes: tuple[int, int] = (1, 1)) -> nib.Nifti1Header:
    """Return a header in millimetres with the affine as both forms (the qform without its shear).

    Args:
        affine: [4, 4], voxel to millimetre, RAS+.
        codes: qform and sform code.
    """
    header = nib.Nifti1Header()
    header.set_qform(affine, code=codes[0])
    header.set_sform(affine, code=codes[1])
    header.set_xyzt_units("mm")
    return header


def copy_forms(source: nib.Nifti1Header, target: nib.Nifti1Header) -> None:
    """Copy both forms of `source` and their codes to `target`, bit for bit; both headers are in millimetres."""
    for field in FORM_FIELDS:
        if field == "pixdim":
            target[field][:4] = source[field][:4]
        else:
            target[field] = source[field]
    target.set_xyzt_units("mm")


def forms_to_meta(header: nib.Nifti1Header) -> dict[str, np.ndarray]:
    """Return the numbers of a header, including both forms and codes, as meta data for `header_from_meta`."""
    return {key: value.copy() for key, value in dict(header).items() if value.dtype.kind in "iuf"}


def header_from_meta(meta: Mapping[str, Any], affine: np.ndarray) -> nib.Nifti1Header:
    """Return the header of the scan that the meta data come from, or one made from `affine` if the two do not match.

    Args:
        meta: from `forms_to_meta`; without these entries, both forms are made from the affine.
        affine: affine [4, 4] of the volume to be written. A volume that was moved to another grid no longer has the scan's
            forms.
    """
    if all(field in meta for field in FORM_FIELDS):
        header = header_of(np.eye(4))
        for field in FORM_FIELDS:
            header[field] = np.asarray(meta[field])
        if np.allclose(header.get_best_affine(), affine, rtol=0, atol=SAME_AFFINE):
            return header
    return header_of(affine, (int(meta.get("qform_code", 1)), int(meta.get("sform_code", 1))))


def itk_affine(header: nib.Nifti1Header) -> np.ndarray | None:
    """Return the affine [4, 4] (RAS+, millimetres) that ITK 5 reads; None if it refuses the file.

    Directions and origin are those of the sform if its columns are orthogonal and either its code is 1 (scanner) or the
    qform has no code; otherwise they are those of the qform. Voxel sizes always come from `pixdim`. (See
    `SetImageIOOrientationFromNIfTI` in ITK's itkNiftiImageIO.cxx. If both forms are the same to 1e-4 it takes the sform,
    which makes no difference here.)
    """
    matrix = header.get_sform() if header["sform_code"] > 0 else None
    if matrix is not None:
        directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
        orthogonal = np.abs(directions @ directions.T - np.eye(3)).max() < 1e-4
        if not orthogonal or (header["sform_code"] != 1 and header["qform_code"] > 0):
            matrix = None
    if matrix is None and header["qform_code"] > 0:
        matrix = header.get_qform()
    if matrix is None:
        return None
    result = matrix.copy()
    result[:3, :3] *= header["pixdim"][1:4] / np.linalg.norm(matrix[:3, :3], axis=0)
    return result


def largest_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return by how many millimetres a voxel of a volume moves at most if one affine is replaced by another."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], dtype=float)
    return float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max())


def form_conflict(header: nib.Nifti1Header, shape: Sequence[int]) -> str | None:
    """Return a warning about a volume that some programs place more than 0.1 mm elsewhere; None if all agree."""
    affine, theirs = header.get_best_affine(), itk_affine(header)
    both = header["sform_code"] > 0 and header["qform_code"] > 0
    apart = largest_distance(affine, header.get_qform(), shape) if both else 0.0
    away = largest_distance(affine, theirs, shape) if theirs is not None else 0.0
    if apart <= WORTH_A_WARNING and away <= WORTH_A_WARNING and theirs is not None:
        return None
    text = f"read by its {'sform' if header['sform_code'] > 0 else 'qform'}"
    if apart > WORTH_A_WARNING:
        text += f", which is up to {apart:.1f} mm from its qform"
    if theirs is None:
        return f"{text}; ITK-based programs (ANTs, 3D Slicer) refuse its sheared axes"
    if away > WORTH_A_WARNING:
        return f"{text}; ITK-based programs (ANTs, 3D Slicer) see it up to {away:.1f} mm from there"
    return f"{text}; ITK-based programs (ANTs, 3D Slicer) see it there too"

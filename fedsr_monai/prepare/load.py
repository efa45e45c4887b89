"""Reading raw scans, masks and label maps: NIfTI and FreeSurfer's .mgz."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.nifti import read_nifti
from fedsr_monai.spatial.resampling import is_identity, resample_image, voxel_map

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")


@dataclass(frozen=True)
class Volume:
    """Hold voxels [D, H, W], their affine [4, 4] (to RAS+ millimetres) and the header's qform and sform code."""

    voxels: np.ndarray
    affine: np.ndarray
    codes: tuple[int, int] = (1, 1)


def read_volume(path: str | os.PathLike) -> Volume:
    """Read one volume, at any spacing and orientation, of whole numbers or floats; 4-D with one volume counts as 3-D.

    Raises:
        UserError: the file is missing, damaged or of another format, does not hold exactly one finite 3-D volume, or has a singular
            affine.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(path, "no such file", "a scan", "check the path")
    if not path.name.endswith(SUFFIXES):
        fix = "convert it, for example with dcm2niix"
        raise UserError(path, "another type of file", f"one of {', '.join(SUFFIXES)}", fix)
    image, voxels = _read_mgz(path) if path.name.endswith((".mgz", ".mgh")) else read_nifti(path)
    if voxels.ndim > 3 and all(n == 1 for n in voxels.shape[3:]):
        voxels = voxels.reshape(voxels.shape[:3])
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise UserError(path, f"shape {voxels.shape}", "one 3-D volume", "extract one volume of the series")
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-3 * np.prod(sizes):
        raise UserError(path, "a singular affine", "voxels with a volume", "fix the header")
    broken = int((~np.isfinite(voxels)).sum()) if voxels.dtype.kind == "f" else 0
    if broken:
        raise UserError(path, f"{broken} voxels that are NaN or infinite", "numbers", "export the scan again")
    codes = (
        (int(image.header["qform_code"]), int(image.header["sform_code"]))
        if isinstance(image, nib.Nifti1Image)
        else (1, 1)
    )
    return Volume(voxels, image.affine.astype(float), codes)


def read_scan(path: str | os.PathLike) -> Volume:
    """Read a scan as float32, 0 or above.

    Raises:
        UserError: as `read_volume`, or the scan is constant or of positive and negative values.
    """
    volume = read_volume(path)
    voxels = volume.voxels.astype(np.float32)
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise UserError(path, f"a constant image (all {low:g})", "a scan", "export it again")
    negative, positive = int((voxels < 0).sum()), int((voxels > 0).sum())
    if negative > 0.05 * positive:
        fix = "give the scan before normalisation"
        raise UserError(path, f"{negative} negative voxels", "intensities of 0 and above", fix)
    return Volume(np.maximum(voxels, 0), volume.affine, volume.codes)


def read_mask(path: str | os.PathLike, scan: Volume) -> np.ndarray:
    """Read a brain mask, bool, on the voxels of a scan; the file may have other voxels in the same space.

    Fractions up to 1 count from 0.5, other numbers above 0; in FreeSurfer's `brainmask` a 1 is a voxel that somebody erased.

    Raises:
        UserError: as `read_volume`, or the mask has no voxel inside the scan.
    """
    volume = read_volume(path)
    voxels = volume.voxels
    erased = 1 if Path(path).name.startswith("brainmask") else 0
    mask = voxels > (0.5 if voxels.max() <= 1 else erased)
    matrix = voxel_map(volume.affine, scan.affine)
    if not is_identity(matrix, mask.shape, scan.voxels.shape):
        moved = resample_image(torch.from_numpy(mask.astype(np.float32))[None], matrix, scan.voxels.shape)
        mask = moved[0].numpy() > 0.5
    if not mask.any():
        raise UserError(path, "no voxel of the scan", "a mask of its brain", "give the mask of this scan")
    return mask


def _read_mgz(path: Path) -> tuple[nib.MGHImage, np.ndarray]:
    try:
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel and gzip raise a dozen types for damaged files
        found = f"a damaged file ({' '.join(str(error).split())})"
        raise UserError(path, found, "a complete .mgz", "copy it again") from None
    return image, voxels

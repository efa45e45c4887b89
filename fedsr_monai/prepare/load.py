"""Reading raw scans and brain masks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.dicom import read_volume_or_series
from fedsr_monai.spatial.nifti import Volume, read_volume
from fedsr_monai.spatial.resampling import is_identity, resample_image, voxel_map

# Least fraction of equal neighbours in a label map: it is 0.74 or more in label maps of heads, and at most 0.15 in scans.
FLAT = 0.6


def read_scan(path: str | os.PathLike, series: str | None = None) -> Volume:
    """Read a scan as float32, with negative values set to 0.

    Args:
        path: path of a volume, or of a folder of DICOM files.
        series: UID or number of the DICOM series, if several in the folder could be the scan.

    Raises:
        UserError: see `read_volume` and `read_series`; or the scan is constant, a label map, or has many negative values.
    """
    volume = read_volume_or_series(path, series)
    voxels = volume.voxels.astype(np.float32)
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise UserError(path, f"a constant image (all {low:g})", "a scan", "export it again")
    if is_label_map(voxels):
        found = f"a label map or mask (flat regions of {len(np.unique(voxels))} different whole numbers)"
        raise UserError(path, found, "a scan", "leave label maps and masks out")
    negative, positive = int((voxels < 0).sum()), int((voxels > 0).sum())
    if negative > 0.05 * positive:
        fix = "give the scan before normalisation"
        raise UserError(path, f"{negative} negative voxels", "intensities of 0 and above", fix)
    return replace(volume, voxels=np.maximum(voxels, 0))


def is_label_map(voxels: np.ndarray) -> bool:
    """Return whether a volume [D, H, W] holds labels: whole numbers, most of them equal to that of the next voxel.

    A mask is a label map too. The background, which is 0 or the value of the first voxel, does not count.
    """
    inside = (voxels > 0) & (voxels != voxels[0, 0, 0])
    pairs = inside[1:] & inside[:-1]
    if not pairs.any() or not np.array_equal(voxels, np.round(voxels)):
        return False
    return float((voxels[1:] == voxels[:-1])[pairs].mean()) > FLAT


def read_mask(path: str | os.PathLike, scan: Volume) -> np.ndarray:
    """Read a brain mask, bool, on the voxels of a scan; the file may have other voxels in the same space.

    If the values are at most 1, those above 0.5 count as brain, otherwise those above 0. In FreeSurfer's `brainmask`, a 1
    is a voxel that somebody erased.

    Raises:
        UserError: see `read_volume`; or the mask has no voxel inside the scan.
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

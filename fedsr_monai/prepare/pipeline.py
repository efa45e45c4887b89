"""The preparation of one raw scan: mask, bias field, affine map to the atlas, and a check of the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.alignment import Alignment, align
from fedsr_monai.prepare.bias import correct_bias
from fedsr_monai.prepare.brain_mask import filled, find_brain, is_stripped
from fedsr_monai.prepare.itk_image import one_thread
from fedsr_monai.prepare.quality import Quality, check_alignment, quality
from fedsr_monai.progress import doing
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import Volume
from fedsr_monai.spatial.resampling import resample_image, voxel_map
from fedsr_monai.transforms.check_scan import BRAIN_LITRES, check_scan
from fedsr_monai.transforms.scale_brain_intensity import scale_brain_intensity


@dataclass(frozen=True)
class Prepared:
    """Hold a prepared raw scan.

    `brain` is float32 [D, H, W] on the voxels of the scan, corrected for the bias field, 0 outside `mask`; `matrix` [4, 4]
    takes points of the scan to points of the atlas, RAS+ millimetres.
    """

    brain: np.ndarray
    mask: np.ndarray
    mask_from: str  # given, stripped or computed
    scan: Grid
    matrix: np.ndarray
    quality: Quality

    @property
    def affine(self) -> np.ndarray:
        """Return the affine that places the scan's voxels in the space of the atlas."""
        return self.matrix @ self.scan.affine


@one_thread()
def prepare_scan(scan: Volume, mask: np.ndarray | None, atlas: np.ndarray, grid: Grid, name: str) -> Prepared:
    """Find the brain of a raw scan, correct its bias field and register it to the atlas.

    ITK runs on one thread, so that the same scan gives the same bits on every machine, whatever else is running.

    Args:
        scan: from `read_scan`.
        mask: the brain, bool [D, H, W], on the voxels of the scan. Without one, a stripped scan is recognised by its
            zeros, and in a whole head the brain is found by a network (see `find_brain`).
        atlas: image [D, H, W] of the atlas, 0 outside the brain.
        grid: grid of the atlas.
        name: name of the scan, for messages.

    Raises:
        UserError: the mask is not that of a brain, or the scan cannot be registered to the atlas.
    """
    own = Grid(scan.affine, scan.voxels.shape)
    if mask is not None:
        mask, mask_from = filled(mask), "given"
    elif is_stripped(scan.voxels, scan.affine):
        mask, mask_from = filled(scan.voxels > 0), "stripped"
    else:
        doing("finding the brain")
        mask, mask_from = find_brain(scan.voxels, scan.affine), "computed"
    check_mask(mask, scan, name, mask_from)
    doing("correcting the bias field")
    brain = correct_bias(scan.voxels, mask, scan.affine)
    doing("aligning to the atlas")
    alignment = align(brain, scan.affine, atlas, grid)
    found = judge(alignment, brain, own, atlas, grid, name)
    return Prepared(brain, mask, mask_from, own, alignment.matrix, found)


def judge(alignment: Alignment, brain: np.ndarray, scan: Grid, atlas: np.ndarray, grid: Grid, name: str) -> Quality:
    """Measure the quality of an alignment.

    Raises:
        UserError: the alignment cannot be right.
    """
    moved = alignment.matrix @ scan.affine
    on_grid = resample_image(torch.from_numpy(brain)[None], voxel_map(moved, grid.affine), grid.shape)[0].numpy()
    found = quality(alignment, on_grid, atlas, grid.spacing)
    check_alignment(alignment, found, name)
    check_scan(torch.from_numpy(brain)[None], moved, grid, name)
    return found


def check_mask(mask: np.ndarray, scan: Volume, name: str, mask_from: str) -> None:
    """Refuse a mask whose volume is not that of a brain, or in which most of the scan is 0.

    Raises:
        UserError: the mask is refused; the error names the scan.
    """
    litres = mask.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1e6
    low, high = BRAIN_LITRES
    if not low <= litres <= high:
        fix = (
            "check the orientation in the header, or give a mask"
            if mask_from == "computed"
            else "check the mask and the voxel size"
        )
        raise UserError(name, f"a brain mask ({mask_from}) of {litres:.2g} litres", f"{low} to {high}", fix)
    lit = float((scan.voxels[mask] > 0).mean())
    if lit < 0.5:
        found = f"zeros in {100 * (1 - lit):.0f} % of the brain mask ({mask_from})"
        raise UserError(name, found, "tissue", "give the mask of this scan")


def image_on_grid(prepared: Prepared, grid: Grid) -> torch.Tensor:
    """Return the prepared scan [1, *grid.shape] on the atlas' grid, scaled to [0, 1] as in a bundle's preprocessing."""
    brain = torch.from_numpy(prepared.brain)[None]
    return scale_brain_intensity(resample_image(brain, voxel_map(prepared.affine, grid.affine), grid.shape))

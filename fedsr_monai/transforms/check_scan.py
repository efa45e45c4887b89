"""Refusing scans that cannot be segmented, with errors that name the file and the fix."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from fedsr_monai.errors import UserError
from fedsr_monai.sites.contract import BRAIN_LITRES
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import voxel_map

INSIDE = 0.8  # least fraction of the brain that must be in the box of the atlas


def check_scan(volume: torch.Tensor, affine: np.ndarray, grid: Grid, name: str) -> None:
    """Refuse a volume [C, D, H, W] that is not one finite, skull-stripped brain in the box of the grid.

    A brain in the box is off by a few centimetres at most, which is what registration is made for. Whether it is upside
    down cannot be told from the box.

    Args:
        volume: the scan.
        affine: [4, 4], voxel to millimetre.
        grid: grid of the atlas.
        name: name of the scan, for the message.

    Raises:
        UserError: the scan is refused; the error names the file, what was found, what was expected, and the fix.
    """
    if volume.ndim != 4 or len(volume) != 1:
        found = f"{' x '.join(map(str, [*volume.shape[1:], len(volume)]))} values"
        raise UserError(name, found, "one 3-D volume", "take one volume out of the series")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * np.prod(sizes) or sizes.min() == 0:
        raise UserError(name, "a singular affine", "voxels with a volume", "fix the header")
    if min(volume.shape[1:]) < 2:
        found = f"a single slice, shape {tuple(volume.shape[1:])}"
        raise UserError(name, found, "a 3-D volume", "give the whole scan")
    broken = int((~torch.isfinite(volume)).sum())
    if broken:
        found = f"{broken} voxels that are NaN or infinite"
        raise UserError(name, found, "numbers", "fix the preprocessing of this scan")
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        raise UserError(name, f"a constant image (all {low:g})", "a scan", "export it again")
    brain = volume[0] > 0
    negative = int((volume < 0).sum())
    if negative > 0.05 * int(brain.sum()):
        expected = "a brain above 0 and a background of 0"
        raise UserError(name, f"{negative} negative voxels", expected, "give the scan before normalisation")
    litres = int(brain.sum()) * np.prod(sizes) * abs(np.linalg.det(affine[:3, :3] / sizes)) / 1e6
    if not BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]:
        raise UserError(
            name,
            found=f"{litres:.2g} litres above 0",
            expected=f"a skull-stripped brain ({BRAIN_LITRES[0]} to {BRAIN_LITRES[1]} litres) on a background of 0",
            fix="strip the skull (fedsr segment does so with --raw), and check the voxel size",
        )
    inside = fraction_inside(brain, affine, grid)
    if inside < INSIDE:
        raise UserError(
            name,
            found=f"{100 * inside:.0f} % of the brain in the box of the atlas",
            expected=f"{100 * INSIDE:.0f} % or more",
            fix="align the scan to the atlas (fedsr segment does so with --raw; elsewhere, an affine registration to MNI space)",
        )


def fraction_inside(brain: torch.Tensor, affine: np.ndarray, grid: Grid) -> float:
    """Return the fraction of a brain's voxels that are in the box of the grid, estimated from about 20,000 of them.

    Args:
        brain: bool [D, H, W], not empty.
        affine: [4, 4], voxel to millimetre.
        grid: grid of the atlas.
    """
    voxels = torch.nonzero(brain).cpu().numpy()
    some = voxels[:: max(1, len(voxels) // 20000)]
    to_grid = voxel_map(grid.affine, affine)
    positions = some @ to_grid[:3, :3].T + to_grid[:3, 3]
    return float(((positions > -0.5) & (positions < np.array(grid.shape) - 0.5)).all(axis=1).mean())


class CheckScand(MapTransform):
    """Check scans of a dictionary, see :func:`check_scan`; those that pass become float32 without negative values."""

    def __init__(self, keys: KeysCollection, grid: Grid, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid = grid

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            scan = data[key]
            name = str(scan.meta.get("filename_or_obj", key))
            check_scan(scan.as_subclass(torch.Tensor), scan.affine.cpu().numpy(), self.grid, name)
            result[key] = cast(
                MetaTensor, scan.float().clamp_min(0)
            )  # spline interpolation leaves small negative values beside edges
        return result

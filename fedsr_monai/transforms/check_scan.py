"""Refusing what cannot be segmented, by the name of the file and with the cure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import voxel_map

BRAIN_LITRES = (0.4, 2.6)  # with room for children, ventricles, generous masks and fields of view that cut
INSIDE = 0.8  # least share of the brain that must lie in the atlas' box


def check_scan(volume: torch.Tensor, affine: np.ndarray, grid: Grid, name: str) -> None:
    """Refuse a volume [C, D, H, W] that is not one finite, skull-stripped brain in the box of the grid.

    A brain that lies in the box is at most some centimetres off: what registration is made for. Whether it stands on
    its head cannot be seen from the box.

    Raises:
        UserError: naming the file, what was found, what was expected, and the cure.
    """
    if volume.ndim != 4 or len(volume) != 1:
        raise UserError(
            f"{name}: holds {' x '.join(map(str, [*volume.shape[1:], len(volume)]))} values, expected one 3-D volume; "
            "take one volume out of the series"
        )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * np.prod(sizes) or sizes.min() == 0:
        raise UserError(f"{name}: has a singular affine, expected voxels with a volume; mend the header")
    if min(volume.shape[1:]) < 2:
        raise UserError(
            f"{name}: has the shape {tuple(volume.shape[1:])}, expected a 3-D volume; a single slice cannot be segmented"
        )
    broken = int((~torch.isfinite(volume)).sum())
    if broken:
        raise UserError(
            f"{name}: {broken} voxels are NaN or infinite, expected numbers; mend the preprocessing of this scan"
        )
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        raise UserError(f"{name}: is constant (all {low:g}), expected a scan; export it again")
    brain = volume[0] > 0
    negative = int((volume < 0).sum())
    if negative > 0.05 * int(brain.sum()):
        raise UserError(
            f"{name}: {negative} voxels are negative, expected a brain above 0 and a background of 0; give the scan before normalisation"
        )
    voxels = torch.nonzero(brain).cpu().numpy()
    litres = len(voxels) * np.prod(sizes) * abs(np.linalg.det(affine[:3, :3] / sizes)) / 1e6
    if not BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]:
        raise UserError(
            f"{name}: {litres:.2g} litres are not 0, expected a skull-stripped brain ({BRAIN_LITRES[0]} to {BRAIN_LITRES[1]} litres) on a "
            "background of 0; strip the skull, and check the voxel size"
        )
    some = voxels[:: max(1, len(voxels) // 20000)]
    places = some @ (inverse := voxel_map(grid.affine, affine))[:3, :3].T + inverse[:3, 3]
    inside = float(((places > -0.5) & (places < np.array(grid.shape) - 0.5)).all(axis=1).mean())
    if inside < INSIDE:
        raise UserError(
            f"{name}: {100 * inside:.0f} % of the brain lies in the atlas' box, expected {100 * INSIDE:.0f} % or more; "
            "align the scan roughly to the atlas first (affine registration to MNI space)"
        )


class CheckScand(MapTransform):
    """Dictionary version of :func:`check_scan`; passes on what is right, as float32 and without negative values."""

    def __init__(self, keys: KeysCollection, grid: Grid, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid = grid

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            scan = data[key]
            name = str(scan.meta.get("filename_or_obj", key))
            check_scan(scan.as_subclass(torch.Tensor), scan.affine.cpu().numpy(), self.grid, name)
            result[key] = scan.float().clamp_min(0)  # spline interpolation leaves small negative values beside edges
        return result

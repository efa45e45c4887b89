"""Resampling a scan to the grid that the network works on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, ensure_tuple_rep

from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import resample_image, resample_labels, voxel_map

FINE = 0.75  # voxels are clearly finer than a grid's if their side is below this fraction
RESAMPLE = {"image": resample_image, "label": resample_labels}


class ResampleToGrid(InvertibleTransform):
    """Resample a volume to a given grid in space, whatever its own spacing and orientation, oblique or not.

    ``monai.transforms.SpatialResample``, in contrast, does not low-pass (structures alias when a 1 mm scan goes to 2 mm)
    and has no linear mode for label maps. A scan that is already on the grid passes unchanged. The inverse returns to the
    scan's own grid.

    Args:
        grid: the target grid.
        kind: "image" (low-pass and linear) or "label" (the same on one-hot maps, then argmax).
        fineness: images whose voxels are clearly finer than the grid's are resampled to a grid that is this many times finer
            (`Grid.finer`), low-passed as for the grid itself, for ``InterleavedInferer``.

    Raises:
        ValueError: an unknown kind, or a fineness for labels.

    Example::

        scan = LoadImage(VolumeReader(), ensure_channel_first=True)("scan.nii.gz")
        on_grid = ResampleToGrid(standard_grid(2.0, (80, 96, 80)))(scan)
    """

    def __init__(self, grid: Grid, kind: str = "image", fineness: int = 1) -> None:
        if kind not in RESAMPLE:
            raise ValueError(f"ResampleToGrid() 'kind' is {kind!r}; expected one of {sorted(RESAMPLE)}")
        if fineness < 1 or (fineness > 1 and kind != "image"):
            raise ValueError(
                f"ResampleToGrid() 'fineness' is {fineness!r} for kind {kind!r}; expected 1, or more of images"
            )
        self.grid, self.kind, self.fineness = grid, kind, fineness

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """Return the volume [C, D, H, W] on the grid, or on the finer one."""
        affine = volume.affine.cpu().numpy()
        finer = Grid(affine, tuple(volume.shape[1:])).spacing < FINE * self.grid.spacing
        grid = self.grid.finer(self.fineness) if finer else self.grid
        matrix = voxel_map(affine, grid.affine)
        if grid is not self.grid:
            result = resample_image(
                volume.as_subclass(torch.Tensor), matrix, grid.shape, voxel_map(affine, self.grid.affine)
            )
        else:
            result = RESAMPLE[self.kind](volume.as_subclass(torch.Tensor), matrix, grid.shape)
        result = _with_meta(result, volume, grid.affine)
        own = {"affine": volume.affine.cpu().tolist(), "grid": np.asarray(grid.affine).tolist(), "finer": finer}
        return self.push_transform(result, orig_size=list(volume.shape[1:]), extra_info=own)

    def inverse(self, volume: MetaTensor) -> MetaTensor:
        """Resample a volume from the grid of a resampled scan to the grid that the scan came from."""
        info = self.pop_transform(volume)
        affine = torch.as_tensor(info[TraceKeys.EXTRA_INFO]["affine"], dtype=torch.float64)
        matrix = voxel_map(np.asarray(info[TraceKeys.EXTRA_INFO]["grid"]), affine.numpy())
        result = RESAMPLE[self.kind](volume.as_subclass(torch.Tensor), matrix, info[TraceKeys.ORIG_SIZE])
        return _with_meta(result, volume, affine)


def _with_meta(result: torch.Tensor, volume: MetaTensor, affine) -> MetaTensor:
    moved = MetaTensor(result)
    moved.copy_meta_from(volume)
    moved.affine = torch.as_tensor(affine, dtype=torch.float64)
    return moved


class ResampleToGridd(MapTransform, InvertibleTransform):
    """Resample volumes of a dictionary, see :class:`ResampleToGrid`; ``kind`` is a single one for all keys or one per key."""

    def __init__(
        self,
        keys: KeysCollection,
        grid: Grid,
        kind: str | Sequence[str] = "image",
        allow_missing_keys: bool = False,
        fineness: int = 1,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resample = {
            k: ResampleToGrid(grid, kind, fineness if kind == "image" else 1)
            for k, kind in zip(self.keys, ensure_tuple_rep(kind, len(self.keys)))
        }

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        return dict(data) | {key: self.resample[key](data[key]) for key in self.key_iterator(dict(data))}

    def inverse(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        return dict(data) | {key: self.resample[key].inverse(data[key]) for key in self.key_iterator(dict(data))}

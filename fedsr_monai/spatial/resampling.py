"""Resampling between two voxel grids in space: any spacing, orientation and obliquity. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from fedsr_monai.spatial import warping

MIXED = 255  # not a single label
LEAST = 1e-6  # least fraction of a label, so that other evidence can still overrule it
# A function from N positions (three tensors [N], in voxels of the volume) and the grid's voxels there (a box, and a mask of voxels
# in it) to log likelihoods, one per label and position, [K, N].
Evidence = Callable[[Sequence[torch.Tensor], tuple[slice, ...], torch.Tensor], torch.Tensor]
SLAB = 1 << 20  # voxels sampled at a time: their coordinates and 14 channels take 70 MB


def voxel_map(affine: np.ndarray, grid_affine: np.ndarray) -> np.ndarray:
    """Return the matrix [4, 4] from voxel indices of a grid to those of a volume, given both affines."""
    return np.linalg.inv(np.asarray(affine, dtype=float)) @ np.asarray(grid_affine, dtype=float)


def is_identity(matrix: np.ndarray, shape: Sequence[int], grid_shape: Sequence[int]) -> bool:
    """Return whether two grids are the same to a thousandth of a voxel anywhere in the volume."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], dtype=float)
    return tuple(shape) == tuple(grid_shape) and bool(np.abs(corners @ matrix.T - corners).max() < 1e-3)


def low_pass(volume: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Smooth a volume [D, H, W] that is going to be sampled at `matrix`, to avoid aliasing.

    Along each axis, a voxel of the grid spans r voxels of the volume; sigma is 0.425 sqrt(r^2 - 1) of them (full width
    at half maximum: the voxel). For large r this is the 0.425 r of the atlas; if the grid is not coarser, nothing is
    smoothed.
    """
    ratio = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma = 0.425 * np.sqrt(np.maximum(ratio**2 - 1, 0))
    if (sigma < 0.05).all():
        return volume
    return ndimage.gaussian_filter(volume, sigma, truncate=3, mode="constant")


def sample(
    volume: torch.Tensor,
    matrix: np.ndarray,
    shape: Sequence[int],
    finish: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    padding_mode: str = "zeros",
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Interpolate a volume [C, D, H, W] linearly at `matrix` times the indices of a grid of `shape`; [C', *shape].

    `finish` is applied to each slab [C, d, h, w] of the result as it is made, so that many channels on a fine grid (14
    times a scan of 1 mm: a gigabyte) never exist at once.

    Args:
        volume: float tensor.
        matrix: from `voxel_map`.
        shape: shape of the result.
        finish: turns sampled values into those that are kept.
        padding_mode: outside the volume, "zeros" or "border".
        shift: displacement [3, *shape], added to the positions in voxels of the volume.
    """
    slabs = [
        finish(_interpolated(volume, positions, padding_mode))
        for positions in _positions(matrix, shape, shift, volume.device)
    ]
    return torch.cat(slabs, dim=1)


def _positions(
    matrix: np.ndarray, shape: Sequence[int], shift: torch.Tensor | None, device: torch.device
) -> Iterator[list[torch.Tensor]]:
    """Yield `matrix` times the indices of a grid, plus a shift, slab by slab: three tensors [d, *shape[1:]], one per axis."""
    m = torch.as_tensor(matrix, dtype=torch.float32, device=device)
    steps = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    depth = max(1, SLAB // (shape[1] * shape[2]))
    for start in range(0, shape[0], depth):
        part = slice(start, start + depth)
        i, j, k = steps[0][part, None, None], steps[1][:, None], steps[2]
        yield [
            (m[a, 0] * i + m[a, 1] * j)
            + (m[a, 2] * k + m[a, 3] if shift is None else m[a, 2] * k + m[a, 3] + shift[a, part])
            for a in range(3)
        ]


def _interpolated(volume: torch.Tensor, positions: Sequence[torch.Tensor], padding_mode: str = "zeros") -> torch.Tensor:
    """Return the values of a volume [C, D, H, W] at positions in its voxels, three tensors [d, h, w]: [C, d, h, w]."""
    return warping.sample(volume[None], [position[None] for position in positions], padding_mode)[0]


def most_likely(fractions: torch.Tensor) -> torch.Tensor:
    """Return the label of the largest fraction (or logit) in [K, ...]: `fractions.argmax(dim=0, keepdim=True)`, uint8.

    On a CPU, `max` finds it along the first axis in a third of the time that `argmax` takes.
    """
    return fractions.max(dim=0, keepdim=True).indices.to(torch.uint8)


def one_hot_at(label: torch.Tensor, positions: Sequence[torch.Tensor], classes: int) -> torch.Tensor:
    """Return the one-hot map of a label map [D, H, W], interpolated linearly at positions in its voxels: float32 [classes, N].

    The map itself (14 times the labels in float32: 280 MB for a brain at 1 mm) is never made. Outside the volume, all values
    are 0.

    Args:
        label: ids, uint8.
        positions: three tensors [N], one per axis.
        classes: number of ids.
    """
    sides = []  # per axis: the voxel before each position and the one after it, with their weights
    for position, size in zip(positions, label.shape):
        before = position.floor()
        rest = position - before
        voxels = before.long(), before.long() + 1
        inside = [(voxel >= 0) & (voxel < size) for voxel in voxels]
        sides.append([(v.clamp(0, size - 1), w * i) for v, w, i in zip(voxels, (1 - rest, rest), inside)])
    found, weights = [], []
    _, height, width = label.shape
    for (i, along_i), (j, along_j), (k, along_k) in product(*sides):  # the eight corners
        found.append(label.flatten()[(i * height + j) * width + k])
        weights.append(along_i * along_j * along_k)
    result = torch.zeros(len(positions[0]), classes, device=label.device)
    return result.scatter_add_(1, torch.stack(found, dim=1).long(), torch.stack(weights, dim=1)).t()


def sample_labels(
    fractions: torch.Tensor | None,
    matrix: np.ndarray,
    shape: Sequence[int],
    shift: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    evidence: Evidence | None = None,
) -> torch.Tensor:
    """Return the most likely label at `matrix` times the indices of a grid, uint8 [1, *shape]: `most_likely(sample(...))`.

    The fractions are interpolated, not the labels, so that borders come out smooth. If all eight voxels around a position
    have the same label, it wins whatever the weights are, so only the remaining positions (borders) are interpolated.

    Args:
        fractions: probabilities of the labels [K, D, H, W], which sum to one. Channel 0 is the background, which includes
            everything outside the volume. None for the one-hot map of `labels`.
        matrix, shape, shift: see `sample`.
        labels: the most likely label at the voxels of the volume, uint8 [D, H, W], if it is known; `MIXED` for voxels around
            which the fractions are interpolated in any case.
        evidence: further evidence for the labels at the borders, added to the logarithms of their fractions.
    """
    if labels is None:
        assert fractions is not None
        labels = most_likely(fractions)[0]
    result = torch.zeros(1, *shape, dtype=torch.uint8, device=labels.device)
    reach = 0.0 if shift is None else float(shift.abs().max().nan_to_num(0.0, 0.0, 0.0))
    start, stop = box_on_grid(labels > 0, matrix, shape, margin=1 + reach)
    if not (stop > start).all():
        return result
    box = [slice(int(a), int(b)) for a, b in zip(start, stop)]
    shifted = matrix @ np.block([[np.eye(3), start[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    moved = None if shift is None else shift[:, box[0], box[1], box[2]]
    cells = _uniform_cells(labels)
    classes = int(labels.max()) + 1
    parts = []
    first = start[0]
    for positions in _positions(shifted, tuple(stop - start), moved, labels.device):
        index = torch.zeros(positions[0].shape, dtype=torch.long, device=labels.device)
        for position, size in zip(positions, cells.shape):
            # A position that is not a number is background, like one outside; the cells at the rim are outside.
            cell = position.nan_to_num(-1.0).add(2).clamp_(0, size - 1).long()
            index = index.mul_(size).add_(cell)
        part = cells.view(-1)[index]
        mixed = part == MIXED
        if mixed.any():
            places = [position[mixed] for position in positions]
            if fractions is None:
                values = one_hot_at(labels, places, classes)
            else:
                values = _interpolated(fractions, [place[None, None] for place in places])[:, 0, 0]
            values[0] = 1 - values[1:].sum(dim=0)  # outside the volume all are 0
            if evidence is not None:
                slab = (slice(first, first + len(part)), *box[1:])
                values = values.clamp_(min=LEAST).log_().add_(evidence(places, slab, mixed))
            part[mixed] = most_likely(values)[0]
        parts.append(part)
        first += len(part)
    result[0, box[0], box[1], box[2]] = torch.cat(parts)
    return result


def _uniform_cells(labels: torch.Tensor) -> torch.Tensor:
    """Return the label of each cell between eight voxels of [D, H, W], `MIXED` where they differ: uint8 [D + 3, H + 3, W + 3].

    Cell i + 2 is the one between voxels i and i + 1; the volume is surrounded by two layers of background.
    """
    low = high = F.pad(labels[None, None], [2] * 6)[0, 0]
    for axis in range(3):
        size = low.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, 1, size))
        high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, 1, size))
    return torch.where(low == high, low, MIXED).contiguous()


def box_on_grid(
    mask: torch.Tensor, matrix: np.ndarray, shape: Sequence[int], margin: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the box of a grid (first and past-the-last index) that holds a volume's mask [D, H, W] and `margin` voxels around it."""
    extent = [torch.nonzero(mask.any(dim=a).any(dim=b)).flatten() for a, b in ((1, 1), (0, 1), (0, 0))]
    if not all(len(indices) for indices in extent):
        return np.zeros(3, int), np.zeros(3, int)
    sides = [(float(indices[0]) - margin, float(indices[-1]) + margin) for indices in extent]
    corners = np.array([[i, j, k, 1] for i in sides[0] for j in sides[1] for k in sides[2]]) @ np.linalg.inv(matrix).T
    start = np.clip(np.floor(corners[:, :3].min(axis=0)), 0, shape).astype(int)
    return start, np.clip(np.ceil(corners[:, :3].max(axis=0)) + 1, 0, shape).astype(int)


def resample_image(
    volume: torch.Tensor, matrix: np.ndarray, shape: Sequence[int], resolution: np.ndarray | None = None
) -> torch.Tensor:
    """Resample a volume [C, D, H, W] to another grid: low-passed if the grid is coarser, linear, 0 outside; float32.

    Args:
        volume: tensor of any type.
        matrix: from `voxel_map`, grid to volume.
        shape: shape of the grid.
        resolution: like `matrix`, but of the grid whose voxels set the low-pass; by default the grid itself.
    """
    volume = volume.float()
    if resolution is None and is_identity(matrix, volume.shape[1:], shape):
        return volume
    resolution = matrix if resolution is None else resolution
    smooth = np.stack([low_pass(channel, resolution) for channel in volume.cpu().numpy()])
    return sample(torch.from_numpy(smooth).to(volume.device), matrix, shape)


def nearest_labels(label: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the nearest label to each voxel of a finer grid, [D, H, W]; `matrix` and `shape` as for `resample_labels`."""
    return ndimage.affine_transform(label, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=0)


def resample_labels(label: torch.Tensor, matrix: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """Resample a label map [1, D, H, W] to another grid.

    Each voxel gets the label whose one-hot map, resampled as an image, is the largest there.

    The usual way, to take the label of the nearest voxel, roughens every border by half a voxel.
    """
    if is_identity(matrix, label.shape[1:], shape):
        return label
    best = torch.full((1, *shape), 0.0, device=label.device)
    result = torch.zeros((1, *shape), dtype=label.dtype, device=label.device)
    outside = 1 - resample_image(torch.ones_like(label), matrix, shape)
    for value in torch.unique(label).tolist():
        fraction = resample_image((label == value), matrix, shape) + (outside if value == 0 else 0)
        result[fraction > best] = value
        best = torch.maximum(best, fraction)
    return result

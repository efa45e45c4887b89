"""The network's output as a label map on the scan's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TraceKeys

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.header import FORM_FIELDS
from fedsr_monai.spatial.resampling import is_identity, sample, voxel_map

KEPT = ("filename_or_obj", *FORM_FIELDS)  # of the scan's meta data


def labels_on_grid(fractions: torch.Tensor, matrix: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the most likely label on a grid, uint8 [1, *shape]: `argmax(sample(fractions, matrix, shape))`.

    The fractions are interpolated, not their argmax: borders come out smooth instead of in steps of the coarse grid. On
    the volume's own grid nothing is interpolated.

    Args:
        fractions: probabilities of the labels [K, D, H, W], which sum to one; channel 0 is the background.
        matrix: from `voxel_map`, grid to volume.
        shape: of the grid.
    """
    if is_identity(matrix, fractions.shape[1:], shape):
        return _most_likely(fractions)
    return _sampled_where_foreground(fractions, matrix, shape)


def _most_likely(fractions: torch.Tensor) -> torch.Tensor:
    return fractions.argmax(dim=0, keepdim=True).to(torch.uint8)


def _sampled_where_foreground(fractions: torch.Tensor, matrix: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Return `_most_likely(sample(fractions, matrix, shape))`, computed only near the foreground: elsewhere it is 0."""
    result = torch.zeros(1, *shape, dtype=torch.uint8, device=fractions.device)
    start, stop = _box(fractions.argmax(dim=0) > 0, matrix, shape)
    if (stop > start).all():
        shifted = matrix @ np.block([[np.eye(3), start[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
        # Outside the volume all fractions are interpolated to 0, and the argmax is the background.
        labels = sample(fractions, shifted, tuple(stop - start), _most_likely)
        result[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]] = labels
    return result


def _box(mask: torch.Tensor, matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the grid's box, first and past-the-last index, that holds a mask of the volume and a voxel around it."""
    extent = [torch.nonzero(mask.any(dim=a).any(dim=b)).flatten() for a, b in ((1, 1), (0, 1), (0, 0))]
    if not all(len(indices) for indices in extent):
        return np.zeros(3, int), np.zeros(3, int)
    sides = [(float(indices[0]) - 1, float(indices[-1]) + 1) for indices in extent]
    corners = np.array([[i, j, k, 1] for i in sides[0] for j in sides[1] for k in sides[2]]) @ np.linalg.inv(matrix).T
    start = np.clip(np.floor(corners[:, :3].min(axis=0)), 0, shape).astype(int)
    return start, np.clip(np.ceil(corners[:, :3].max(axis=0)) + 1, 0, shape).astype(int)


class LabelsOnScand(MapTransform):
    """Turn logits on the network's grid into a label map, uint8 [1, ...], with shape and affine of the scan as loaded.

    What ``Invertd`` and ``AsDiscreted`` do together, without holding all channels at the resolution of the scan. The
    scan must have gone through :class:`ResampleToGridd`.

    Args:
        keys: the logits, [K, D, H, W] each.
        orig_keys: the resampled scan.
    """

    def __init__(self, keys: KeysCollection, orig_keys: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_keys = orig_keys

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        scan: MetaTensor = data[self.orig_keys]  # type: ignore[assignment]
        affine, shape = own_grid(scan)
        for key in self.key_iterator(result):
            logits = data[key]
            logits = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
            matrix = voxel_map(scan.affine.cpu().numpy(), affine)
            labels = MetaTensor(labels_on_grid(logits.float().softmax(dim=0), matrix, shape))
            labels.meta = {name: scan.meta[name] for name in KEPT if name in scan.meta}
            labels.affine = torch.as_tensor(affine, dtype=torch.float64)
            result[key] = labels
        return result


def own_grid(scan: MetaTensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return affine and shape that a scan had before :class:`ResampleToGrid`.

    Raises:
        UserError: the scan has not gone through it.
    """
    for info in reversed(scan.applied_operations):
        if info.get(TraceKeys.CLASS_NAME) == "ResampleToGrid":
            size = [int(n) for n in info[TraceKeys.ORIG_SIZE]]
            return np.asarray(info[TraceKeys.EXTRA_INFO]["affine"], dtype=float).reshape(4, 4), tuple(size)
    raise UserError(
        "preprocessing",
        found="no ResampleToGridd",
        expected="it before the network",
        fix="correct the bundle's configuration",
    )

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
from fedsr_monai.spatial.resampling import is_identity, most_likely, sample_labels, voxel_map

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
        return most_likely(fractions)
    return sample_labels(fractions, matrix, shape)


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

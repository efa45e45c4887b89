"""The network's output as a label map on the scan's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TraceKeys

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.header import FORM_FIELDS
from fedsr_monai.spatial.resampling import MIXED, Evidence, is_identity, most_likely, sample_labels, voxel_map
from fedsr_monai.transforms.local_intensities import LocalIntensities

SURE = 0.95  # probability at which the network's label stands, whatever the intensities
KEPT = ("filename_or_obj", *FORM_FIELDS)  # entries of the scan's meta data that the labels keep


def labels_on_grid(
    fractions: torch.Tensor, matrix: np.ndarray, shape: tuple[int, ...], evidence: Evidence | None = None
) -> torch.Tensor:
    """Return the most likely label on a grid, uint8 [1, *shape]: `argmax(sample(fractions, matrix, shape))`.

    The fractions are interpolated, not their argmax, so that borders come out smooth instead of in steps of the coarse
    grid. On the volume's own grid, nothing is interpolated.

    Args:
        fractions: probabilities of the labels [K, D, H, W], which sum to one; channel 0 is the background.
        matrix: from `voxel_map`, grid to volume.
        shape: shape of the grid.
        evidence: further evidence for the labels, used where none has a probability of `SURE`.
    """
    if evidence is not None:
        most = fractions.max(dim=0)
        labels = torch.where(most.values < SURE, MIXED, most.indices).to(torch.uint8)
        return sample_labels(fractions, matrix, shape, labels=labels, evidence=evidence)
    if is_identity(matrix, fractions.shape[1:], shape):
        return most_likely(fractions)
    return sample_labels(fractions, matrix, shape)


def softmax_(logits: torch.Tensor) -> torch.Tensor:
    """Turn logits [K, D, H, W] into probabilities in place, slice by slice."""
    for part in logits.unbind(dim=1):
        part.copy_(part.softmax(dim=0))
    return logits


class LabelsOnScand(MapTransform):
    """Turn logits on the network's grid into a label map, uint8 [1, ...], with shape and affine of the scan as loaded.

    This is what ``Invertd`` and ``AsDiscreted`` do together, but without holding all channels at the resolution of the scan.
    The scan must have gone through :class:`ResampleToGridd`. If its voxels are clearly finer than the network's, their
    intensities take part in the choice near borders (`LocalIntensities`).

    Args:
        keys: the logits, [K, D, H, W] each.
        orig_keys: the resampled scan.
        scan_key: the scan as loaded, [1, ...], a copy from before the resampling. With None, or if the key is missing, the
            network alone decides on the labels.
        allow_missing_keys: skip logits that are missing.
        inplace: overwrite the logits (float32) with their probabilities; a copy takes 275 MB for a scan at 1 mm.
    """

    def __init__(
        self,
        keys: KeysCollection,
        orig_keys: str = "image",
        scan_key: str | None = None,
        allow_missing_keys: bool = False,
        inplace: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_keys, self.scan_key, self.inplace = orig_keys, scan_key, inplace

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        scan: MetaTensor = data[self.orig_keys]  # type: ignore[assignment]
        affine, shape = own_grid(scan)
        for key in self.key_iterator(result):
            logits = data[key]
            logits = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
            grid_affine = scan.affine.cpu().numpy()
            fractions, evidence = softmax_(logits) if self.inplace else logits.float().softmax(dim=0), None
            if self.scan_key in data and is_finer(scan):
                own = torch.as_tensor(data[self.scan_key]).as_subclass(torch.Tensor).to(fractions.device)
                evidence = LocalIntensities(own, affine, fractions, grid_affine).evidence()
            labels = MetaTensor(labels_on_grid(fractions, voxel_map(grid_affine, affine), shape, evidence))
            labels.meta = {name: scan.meta[name] for name in KEPT if name in scan.meta}
            labels.affine = torch.as_tensor(affine, dtype=torch.float64)
            result[key] = labels
        return result


def own_grid(scan: MetaTensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the affine and the shape that a scan had before :class:`ResampleToGrid`.

    Raises:
        UserError: the scan has not gone through it.
    """
    info = _resampling(scan)
    size = [int(n) for n in info[TraceKeys.ORIG_SIZE]]
    return np.asarray(info[TraceKeys.EXTRA_INFO]["affine"], dtype=float).reshape(4, 4), tuple(size)


def is_finer(scan: MetaTensor) -> bool:
    """Return whether the voxels that a scan had before :class:`ResampleToGrid` were clearly finer than the network's.

    Raises:
        UserError: the scan has not gone through it.
    """
    return bool(_resampling(scan)[TraceKeys.EXTRA_INFO]["finer"])


def _resampling(scan: MetaTensor) -> dict[str, Any]:
    for info in reversed(scan.applied_operations):
        if info.get(TraceKeys.CLASS_NAME) == "ResampleToGrid":
            return info
    raise UserError(
        "preprocessing",
        found="no ResampleToGridd",
        expected="it before the network",
        fix="correct the bundle's configuration",
    )

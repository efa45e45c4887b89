"""Raw scans in inference, prepared in memory on their own voxels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from fedsr_monai.prepare.load import read_mask, read_scan
from fedsr_monai.prepare.pipeline import prepare_scan
from fedsr_monai.prepare.qc import write_qc
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import forms_to_meta
from fedsr_monai.spatial.nifti import volume_stem

OWN_AFFINE = "raw_affine"  # key in the meta data: the affine of the scan's file


class LoadRawScand(MapTransform):
    """Load a raw scan as float32 [1, D, H, W]: the brain alone, corrected for the bias field, on its own voxels.

    Its affine places it in the space of the atlas; `raw_affine` in the meta data is the affine of the file.

    Args:
        keys: paths of the scans.
        atlas: image [1, D, H, W] and labels of the atlas that scans are registered to, on `grid`.
        grid: grid of the atlas.
        masks: brain masks by the path of their scan; without one, see `prepare_scan`.
        pictures: paths at which pictures of the alignment are written, by the path of the scan.
        series: the DICOM series of a folder that is the scan (see `read_scan`).
        allow_missing_keys: skip keys that are missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        atlas: tuple[torch.Tensor, torch.Tensor],
        grid: Grid,
        masks: Mapping[str, str | Path] | None = None,
        pictures: Mapping[str, str | Path] | None = None,
        series: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image, self.label = (volume[0].cpu().numpy() for volume in atlas)
        self.grid, self.masks, self.pictures = grid, dict(masks or {}), dict(pictures or {})
        self.series = series

    def __call__(self, data: Mapping[Hashable, str]) -> dict[Hashable, MetaTensor]:
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            path = str(data[key])
            scan = read_scan(path, self.series)
            mask = read_mask(self.masks[path], scan) if path in self.masks else None
            prepared = prepare_scan(scan, mask, self.image, self.grid, path)
            if path in self.pictures:
                write_qc(self.pictures[path], volume_stem(path), scan.voxels, prepared, self.label, self.grid)
            meta = {
                "filename_or_obj": path,
                MetaKeys.ORIGINAL_CHANNEL_DIM: 0,  # for the EnsureChannelFirstd that follows
                **forms_to_meta(scan.header),
                OWN_AFFINE: scan.affine,
            }
            affine = torch.as_tensor(prepared.affine, dtype=torch.float64)
            result[key] = MetaTensor(torch.from_numpy(prepared.brain)[None], affine=affine, meta=meta)
        return result

"""Reading one scan, stripped or raw."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.utils.enums import MetaKeys

from fedsr_monai.inference.scans import Scan
from fedsr_monai.inference.workflow import Atlas
from fedsr_monai.prepare.load import read_scan
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import forms_to_meta


def load_stripped(scan: Scan) -> MetaTensor:
    """Read a skull-stripped scan as float32 [1, D, H, W], 0 or above, with its affine.

    The file is checked while it is read.

    Raises:
        UserError: the file is damaged, or does not hold one finite 3-D scan (see `read_scan`).
    """
    volume = read_scan(scan.path, scan.series)
    meta = {
        "filename_or_obj": str(scan.path),
        **forms_to_meta(volume.header),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,  # for the EnsureChannelFirstd of a bundle
    }
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    return MetaTensor(torch.from_numpy(volume.voxels)[None], affine=affine, meta=meta)


class LoadRaw:
    """Read a raw scan, find its brain and align it to the atlas; see `LoadRawScand`. Needs ITK.

    Args:
        atlas: image and labels [1, D, H, W].
        grid: of the atlas.
        out: folder of the results, for the pictures.
    """

    def __init__(self, atlas: Atlas, grid: Grid, out: Path) -> None:
        self.atlas, self.grid, self.out = atlas, grid, out

    def __call__(self, scan: Scan) -> MetaTensor:
        from fedsr_monai.prepare.raw_scan import LoadRawScand  # only where ITK is installed

        path = str(scan.path)
        masks = {} if scan.mask is None else {path: scan.mask}
        pictures = {path: self.out / scan.files.alignment}
        return LoadRawScand("image", self.atlas, self.grid, masks, pictures, scan.series)({"image": path})["image"]

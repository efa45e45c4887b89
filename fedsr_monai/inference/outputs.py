"""The files of one scan: labels on its own voxels, and what the registration adds to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from fedsr_monai.errors import UserError
from fedsr_monai.labels.label_map import write_label_map
from fedsr_monai.networks import FedSRNet
from fedsr_monai.spatial.displacement import field_on_scan, labels_under_field, write_displacement
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import header_from_meta
from fedsr_monai.transforms.labels_on_scan import own_grid


def make_folder(out: Path) -> None:
    """Make the folder of the results if it is missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"that it cannot be made ({error.strerror})"
        raise UserError(out, found=found, expected="a folder", fix="choose another one for --out") from None


def write_labels(path: Path, labels: MetaTensor, affine: np.ndarray) -> None:
    """Write labels [1, D, H, W] with the affine [4, 4] and the forms of the scan's file; see `write_label_map`."""
    write_label_map(path, labels[0].cpu().numpy(), header_from_meta(labels.meta, affine))


def write_registration(
    network: FedSRNet, ddf: torch.Tensor, scan: MetaTensor, grid: Grid, affine: np.ndarray, stem: Path
) -> list[Path]:
    """Write `<stem>_atlas-dseg.nii.gz`, the atlas labels at the voxels of a scan, and `<stem>_warp.nii.gz`, the deformation.

    Args:
        network: with its atlas.
        ddf: displacement [3, D, H, W] in voxels of the grid.
        scan: the preprocessed scan, which knows the grid that it came from.
        grid: of the network.
        affine: [4, 4] of the scan's file.
        stem: folder and name of the scan's results.
    """
    own = Grid(*own_grid(scan))
    header = header_from_meta(scan.meta, affine)
    field = field_on_scan(ddf.float(), grid, own)
    labels = labels_under_field(network.atlas_label[0], field, grid, own, network.num_classes)
    files = [stem.with_name(f"{stem.name}_{kind}.nii.gz") for kind in ("atlas-dseg", "warp")]
    write_label_map(files[0], labels[0].cpu().numpy(), header)
    write_displacement(files[1], field, grid, own, header)
    return files

"""The files of one scan: labels on its own voxels, and what the registration adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from fedsr_monai.inference.scans import ResultFiles
from fedsr_monai.inference.workflow import Workflow
from fedsr_monai.labels.label_map import write_label_map
from fedsr_monai.spatial.displacement import field_for, field_on_scan, labels_under_field, write_displacement
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import header_from_meta
from fedsr_monai.transforms.labels_on_scan import own_grid


def write_results(
    workflow: Workflow,
    data: Mapping[str, MetaTensor],
    ddf: torch.Tensor | None,
    files: ResultFiles,
    out: Path,
    atlas: tuple[torch.Tensor, Grid] | None = None,
    folder_tables: bool = True,
) -> None:
    """Write the label map of a scan and, if there is a deformation, the deformation and the atlas labels that it carries over.

    Args:
        workflow: workflow whose grid is used.
        data: "image", the preprocessed scan, and "pred", its labels [1, D, H, W] on the voxels of its file.
        ddf: displacement [3, D, H, W] in voxels of the grid, or None.
        files: paths below `out`.
        out: folder of the results.
        atlas: labels [1, D, H, W] of the atlas and their grid, at any resolution; required with a deformation.
        folder_tables: see `write_label_map`.
    """
    scan = data["image"]
    header = header_from_meta(scan.meta, file_affine(data))
    write_label_map(out / files.labels, data["pred"][0].cpu().numpy(), header, folder_tables)
    if ddf is None:
        return
    assert atlas is not None
    own = Grid(*own_grid(scan))
    field = field_on_scan(ddf.float(), workflow.grid, own)
    label, grid = atlas
    labels = labels_under_field(label.to(field.device), field_for(field, workflow.grid, grid), grid, own)
    write_label_map(out / files.atlas_labels, labels[0].cpu().numpy(), header, folder_tables)
    write_displacement(out / files.warp, field, workflow.grid, own, header)


def file_affine(data: Mapping[str, MetaTensor]) -> np.ndarray:
    """Return the affine [4, 4] in a scan's file; the affine of a raw scan, once loaded, also includes the alignment to the atlas."""
    meta = data["image"].meta
    return np.asarray(meta["raw_affine"] if "raw_affine" in meta else data["pred"].affine)

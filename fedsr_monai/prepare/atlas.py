"""The atlas of a site that is being prepared: the site's own labelled scan, or the project's atlas."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.atlas.standard import fine_atlas_label
from fedsr_monai.errors import UserError
from fedsr_monai.files import read_json, write_json
from fedsr_monai.labels import LABELS
from fedsr_monai.prepare.label_ids import to_structures
from fedsr_monai.prepare.load import read_mask, read_scan
from fedsr_monai.prepare.pipeline import image_on_grid, prepare_scan
from fedsr_monai.prepare.qc import write_qc
from fedsr_monai.spatial.grid import Grid, fine_affine, fine_shape
from fedsr_monai.spatial.nifti import read_volume, write_volume
from fedsr_monai.spatial.resampling import is_identity, resample_labels, voxel_map

CLOSING = 6.0  # mm by which labels are closed to a brain mask that includes the fluid between the gyri


@dataclass(frozen=True)
class AtlasFiles:
    """Name the files of a site's labelled scan: image, labels (0 to 13 or FreeSurfer's ids) and brain mask, if any."""

    image: str | os.PathLike
    label: str | os.PathLike
    mask: str | os.PathLike | None = None


class SiteAtlas(NamedTuple):
    """The atlas of a site.

    Attributes:
        image: float32 [D, H, W] in [0, 1].
        label: uint8 [D, H, W].
        fine_label: uint8, on the grid of `fine_shape`.
    """

    image: np.ndarray
    label: np.ndarray
    fine_label: np.ndarray


def make_atlas(
    files: AtlasFiles | None, spacing: float, shape: tuple[int, ...], root: Path, records: str
) -> tuple[SiteAtlas, Grid]:
    """Make the site's atlas and write it to `root/atlas`.

    The site's own scan is registered to the project's atlas like every other scan, so that all sites of a federation, and
    the weights that come with the bundles, share one space. If no mask is given, it is made by closing the gaps between
    the labels.

    Args:
        files: the site's own labelled scan; None for the project's atlas.
        spacing: spacing of the grid in mm.
        shape: shape of the grid in voxels.
        root: the site folder.
        records: name of its subfolder for the record and the picture.

    Returns:
        The atlas and its grid.

    Raises:
        UserError: a file is wrong, the scan cannot be registered to the project's atlas, or it lacks a structure on
            the grid.
    """
    image, label, affine = build_atlas(spacing, shape)
    grid = Grid(affine, tuple(shape))
    record = root / records / "atlas.json"
    if files is None:
        content: dict[str, Any] = {"atlas": "the project's"}
        atlas = SiteAtlas(image, label, fine_atlas_label(spacing, shape))
    else:
        content = {"files": {kind: _stamp(file) for kind, file in asdict(files).items() if file}}
        kept = _kept(record, content, root)
        if kept:
            return kept, grid
        atlas = _own(files, image, label, grid, root / records / "atlas.png")
    for kind, volume in atlas._asdict().items():
        write_volume(root / "atlas" / f"{kind}.nii.gz", volume, fine_affine(affine) if kind == "fine_label" else affine)
    write_json(record, content)
    return atlas, grid


def _own(files: AtlasFiles, image: np.ndarray, label: np.ndarray, grid: Grid, picture: Path) -> SiteAtlas:
    scan = read_scan(files.image)
    volume = read_volume(files.label)
    structures = torch.from_numpy(to_structures(volume.voxels, files.label))[None]
    mask = (
        read_mask(files.mask, scan)
        if files.mask
        else _mask_of(structures, volume.affine, scan.affine, scan.voxels.shape)
    )
    prepared = prepare_scan(scan, mask, image, grid, str(files.image))
    own, fine = (
        resample_labels(structures, voxel_map(prepared.matrix @ volume.affine, target), size)[0].numpy()
        for target, size in ((grid.affine, grid.shape), (fine_affine(grid.affine), fine_shape(grid.shape)))
    )
    empty = [name for value, name in LABELS.items() if not (own == value).any()]
    if empty:
        found, expected = f"no voxel of {', '.join(empty)} on the grid", "all structures in the atlas"
        raise UserError(files.label, found, expected, "label them, or choose smaller voxels")
    write_qc(picture, "atlas", scan.voxels, prepared, label, grid)
    return SiteAtlas(image_on_grid(prepared, grid)[0].numpy(), own, fine)


def _mask_of(
    structures: torch.Tensor, affine: np.ndarray, scan_affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    matrix = voxel_map(affine, scan_affine)
    if not is_identity(matrix, structures.shape[1:], shape):
        structures = resample_labels(structures, matrix, shape)
    sampling = np.linalg.norm(scan_affine[:3, :3], axis=0)
    near = ndimage.distance_transform_edt(structures[0].numpy() == 0, sampling=sampling) <= CLOSING
    return ndimage.distance_transform_edt(near, sampling=sampling) > CLOSING


def _kept(record: Path, content: dict, root: Path) -> SiteAtlas | None:
    """Return the atlas of an earlier run from the same files, or None."""
    try:
        if read_json(record, "the record of the atlas", "remove it") != content:
            return None
        return SiteAtlas(*(read_volume(root / "atlas" / f"{kind}.nii.gz").voxels for kind in SiteAtlas._fields))
    except UserError:
        return None


def _stamp(file: str | os.PathLike) -> list:
    if not Path(file).is_file():
        fix = "check --atlas_image, --atlas_label and --atlas_mask"
        raise UserError(file, "no such file", "the labelled scan of the site", fix)
    return [str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns]

"""Site folders: `site.json`, an atlas, and lists of scans."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError
from fedsr_monai.sites.contract import SECTIONS, read_spec, site_faults
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import volume_stem


@dataclass(frozen=True)
class Site:
    """One hospital's data. All paths are absolute; volumes are RAS+ with `shape` voxels of `spacing` millimetres."""

    root: Path
    name: str
    labels: dict[int, str]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    atlas: dict[str, str]
    training: list[dict[str, str]]
    validation: list[dict[str, str]]
    test: list[dict[str, str]]


def load_site(path: str | os.PathLike) -> Site:
    """Read `site.json` below `path`. No volume is opened.

    Raises:
        UserError: the folder or its `site.json` breaks the contract (see `site_faults`); the first fault is named.
    """
    root = Path(path).absolute()
    spec = read_spec(root)
    faults = list(site_faults(root, spec).values())
    if faults:
        more = f" ({len(faults) - 1} more: run `fedsr check {path}`)" if len(faults) > 1 else ""
        raise UserError(faults[0].where, faults[0].found, faults[0].expected, faults[0].fix + more)

    def absolute(entry: Mapping[str, str]) -> dict[str, str]:
        return {key: str(root / entry[key]) for key in ("image", "label") if key in entry}

    return Site(
        root=root,
        name=spec["name"],
        labels={int(key): value for key, value in spec["labels"].items()},
        spacing=tuple(float(value) for value in spec["spacing"]),
        shape=tuple(spec["shape"]),
        atlas=absolute(spec["atlas"]),
        **{section: [absolute(entry) for entry in spec[section]] for section in SECTIONS},
    )


def site_datalist(dataset_dir: str | os.PathLike | Sequence, section: str) -> list[dict[str, str]]:
    """The scans of one section as MONAI dictionaries: `image`, `name` ("<site>/<file stem>"), `label` if there is one.

    `dataset_dir` is a site folder, several of them, or a comma-separated string of them: the lists are joined (the
    pooled baseline).

    Raises:
        UserError: a folder breaks the contract, or `section` is not one of training, validation, test.
    """
    check_choice("section", section, SECTIONS)
    sites = [load_site(folder) for folder in site_folders(dataset_dir)]
    return [
        {**entry, "name": f"{site.name}/{volume_stem(entry['image'])}"}
        for site in sites
        for entry in getattr(site, section)
    ]


def load_atlas(dataset_dir: str | os.PathLike | Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """The atlas of the (first) site folder: image float32 [1, D, H, W] and labels uint8 [1, D, H, W].

    Raises:
        UserError: the folder breaks the contract, or an atlas volume cannot be read.
    """
    site = load_site(site_folders(dataset_dir)[0])
    volumes = []
    for key, dtype in (("image", np.float32), ("label", np.uint8)):
        fix = f"run `fedsr check {site.root}`"
        try:
            volumes.append(np.asanyarray(nib.load(site.atlas[key]).dataobj).astype(dtype))
        except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            found = f"that it cannot be read ({' '.join(str(error).split())})"
            raise UserError(site.atlas[key], found, "a NIfTI volume", fix) from None
        if volumes[-1].shape != site.shape:
            raise UserError(site.atlas[key], f"shape {volumes[-1].shape}", f"{site.shape} (site.json)", fix)
    return torch.from_numpy(volumes[0])[None], torch.from_numpy(volumes[1])[None]


def site_folders(dataset_dir: str | os.PathLike | Sequence) -> list[str]:
    if isinstance(dataset_dir, (str, os.PathLike)):
        dataset_dir = [part.strip() for part in os.fspath(dataset_dir).split(",") if part.strip()]
    if not dataset_dir:
        raise UserError("dataset_dir", "nothing", "one or more site folders", "name them, separated by commas")
    return [os.fspath(folder) for folder in dataset_dir]


def site_names(dataset_dir: str | os.PathLike | Sequence) -> list[str]:
    """The names of the site folders that `dataset_dir` stands for."""
    return [load_site(folder).name for folder in site_folders(dataset_dir)]


def site_grid(dataset_dir: str | os.PathLike | Sequence) -> Grid:
    """Return the grid of the (first) site's atlas.

    Raises:
        UserError: the folder violates the contract of a site.
    """
    site = load_site(site_folders(dataset_dir)[0])
    return Grid(nib.load(site.atlas["label"]).affine, site.shape)

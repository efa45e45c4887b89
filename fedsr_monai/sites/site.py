"""Site folders: `site.json`, an atlas, and lists of scans."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError
from fedsr_monai.sites.contract import SECTIONS, read_spec, site_faults
from fedsr_monai.spatial.grid import Grid, fine_shape
from fedsr_monai.spatial.nifti import Volume, read_volume, volume_stem


@dataclass(frozen=True)
class Site:
    """One hospital's data. All paths are absolute; volumes are RAS+ with `shape` voxels of `spacing` millimetres."""

    root: Path
    name: str
    labels: dict[int, str]
    spacing: tuple[float, ...]
    shape: tuple[int, int, int]
    atlas: dict[str, str]
    training: list[dict[str, str]]
    validation: list[dict[str, str]]
    test: list[dict[str, str]]


def load_site(path: str | os.PathLike) -> Site:
    """Read `site.json` below `path`. No volume is opened.

    Raises:
        UserError: the folder or its `site.json` violates the contract (see `site_faults`); the first fault is named.
    """
    root = Path(path).absolute()
    spec = read_spec(root)
    faults = list(site_faults(root, spec).values())
    if faults:
        more = f" ({len(faults) - 1} more: run `fedsr check {path}`)" if len(faults) > 1 else ""
        raise UserError(faults[0].where, faults[0].found, faults[0].expected, faults[0].fix + more)

    def absolute(entry: Mapping[str, str]) -> dict[str, str]:
        return {key: str(root / path) for key, path in entry.items()}

    return Site(
        root=root,
        name=spec["name"],
        labels={int(key): value for key, value in spec["labels"].items()},
        spacing=tuple(float(value) for value in spec["spacing"]),
        shape=tuple(spec["shape"]),
        atlas=absolute(spec["atlas"]),
        **{section: [absolute(entry) for entry in spec[section]] for section in SECTIONS},
    )


Sites = str | os.PathLike | Site | Sequence[str | os.PathLike | Site]


def load_sites(sites: Sites) -> list[Site]:
    """Return the sites that `sites` names: a folder, several separated by commas, or a sequence of folders and sites.

    Raises:
        UserError: no site is named, or a folder violates the contract.
    """
    if isinstance(sites, (str, os.PathLike)):
        sites = [part.strip() for part in os.fspath(sites).split(",") if part.strip()]
    elif isinstance(sites, Site):
        sites = [sites]
    if not sites:
        raise UserError("dataset_dir", "nothing", "one or more site folders", "name them, separated by commas")
    return [site if isinstance(site, Site) else load_site(site) for site in sites]


def site_datalist(sites: Sites, section: str) -> list[dict[str, str]]:
    """Return the scans of one section as MONAI dictionaries.

    Their keys are `image`, `name` ("<site>/<file stem>") and, if one exists, `label`. The lists of several sites are
    joined (the pooled baseline).

    Args:
        sites: see `load_sites`.
        section: training, validation or test.

    Raises:
        UserError: a folder violates the contract, or `section` is something else.
    """
    check_choice("section", section, SECTIONS)
    return [
        {**entry, "name": f"{site.name}/{volume_stem(entry['image'])}"}
        for site in load_sites(sites)
        for entry in getattr(site, section)
    ]


def load_atlas(sites: Sites) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the atlas of the (first) site: image float32 [1, D, H, W] and labels uint8 [1, D, H, W].

    Raises:
        UserError: the folder violates the contract, or an atlas volume cannot be read.
    """
    site = load_sites(sites)[0]
    image, label = (_atlas_volume(site, kind).voxels for kind in ("image", "label"))
    return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(label.astype(np.uint8))[None]


def load_atlases(sites: Sites) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read the atlases of several sites, by site name (see `load_atlas`); empty for one site, which needs no choice.

    Raises:
        UserError: a folder violates the contract, or an atlas volume cannot be read.
    """
    loaded = load_sites(sites)
    return {site.name: load_atlas(site) for site in loaded} if len(loaded) > 1 else {}


def load_fine_labels(sites: Sites) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Read the atlas labels of those sites that also have them on finer voxels (see `RandomAtlas`).

    Returns:
        For each such site, the labels on the site's grid and those on the finer one, both uint8 [1, D, H, W].

    Raises:
        UserError: a folder violates the contract, or an atlas volume cannot be read.
    """
    pairs = []
    for site in load_sites(sites):
        if "fine_label" in site.atlas:
            own, fine = (_atlas_volume(site, kind).voxels.astype(np.uint8) for kind in ("label", "fine_label"))
            pairs.append((torch.from_numpy(own)[None], torch.from_numpy(fine)[None]))
    return pairs


def site_grid(sites: Sites) -> Grid:
    """Return the grid of the (first) site's atlas.

    Raises:
        UserError: the folder violates the contract, or the atlas cannot be read.
    """
    site = load_sites(sites)[0]
    return Grid(_atlas_volume(site, "label").affine, site.shape)


def site_names(sites: Sites) -> list[str]:
    """Return the names of the sites that `sites` names (see `load_sites`)."""
    return [site.name for site in load_sites(sites)]


def _atlas_volume(site: Site, kind: str) -> Volume:
    volume = read_volume(site.atlas[kind])
    shape = fine_shape(site.shape) if kind == "fine_label" else site.shape
    if volume.voxels.shape != shape:
        fix = f"run `fedsr check {site.root}`"
        raise UserError(site.atlas[kind], f"shape {volume.voxels.shape}", f"{shape} (site.json)", fix)
    return volume

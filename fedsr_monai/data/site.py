"""Site folders: `site.json`, an atlas, and lists of scans."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from fedsr_monai.data.contract import SECTIONS, read_json, site_faults
from fedsr_monai.errors import UserError
from fedsr_monai.labels import LABELS


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
    spec = read_json(root)
    faults = site_faults(root, spec)
    if faults:
        more = f" ({len(faults) - 1} more: run `fedsr check {path}`)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)

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
    if section not in SECTIONS:
        raise UserError(
            f"section {section!r} is unknown, expected one of {', '.join(SECTIONS)}: correct the configuration"
        )
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
        try:
            volumes.append(np.asanyarray(nib.load(site.atlas[key]).dataobj).astype(dtype))
        except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            raise UserError(
                f"{site.atlas[key]}: cannot be read ({' '.join(str(error).split())}), expected a NIfTI volume: "
                f"run `fedsr check {site.root}`"
            ) from None
        if volumes[-1].shape != site.shape:
            raise UserError(
                f"{site.atlas[key]}: shape {volumes[-1].shape}, expected {site.shape} (site.json): "
                f"run `fedsr check {site.root}`"
            )
    return torch.from_numpy(volumes[0])[None], torch.from_numpy(volumes[1])[None]


def write_site(
    root: str | os.PathLike,
    name: str,
    atlas_image: np.ndarray,
    atlas_label: np.ndarray,
    affine: np.ndarray,
    training: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]] = (),
    test: Sequence[Mapping[str, str]] = (),
    labels: Mapping[int, str] = LABELS,
) -> Path:
    """Write the atlas and, last and atomically, `site.json`: a folder that has one is complete.

    The scans themselves are written before, by `write_volume`; the lists name them relative to `root`. `affine` is the
    one of all volumes (RAS+, millimetres).

    Raises:
        UserError: the folder would break the contract, for example by an empty training list or a scan that is not
            there.
    """
    root = Path(root).absolute()
    spec = {
        "name": name,
        "labels": {str(key): value for key, value in labels.items()},
        "spacing": [float(value) for value in nib.affines.voxel_sizes(affine)],
        "shape": list(atlas_label.shape),
        "atlas": {"image": "atlas/image.nii.gz", "label": "atlas/label.nii.gz"},
        "training": [dict(entry) for entry in training],
        "validation": [dict(entry) for entry in validation],
        "test": [dict(entry) for entry in test],
    }
    write_volume(root / spec["atlas"]["image"], atlas_image.astype(np.float32), affine)
    write_volume(root / spec["atlas"]["label"], atlas_label.astype(np.uint8), affine)
    faults = site_faults(root, spec)
    if faults:
        raise UserError(faults[0])
    write_atomically(root / "site.json", (json.dumps(spec, indent=1) + "\n").encode())
    return root


def claim_folder(root: Path, record: str, settings: Mapping, held: str, cure: str) -> None:
    """Keep results of different settings apart: a folder belongs to the settings that it was begun with, kept in `root/record`.

    Args:
        held: what to say of a folder of other settings: found, expected, cure.
        cure: end of the other messages, with its colon or semicolon.

    Raises:
        UserError: the folder holds something else or cannot be written.
    """
    path = root / record
    content = (json.dumps(settings, indent=1) + "\n").encode()
    try:
        if path.is_file() and path.read_bytes() != content:
            raise UserError(f"{root}: {held}")
        if not path.is_file() and root.is_dir() and any(root.iterdir()):
            raise UserError(f"{root}: holds files of something else, expected a new or empty folder{cure}")
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}), expected a writable folder{cure}") from None


def write_volume(path: str | os.PathLike, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI-1 volume in the array's own type, gzip without a time stamp: same array, same bytes."""
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, code=2)
    image.set_sform(affine, code=2)
    image.header.set_xyzt_units("mm")
    write_atomically(Path(path), gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that a kill or a full disk never leaves half a file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def volume_stem(path: str | os.PathLike) -> str:
    """The file name without `.nii` or `.nii.gz`."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


def site_folders(dataset_dir: str | os.PathLike | Sequence) -> list[str]:
    if isinstance(dataset_dir, (str, os.PathLike)):
        dataset_dir = [part.strip() for part in os.fspath(dataset_dir).split(",") if part.strip()]
    if not dataset_dir:
        raise UserError("dataset_dir is empty, expected one or more site folders: name them, separated by commas")
    return [os.fspath(folder) for folder in dataset_dir]


def site_names(dataset_dir: str | os.PathLike | Sequence) -> list[str]:
    """The names of the site folders that `dataset_dir` stands for."""
    return [load_site(folder).name for folder in site_folders(dataset_dir)]

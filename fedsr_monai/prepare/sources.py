"""Which scans a folder holds: a BIDS tree, FreeSurfer's subjects, or NIfTI files side by side."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError
from fedsr_monai.spatial.nifti import volume_stem

LAYOUTS = ("bids", "freesurfer", "flat")
_FS_IMAGES = ("orig.mgz", "T1.mgz", "brain.mgz")  # the least processed one first
_FS_MASKS = ("brainmask.mgz", "brain.mgz")
_FS_LABELS = ("aparc+aseg.mgz", "aseg.mgz")
_MASK = re.compile(r"(.+?)[_-](?:desc-brain_mask|brain[_-]?mask|mask)")
_LABEL = re.compile(r"(.+?)[_-](?:desc-\w+_dseg|dseg|labels?|seg|aseg|aparc\+aseg)")


@dataclass(frozen=True)
class Source:
    """Name one scan: its unique name, the person whom it shows, and its files."""

    name: str
    person: str
    image: Path
    mask: Path | None = None
    label: Path | None = None


def find_sources(folder: str | os.PathLike, layout: str | None = None) -> list[Source]:
    """Return the scans below a folder, sorted by name.

    Args:
        folder: root of the tree.
        layout: bids, freesurfer or flat; by default what the folder looks like.

    Raises:
        UserError: the folder is missing or holds no scan, the layout is unknown, or two scans have the same name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(root, "no such folder", "scans (BIDS, FreeSurfer subjects, or NIfTI files)", "check the path")
    if layout is not None:
        check_choice("--layout", layout, LAYOUTS)
    finders = {"bids": _bids, "freesurfer": _freesurfer, "flat": _flat}
    for name in [layout] if layout else LAYOUTS:
        sources = finders[name](root)
        if sources:
            break
    else:
        expected = "sub-*/anat/*_T1w.nii.gz (BIDS), */mri/orig.mgz (FreeSurfer) or *.nii.gz"
        raise UserError(root, "no scan", expected, "check the path")
    names: dict[str, Source] = {}
    for source in sources:
        other = names.setdefault(source.name, source)
        if other is not source:
            raise UserError(source.image, f"the name of {other.image}", "scans of different names", "rename one")
    return sorted(sources, key=lambda source: source.name)


def _bids(root: Path) -> list[Source]:
    """Find sub-*/[ses-*/]anat/*_T1w.nii[.gz], with masks and labels of the same entities in derivatives/, in the scan's own space."""
    images = [file for file in root.glob("sub-*/**/anat/*_T1w.nii*") if _is_nifti(file)]
    beside: dict[str, dict[str, Path]] = {}
    for file in sorted(
        [*root.glob("derivatives/**/sub-*_mask.nii*"), *root.glob("derivatives/**/sub-*_dseg.nii*")], key=_rank
    ):
        entities = _entities(file)
        kind = "label" if "_dseg.nii" in file.name else "mask"
        own_space = entities.get("space", "T1w") in ("T1w", "orig") and "res" not in entities
        if _is_nifti(file) and own_space and (kind == "label" or entities.get("desc", "brain") == "brain"):
            beside.setdefault(_key(entities), {}).setdefault(kind, file)
    found = []
    for image in images:
        entities = _entities(image)
        found.append(
            Source(
                volume_stem(image),
                f"sub-{entities.get('sub', volume_stem(image))}",
                image,
                **beside.get(_key(entities), {}),
            )
        )
    return found


def _rank(file: Path) -> tuple[bool, str]:
    """Sort segmentations into structures (desc-aparcaseg, desc-aseg) before others of the same scan, which may be of tissues."""
    return "aseg" not in _entities(file).get("desc", ""), str(file)


def _entities(file: Path) -> dict[str, str]:
    return dict(re.findall(r"([a-z]+)-([A-Za-z0-9]+)", volume_stem(file)))


def _key(entities: dict[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in sorted(entities.items()) if key not in ("desc", "space", "res"))


def _freesurfer(root: Path) -> list[Source]:
    """Find */mri/orig.mgz with brainmask and aparc+aseg; of a longitudinal series the `.long.` runs, not their base and parts."""
    folders = {path.name: path for path in sorted(root.iterdir()) if (path / "mri").is_dir()}
    series = {name.split(".long.")[0]: name for name in folders if ".long." in name}
    found = []
    for name, folder in folders.items():
        if (folder / "base-tps").exists() or name in series or name == "fsaverage":
            continue
        files = [_first(folder / "mri", names) for names in (_FS_IMAGES, _FS_MASKS, _FS_LABELS)]
        person = name.split(".long.")[1] if ".long." in name else _person(name)
        if files[0] is not None:
            found.append(Source(name.replace("+", "-"), person, *files))
    return found


def _flat(root: Path) -> list[Source]:
    """Find NAME.nii[.gz] with NAME_mask and NAME_dseg (or _seg, _label) beside it, or NAME itself in masks/ and labels/."""
    scans = [file for file in sorted(root.glob("*.nii*")) if _is_nifti(file)]
    files = {volume_stem(file): file for file in scans}
    masks = {volume_stem(file): file for file in sorted(root.glob("masks/*.nii*")) if _is_nifti(file)}
    labels = {volume_stem(file): file for file in sorted(root.glob("labels/*.nii*")) if _is_nifti(file)}
    for stem in list(files):
        for pattern, kind in ((_MASK, masks), (_LABEL, labels)):
            match = pattern.fullmatch(stem)
            if match and match[1] in files:
                kind[match[1]] = files.pop(stem)
                break
    for kind in (masks, labels):  # a file in masks/ may keep its ending
        for stem in list(kind):
            match = (_MASK if kind is masks else _LABEL).fullmatch(stem)
            if match and match[1] in files:
                kind.setdefault(match[1], kind[stem])
    return [
        Source(
            volume_stem(file),
            _person(volume_stem(file)),
            file,
            masks.get(volume_stem(file)),
            labels.get(volume_stem(file)),
        )
        for file in scans
        if volume_stem(file) in files
    ]


def _person(name: str) -> str:
    """Return `sub-X` of a BIDS-like name; else the name without what counts visits (ses-2, _v2, _visit2, _tp2, _run-1)."""
    match = re.match(r"sub-[A-Za-z0-9]+", name)
    return (
        match[0]
        if match
        else re.sub(r"[._-](?:ses|session|visit|v|tp|time|run|scan)[._-]?\d+.*$", "", name, flags=re.IGNORECASE)
    )


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _is_nifti(file: Path) -> bool:
    return file.name.endswith((".nii", ".nii.gz")) and not file.name.startswith(".")

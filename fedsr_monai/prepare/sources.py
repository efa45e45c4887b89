"""Finding the scans in a folder: a BIDS tree, FreeSurfer subjects, or volumes and DICOM studies side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError
from fedsr_monai.files import files_below
from fedsr_monai.prepare.label_ids import is_tissue_map
from fedsr_monai.prepare.load import read_volume
from fedsr_monai.progress import say
from fedsr_monai.spatial.dicom import find_studies
from fedsr_monai.spatial.nifti import SUFFIXES, volume_stem

LAYOUTS = ("bids", "freesurfer", "flat", "dicom")
_FS_IMAGES = ("orig.mgz", "T1.mgz", "brain.mgz")  # the least processed one first
_FS_MASKS = ("brainmask.mgz", "brain.mgz")
_FS_LABELS = ("aparc+aseg.mgz", "aseg.mgz")
_FS_TEMPLATE = re.compile(r"fsaverage.*|cvs_avg.*|V1_average|[lr]h\.EC_average")  # FreeSurfer's own "subjects"
_MASK = re.compile(r"(?:(.+?)[_-])?(?:desc-brain_mask|brain[_-]?mask|mask)")
_LABEL = re.compile(r"(?:(.+?)[_-])?(?:desc-\w+_dseg|dseg|labels?|seg|aseg|aparc\+aseg)")
_ANATOMICAL = re.compile(r"aseg|aparc")  # in the name of a label map: it is of structures, whatever its ids
_VISIT = re.compile(r"[._-](?:(?:ses|session|visit|v|tp|time|run|scan)[._-]?\d+|mr\d(?!\d)).*$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Name one scan: its unique name, the person whom it shows, and its files; `image` may be a folder of DICOM files."""

    name: str
    person: str
    image: Path
    mask: Path | None = None
    label: Path | None = None


@dataclass
class Found:
    """Hold what was found in a folder.

    Attributes:
        sources: the scans, sorted by name.
        left_out: files that could be taken for a patient's scan but are not, with the reason.
        refused: errors of files that cannot be used, by the name of the file.
        tissue_maps: label maps of tissues, whose scans are in `sources` without labels.
    """

    sources: list[Source] = field(default_factory=list)
    left_out: list[tuple[Source, str]] = field(default_factory=list)
    refused: dict[str, UserError] = field(default_factory=dict)
    tissue_maps: list[Path] = field(default_factory=list)


def find_sources(folder: str | os.PathLike, layout: str | None = None, person_pattern: str | None = None) -> Found:
    """Find the scans below a folder.

    Links are followed. Links without a target count as scans, so that they are reported when they cannot be read.

    Args:
        folder: root of the tree.
        layout: bids, freesurfer, flat (NIfTI or .mgz files and DICOM studies) or dicom (only the studies); by default what
            the folder looks like.
        person_pattern: regular expression that finds the person in the name of a scan: its first group, or the whole match
            if it has none. By default, the layout's convention is used (see docs/prepare.md).

    Raises:
        UserError: the folder is missing or holds no scan, or an option is wrong.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            root, "no such folder", "scans (BIDS, FreeSurfer subjects, NIfTI or .mgz files)", "check the path"
        )
    if layout is not None:
        check_choice("--layout", layout, LAYOUTS)
    finders: dict[str, Callable[[Path], list[Source]]] = {
        "bids": _bids,
        "freesurfer": _freesurfer,
        "flat": _flat,
        "dicom": _dicom,
    }
    for name in [layout] if layout else LAYOUTS:
        sources = finders[name](root)
        if sources:
            break
    else:
        expected = "sub-*/anat/*_T1w.nii.gz (BIDS), */mri/orig.mgz (FreeSurfer), *.nii.gz, *.mgz or DICOM files"
        raise UserError(root, "no scan", expected, "check the path")
    found = Found()
    names: dict[str, Source] = {}
    for source in sources:
        _sort_in(source, found, names.setdefault(source.name, source))
    if person_pattern is not None:
        found.sources = [replace(source, person=_matched(person_pattern, source.name)) for source in found.sources]
    found.sources.sort(key=lambda source: source.name)
    return found


def say_left_out(found: Found) -> None:
    """Print the files that could be taken for scans but are not used."""
    for source, reason in found.left_out:
        say(f"{source.image}: left out ({reason})")


def _sort_in(source: Source, found: Found, first: Source) -> None:
    """Add a scan to `found` as a source, as left out, or as refused; `first` is the first scan of its name."""
    try:
        str(source.image).encode()
    except UnicodeEncodeError:
        name = os.fsencode(source.image).decode(errors="backslashreplace")
        found.refused[name] = UserError(name, "a name that is not UTF-8", "one that is", "rename the file")
        return
    if _FS_TEMPLATE.fullmatch(source.name):
        found.left_out.append((source, "one of FreeSurfer's templates, not a patient"))
    elif _is_volume(source.image) and any(p.fullmatch(volume_stem(source.image)) for p in (_MASK, _LABEL)):
        found.left_out.append((source, "a mask or label map by its name, whose scan is not beside it"))
    elif first is source:
        if source.label is not None and _holds_tissues(source.label):
            found.tissue_maps.append(source.label)
            source = replace(source, label=None)
        found.sources.append(source)
    elif source.image.resolve() != first.image.resolve():  # two links to one scan are one scan
        where = str(source.image)
        found.refused[where] = UserError(where, f"the name of {first.image}", "scans of different names", "rename one")


def _holds_tissues(label: Path) -> bool:
    """Return whether a label map is of tissues, like those of fMRIPrep and FSL, judging by its name and then by its labels."""
    if _ANATOMICAL.search(label.name):
        return False
    try:
        return is_tissue_map(read_volume(label).voxels)
    except UserError:
        return False  # the error is reported when the file is needed


def _bids(root: Path) -> list[Source]:
    """Find sub-*/[ses-*/]anat/*_T1w.nii[.gz].

    Masks and labels are files in derivatives/ with the same entities, in the scan's own space.
    """
    patterns = ("sub-*/anat/*_T1w.nii*", "sub-*/ses-*/anat/*_T1w.nii*")
    images = sorted(file for pattern in patterns for file in root.glob(pattern) if _is_nifti(file))
    beside: dict[str, dict[str, Path]] = {}
    for file in sorted(files_below(root / "derivatives") if images else (), key=_rank):
        entities = _entities(file)
        own_space = entities.get("space", "T1w") in ("T1w", "orig") and "res" not in entities
        if not (own_space and file.name.startswith("sub-") and _is_nifti(file)):
            continue
        suffix = volume_stem(file).rpartition("_")[2]
        kind = {"dseg": "label", "mask": "mask"}.get(suffix)
        if kind == "label" or (kind == "mask" and entities.get("desc", "brain") == "brain"):
            beside.setdefault(_key(entities), {}).setdefault(kind, file)
    found = []
    for image in images:
        entities, name = _entities(image), volume_stem(image)
        found.append(Source(name, f"sub-{entities.get('sub', name)}", image, **beside.get(_key(entities), {})))
    return found


def _rank(file: Path) -> tuple[bool, str]:
    """Return a key that sorts segmentations into structures (desc-aparcaseg, desc-aseg) before others, which may be of tissues."""
    return "aseg" not in _entities(file).get("desc", ""), str(file)


def _entities(file: Path) -> dict[str, str]:
    return dict(re.findall(r"([a-z]+)-([A-Za-z0-9]+)", volume_stem(file)))


def _key(entities: dict[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in sorted(entities.items()) if key not in ("desc", "space", "res"))


def _freesurfer(root: Path) -> list[Source]:
    """Find */mri/orig.mgz (or that of one subject) with brainmask and aparc+aseg; in a longitudinal series, only the `.long.` runs."""
    folders = {path.name: path for path in sorted(root.iterdir()) if (path / "mri").is_dir()}
    if not folders:  # the folder of one subject, or its mri
        own = root.absolute()
        subject = own.parent if own.name == "mri" else own
        folders = {subject.name: subject}
    series = {name.split(".long.")[0]: name for name in folders if ".long." in name}
    found = []
    for name, folder in folders.items():
        if (folder / "base-tps").exists() or name in series:
            continue
        image, mask, label = (_first(folder / "mri", names) for names in (_FS_IMAGES, _FS_MASKS, _FS_LABELS))
        person = name.split(".long.")[1] if ".long." in name else _person(name)
        if image is not None:
            found.append(Source(name.replace("+", "-"), person, image, mask, label))
    return found


def _dicom(root: Path) -> list[Source]:
    """Find the DICOM studies of a flat folder; volumes are used only as masks and labels."""
    return [source for source in _flat(root, prefer_dicom=True) if source.image.is_dir()]


def _flat(root: Path, prefer_dicom: bool = False) -> list[Source]:
    """Find NAME.nii[.gz] or NAME.mg[zh] with NAME_mask and NAME_dseg (or _seg, _label) beside it, or NAME in masks/ and labels/.

    The image may also be called NAME_T1w, as in BIDS.
    A mask or label map without its scan is returned as a scan, and left out by `find_sources`.
    Folders of DICOM studies are scans too (see `find_studies`): NAME is that of the folder, or A_B for nested folders. If a
    study and a volume have the same name, the volume is taken, because it was made from the study; with `prefer_dicom`, the
    study is taken.
    """
    scans = _volumes(root)
    studies = [(_study_name(folder, root), folder) for folder in find_studies(root)]
    if prefer_dicom:
        named = {name for name, _ in studies}
        scans = [file for file in scans if volume_stem(file) not in named]
    else:
        named = {volume_stem(file) for file in scans}
        studies = [(name, folder) for name, folder in studies if name not in named]
    stems = {volume_stem(file) for file in scans} | {name for name, _ in studies}
    scan_of = {stem.removesuffix("_T1w"): stem for stem in stems} | {stem: stem for stem in stems}
    masks, labels = ({volume_stem(file): file for file in _volumes(root / kind)} for kind in ("masks", "labels"))
    images = []
    for file in scans:
        for pattern, kind in ((_MASK, masks), (_LABEL, labels)):
            match = pattern.fullmatch(volume_stem(file))
            if match and match[1] in scan_of:
                kind[scan_of[match[1]]] = file
                break
        else:
            images.append(file)
    for pattern, kind in ((_MASK, masks), (_LABEL, labels)):  # a file in masks/ may be called NAME_mask too
        for stem in list(kind):
            match = pattern.fullmatch(stem)
            if match and match[1] in scan_of:
                kind.setdefault(scan_of[match[1]], kind[stem])
    found = [(volume_stem(file), _person(volume_stem(file)), file) for file in images]
    for name, folder in studies:  # the visits of a person may be subfolders of the person's folder
        person = name if folder == root else folder.relative_to(root).parts[0]
        found.append((name, _person(person), folder))
    return [Source(name, person, path, masks.get(name), labels.get(name)) for name, person, path in found]


def _study_name(folder: Path, root: Path) -> str:
    return folder.resolve().name if folder == root else "_".join(folder.relative_to(root).parts)


def _person(name: str) -> str:
    """Return `sub-X` of a BIDS-like name, else the name without its visit number (_ses-2, _v2, or _MR1 as in OASIS)."""
    match = re.match(r"sub-[A-Za-z0-9]+", name)
    return match[0] if match else _VISIT.sub("", name)


def _matched(pattern: str, name: str) -> str:
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise UserError("--person_pattern", f"{pattern!r} ({error})", "a regular expression") from None
    person = match and (match[1] if match.re.groups else match[0])
    if not person:
        expected = f"a pattern that finds the person in the name of every scan, such as {name}"
        raise UserError("--person_pattern", repr(pattern), expected)
    return person


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of the files that exists, or else the first that is a link without a target."""
    paths = [folder / name for name in names]
    return next((path for test in (Path.is_file, Path.is_symlink) for path in paths if test(path)), None)


def _volumes(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if _is_volume(file))


def _is_volume(file: Path) -> bool:
    return file.name.endswith(SUFFIXES) and not file.name.startswith(".")


def _is_nifti(file: Path) -> bool:
    return file.name.endswith((".nii", ".nii.gz")) and not file.name.startswith(".")

"""BIDS in and out: every T1w image of a dataset becomes a label map in a derivatives dataset.

A T1w image is a raw scan: it is masked (with the mask in `derivatives/` if there is one) and aligned before it is labelled.
Besides the files of each scan, the derivatives dataset has `volumes.tsv`, with one row of millilitres per label map, and
`quality.csv`; `.bidsignore` lists the files for which the standard has no name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsr_monai import __version__
from fedsr_monai.errors import UserError
from fedsr_monai.files import put_row, write_json, write_text
from fedsr_monai.inference.scans import ResultFiles, Scan, path_error
from fedsr_monai.labels import LABELS
from fedsr_monai.prepare.sources import find_sources

DATASET_FILES = ("dataset_description.json", ".bidsignore", "README")
VOLUMES = "volumes.tsv"
STRUCTURES = {label: re.sub(r"\W+", "_", name) + "_ml" for label, name in LABELS.items() if label}
COLUMNS = ("participant_id", "session_id", "source", *STRUCTURES.values())
# Folders have no trailing slash, because the BIDS validator does not accept one.
IGNORED = ("volumes.tsv", "quality.csv", "fedsr-segment.json", "atlas", "*_xfm.*", "*.rejected", "**/figures")
README = """Labels of 13 brain structures in the T1w images of a BIDS dataset, made with `{command}`.

sub-*/[ses-*/]anat/*_desc-fedsr_dseg.nii.gz   labels on the voxels of the T1w image; names in the .tsv of the same name
sub-*/figures/*_desc-alignment_T1w.png        the affine alignment to the atlas and the brain mask
volumes.tsv                                   millilitres, one row per label map
quality.csv                                   how well each result can be believed
"""


def is_dataset(scans: Sequence[str | os.PathLike]) -> bool:
    """Return whether the scans are one folder that is a BIDS dataset."""
    if len(scans) != 1 or not Path(scans[0]).is_dir():
        return False
    root = Path(scans[0])
    return (root / "dataset_description.json").is_file() or any(root.glob("sub-*/**/anat/*_T1w.nii*"))


def list_scans(
    root: Path, participants: Sequence[str] = (), sessions: Sequence[str] = ()
) -> tuple[list[Scan], list[UserError]]:
    """Return the T1w images of a dataset, and one error for each that cannot be read.

    Args:
        root: root folder of the dataset.
        participants: labels of the participants, with or without "sub-"; all participants if empty.
        sessions: labels of the sessions, with or without "ses-"; all sessions if empty.

    Raises:
        UserError: the dataset has no T1w image, or a participant or session is not in it.
    """
    dataset = find_sources(root, "bids")
    sources = dataset.sources
    keep = {}
    for option, key, labels in (("--participant_label", "sub", participants), ("--session_label", "ses", sessions)):
        wanted = {str(label).removeprefix(f"{key}-") for label in labels}
        present = {entity(source.image, key) for source in sources}
        if lacking := sorted(wanted - present):
            known = ", ".join(sorted(label for label in present if label)) or "none"
            raise UserError(option, found=", ".join(lacking), expected=f"labels in {root}: {known}")
        keep[key] = wanted or present
    found, errors = [], list(dataset.refused.values())
    for source in sources:
        if not all(entity(source.image, key) in labels for key, labels in keep.items()):
            continue
        error = path_error(source.image)
        if error is None:
            found.append(Scan(source.image, stem(source.image), names(source.image, root), source.mask))
        else:
            errors.append(error)
    return found, errors


def entity(image: Path, key: str) -> str:
    """Return the value of an entity in a BIDS file name, or "" if the name lacks it."""
    match = re.search(rf"(?:^|_){key}-([A-Za-z0-9]+)", image.name)
    return match[1] if match else ""


def stem(image: Path) -> str:
    """Return the entities of a T1w image: its name without `_T1w` and suffix."""
    return re.sub(r"_T1w\.nii(\.gz)?$", "", image.name)


def names(image: Path, root: Path) -> ResultFiles:
    """Return the paths of the results of a T1w image below the derivatives dataset."""
    name, folder = stem(image), image.parent.relative_to(root).as_posix()
    return ResultFiles(
        labels=f"{folder}/{name}_desc-fedsr_dseg.nii.gz",
        atlas_labels=f"{folder}/{name}_desc-fedsrAtlas_dseg.nii.gz",
        warp=f"{folder}/{name}_from-atlas_to-T1w_mode-image_xfm.nii.gz",
        alignment=f"sub-{entity(image, 'sub')}/figures/{name}_desc-alignment_T1w.png",
    )


def sidecars(scan: Scan, register: bool) -> list[str]:
    """Return the paths of the JSON files beside the results of a scan."""
    files = [scan.files.labels] + ([scan.files.atlas_labels, scan.files.warp] if register else [])
    return [file.removesuffix(".nii.gz") + ".json" for file in files]


def write_dataset_files(out: Path, root: Path, protocol: str | None = None) -> None:
    """Write `dataset_description.json`, `.bidsignore` and `README` of the derivatives dataset of `root`, labelled in `protocol`."""
    command = "fedsr segment" + (f" --protocol {protocol}" if protocol else "")
    description = {
        "Name": "FedSR labels",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fedsr-monai", "Version": __version__, "Description": command}],
        "SourceDatasets": [{"URL": root.absolute().as_uri()}],
        "DatasetLinks": {"raw": root.absolute().as_uri()},
    }
    write_json(out / DATASET_FILES[0], description)
    write_text(out / DATASET_FILES[1], "\n".join(IGNORED) + "\n")
    write_text(out / DATASET_FILES[2], README.format(command=command))


def write_scan_files(
    out: Path, root: Path, scan: Scan, volumes: Mapping[int, float], register: bool, protocol: str | None = None
) -> None:
    """Write the JSON files beside the results of a scan, and its row of `volumes.tsv`.

    Args:
        out: derivatives dataset.
        root: root folder of the dataset that the scan comes from.
        scan: the scan.
        volumes: millilitres by label.
        register: there are results of the registration.
        protocol: label protocol whose borders the labels follow; None if it is not known.
    """
    borders = f", label protocol {protocol}" if protocol else ""
    source = f"bids:raw:{scan.path.relative_to(root).as_posix()}"
    texts: list[dict[str, Any]] = [
        {"Description": f"13 structures, segmentation head{borders}", "Manual": False},
        {"Description": f"atlas labels, carried over by the registration{borders}", "Manual": False},
        {"Description": "ITK displacement field from the atlas to the T1w image"},
    ]
    for file, text in zip(sidecars(scan, register), texts):
        write_json(out / file, text | {"Sources": [source], "SpatialReference": source})
    session = entity(scan.path, "ses")
    row = {
        "participant_id": f"sub-{entity(scan.path, 'sub')}",
        "session_id": f"ses-{session}" if session else "n/a",
        "source": scan.path.relative_to(root).as_posix(),
    }
    row |= {STRUCTURES[label]: f"{volume:.3f}" for label, volume in volumes.items()}
    put_row(out / VOLUMES, COLUMNS, ("source",), row)

"""Volumes of structures in millilitres: one table a folder of label maps."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from fedsr_monai.errors import UserError
from fedsr_monai.files import atomic_path
from fedsr_monai.labels import LABELS
from fedsr_monai.spatial.nifti import volume_stem

VOLUMES = "volumes.csv"
STRUCTURES = {label: f"{name} (ml)" for label, name in LABELS.items() if label}
COLUMNS = ["scan", "labels", *STRUCTURES.values(), "missing", "at_edge"]


def structure_volumes(labels: np.ndarray, affine: np.ndarray) -> dict[int, float]:
    """Volume of each structure in millilitres: number of voxels times |det| of the affine; 0 where there is none.

    Args:
        labels: ids [D, H, W].
        affine: voxel to millimetre, oblique or not.
    """
    counts = np.bincount(labels.astype(np.uint8).ravel(), minlength=max(LABELS) + 1)
    voxel = abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3])) / 1000
    return {label: float(counts[label] * voxel) for label in STRUCTURES}


def structures_at_edge(labels: np.ndarray) -> list[int]:
    """Structures with voxels in an outermost slice of the volume [D, H, W]: the scan may end before they do."""
    faces = [np.take(labels, (0, -1), axis=axis) for axis in range(3)]
    found = np.unique(np.concatenate([face.ravel() for face in faces]))
    return [label for label in STRUCTURES if label in found]


def record_volumes(path: str | os.PathLike, labels: np.ndarray, affine: np.ndarray) -> None:
    """Put the volumes of a label map into `volumes.csv` of its folder, in one step; rows of other files stay.

    A row has the scan, what follows its name in the file of the labels (`dseg`, `atlas-dseg`), the millilitres of the
    13 structures, then the names of those without a voxel (`missing`; their 0 need not be true) and of those that
    reach the edge of the scan (`at_edge`; there may be more of them than was measured).

    Args:
        path: `<scan>_<labels>.nii.gz`.
        labels: its ids [D, H, W].
        affine: voxel to millimetre.

    Raises:
        UserError: the table there has other columns, the disk is full or the folder cannot be written.
    """
    scan, _, kind = volume_stem(path).rpartition("_")
    volumes = structure_volumes(labels, affine)
    row = {"scan": scan, "labels": kind} | {STRUCTURES[label]: f"{volume:.3f}" for label, volume in volumes.items()}
    row["missing"] = "; ".join(LABELS[label] for label, volume in volumes.items() if not volume)
    row["at_edge"] = "; ".join(LABELS[label] for label in structures_at_edge(labels))
    table = Path(path).with_name(VOLUMES)
    rows = {(old["scan"], old["labels"]): old for old in read_volumes(table)}
    rows[scan, kind] = row
    with atomic_path(table) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def read_volumes(table: Path) -> list[dict[str, str]]:
    """The rows of a `volumes.csv`; none where there is no file.

    Raises:
        UserError: it has other columns.
    """
    if not table.is_file():
        return []
    with open(table, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise UserError(
                f"{table}: found the columns {', '.join(reader.fieldnames or ['none'])}, expected "
                f"{', '.join(COLUMNS[:3])} and so on; move the file away"
            )
        return list(reader)

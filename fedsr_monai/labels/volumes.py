"""Volumes of structures in millilitres, in one table per folder of label maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedsr_monai.files import is_there, put_row, read_csv
from fedsr_monai.labels import LABELS
from fedsr_monai.spatial.nifti import volume_stem

VOLUMES = "volumes.csv"
STRUCTURES = {label: f"{name} (ml)" for label, name in LABELS.items() if label}
COLUMNS = ["scan", "labels", *STRUCTURES.values(), "missing", "at_edge"]


def structure_volumes(labels: np.ndarray, affine: np.ndarray) -> dict[int, float]:
    """Return the volume of each structure in millilitres: number of voxels times |det| of the affine.

    Args:
        labels: ids [D, H, W].
        affine: [4, 4], voxel to millimetre, oblique or not.
    """
    voxel = abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3])) / 1000
    # One by one: `bincount` would first make 64-bit numbers of all voxels, which takes several times as long.
    return {label: float(np.count_nonzero(labels == label) * voxel) for label in STRUCTURES}


def structures_at_edge(labels: np.ndarray) -> list[int]:
    """Return the structures with voxels in an outermost slice of the volume [D, H, W], where the scan may cut them."""
    faces = [np.take(labels, (0, -1), axis=axis) for axis in range(3)]
    found = np.unique(np.concatenate([face.ravel() for face in faces]))
    return [label for label in STRUCTURES if label in found]


def record_volumes(path: str | os.PathLike, labels: np.ndarray, affine: np.ndarray) -> None:
    """Put the volumes of a label map into `volumes.csv` of its folder, in one step; the rows of other files stay.

    A row has the scan, the suffix of the label map's file name (`dseg`, `atlas-dseg`), the volumes of the 13 structures
    in millilitres, then the names of structures without a voxel (`missing`; their true volume need not be 0) and of
    structures that reach the edge of the scan (`at_edge`; their true volume may be larger). Several processes may record
    into one folder.

    Args:
        path: path of the label map, `<scan>_<labels>.nii.gz`.
        labels: its ids [D, H, W].
        affine: [4, 4], voxel to millimetre.

    Raises:
        UserError: the table has other columns, the disk is full or the folder cannot be written.
    """
    scan, _, kind = volume_stem(path).rpartition("_")
    volumes = structure_volumes(labels, affine)
    row = {"scan": scan, "labels": kind} | {STRUCTURES[label]: f"{volume:.3f}" for label, volume in volumes.items()}
    row["missing"] = "; ".join(LABELS[label] for label, volume in volumes.items() if not volume)
    row["at_edge"] = "; ".join(LABELS[label] for label in structures_at_edge(labels))
    put_row(Path(path).with_name(VOLUMES), COLUMNS, ("scan", "labels"), row)


def read_volumes(table: Path) -> list[dict[str, str]]:
    """Return the rows of a `volumes.csv`; an empty list if there is no file.

    Raises:
        UserError: the file has other columns.
    """
    return read_csv(table, COLUMNS, only=True) if is_there(table) else []

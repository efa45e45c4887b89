"""Translation of FreeSurfer's label ids to the 13 structures."""

from __future__ import annotations

import os

import numpy as np

from fedsr_monai.errors import UserError
from fedsr_monai.labels import NUM_CLASSES
from fedsr_monai.labels.freesurfer import FREESURFER, whole_ids

FEWEST = 8  # least number of structures in a label map: a tissue map has three labels, and a label map may lack some structures
TISSUES = 3  # grey matter, white matter and fluid, in any order
TELL_TALE = {41: "right cerebral white matter", 49: "right thalamus", 16: "brain stem"}  # in every whole-brain aseg


def is_tissue_map(labels: np.ndarray) -> bool:
    """Return whether a label map has only whole numbers up to 3, and so holds tissues, not structures."""
    ids = np.unique(labels)
    return bool(0 < ids[-1] <= TISSUES and ids[0] >= 0 and (ids == np.round(ids)).all())


def to_structures(labels: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Translate a label map of FreeSurfer ids, or one that has the labels 0 to 13 already, to uint8 labels 0 to 13.

    Args:
        labels: ids, of any shape and type.
        path: path of the file, for messages.

    Raises:
        UserError: the map is empty, or its labels are fractions, below 0, or of another scheme.
    """
    ids = whole_ids(labels, path)
    if not ids.any():
        raise UserError(path, "an empty label map", "at least one structure", "give another file")
    if ids[-1] < NUM_CLASSES:
        if np.count_nonzero(ids) < FEWEST:
            raise UserError(
                path,
                found=f"only the labels {', '.join(map(str, ids[ids > 0]))}",
                expected="the structures 1 to 13 or FreeSurfer's ids",
                fix="give a segmentation into structures",
            )
        return labels.astype(np.uint8)
    absent = [f"{i} ({name})" for i, name in TELL_TALE.items() if i not in ids]
    if absent:
        raise UserError(
            path,
            found=f"ids up to {ids[-1]} but not {absent[0]}",
            expected="the labels 0 to 13 or those of FreeSurfer's aseg or aparc+aseg",
            fix="translate them to 0 to 13",
        )
    table = np.zeros(ids[-1] + 1, np.uint8)
    for structure, members in FREESURFER.items():
        table[[i for i in members if i < len(table)]] = structure
    return table[labels.astype(np.int64)]

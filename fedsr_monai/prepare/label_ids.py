"""FreeSurfer's label ids as the 13 structures."""

from __future__ import annotations

import os

import numpy as np

from fedsr_monai.errors import UserError
from fedsr_monai.labels import NUM_CLASSES

# Ids of aseg, aparc+aseg, aparc.a2009s+aseg and wmparc (FreeSurferColorLUT). What is not here is background: 24 CSF, 85 optic
# chiasm, 30 and 62 vessels and so on.
FREESURFER = {
    1: (14, 15),
    2: (2, 41, 77, 80, *range(251, 256), *range(3000, 3036), *range(4000, 4036), 5001, 5002),
    3: (3, 42, *range(1000, 1036), *range(2000, 2036), *range(11100, 11176), *range(12100, 12176)),
    4: (4, 43, 5, 44, 31, 63),
    5: (7, 46),
    6: (10, 49),
    7: (11, 50, 26, 58),
    8: (12, 51),
    9: (13, 52),
    10: (16, 28, 60),
    11: (17, 53),
    12: (18, 54),
    13: (8, 47),
}
FEWEST = 8  # a map of tissues has three labels; one of structures may lack some
TELL_TALE = {41: "right cerebral white matter", 49: "right thalamus", 16: "brain stem"}  # in every whole-brain aseg


def to_structures(labels: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Label map of FreeSurfer ids, or of 0 to 13 already, as uint8 labels 0 to 13.

    Raises:
        UserError: the labels are fractions, below 0, or of another scheme.
    """
    ids = np.unique(labels)
    if (ids != np.round(ids)).any() or ids[0] < 0:
        odd = ids[(ids != np.round(ids)) | (ids < 0)][0]
        raise UserError(f"{path}: holds the label {odd:g}, expected whole numbers of 0 and above; take the label map as it was made")
    ids = ids.astype(np.int64)
    if not ids.any():
        raise UserError(f"{path}: is an empty label map, expected at least one structure; take another file")
    if ids[-1] < NUM_CLASSES:
        if np.count_nonzero(ids) < FEWEST:
            raise UserError(
                f"{path}: holds only the labels {', '.join(map(str, ids[ids > 0]))}, expected the structures 1 to 13 or FreeSurfer's ids; "
                "take a segmentation into structures"
            )
        return labels.astype(np.uint8)
    absent = [f"{i} ({name})" for i, name in TELL_TALE.items() if i not in ids]
    if absent:
        raise UserError(
            f"{path}: holds ids up to {ids[-1]} but not {absent[0]}, expected the labels 0 to 13 or those of FreeSurfer's aseg or "
            "aparc+aseg; translate them to 0 to 13"
        )
    table = np.zeros(ids[-1] + 1, np.uint8)
    for structure, members in FREESURFER.items():
        table[[i for i in members if i < len(table)]] = structure
    return table[labels.astype(np.int64)]

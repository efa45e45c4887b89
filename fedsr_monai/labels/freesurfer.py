"""FreeSurfer's label ids of the 13 structures."""

from __future__ import annotations

import os

import numpy as np

from fedsr_monai.errors import UserError

LARGEST_ID = 65_535  # FreeSurfer has some above 20,000; far larger numbers do not survive the conversion to integers
# Ids of aseg, aparc+aseg, aparc.a2009s+aseg and wmparc (FreeSurferColorLUT). All others are background: 24 CSF, 85 optic
# chiasm, and the tissue that the paper's 13 structures leave out: 26 and 58 accumbens, 28 and 60 ventral diencephalon, 30
# and 62 vessels.
FREESURFER = {
    1: (14, 15),
    2: (2, 41, 77, 80, *range(251, 256), *range(3000, 3036), *range(4000, 4036), 5001, 5002),
    3: (3, 42, *range(1000, 1036), *range(2000, 2036), *range(11100, 11176), *range(12100, 12176)),
    4: (4, 43, 5, 44, 31, 63),
    5: (7, 46),
    6: (10, 49),
    7: (11, 50),
    8: (12, 51),
    9: (13, 52),
    10: (16,),
    11: (17, 53),
    12: (18, 54),
    13: (8, 47),
}


def whole_ids(labels: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Return the ids of a label map, int64, in ascending order.

    Args:
        labels: ids, of any shape and type.
        path: path of the file, for messages.

    Raises:
        UserError: an id is a fraction, below 0, or larger than any id in use.
    """
    ids = np.unique(labels)
    if (wrong := (ids != np.round(ids)) | (ids < 0) | (ids > LARGEST_ID)).any():
        found, expected = f"the label {ids[wrong][0]:g}", f"whole numbers from 0 to {LARGEST_ID}"
        raise UserError(path, found, expected, "give the label map as it was made")
    return ids.astype(np.int64)

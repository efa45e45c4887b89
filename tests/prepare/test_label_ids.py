from __future__ import annotations

import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.label_ids import to_structures

# every id that FreeSurfer's aseg and aparc+aseg use, with the structure it belongs to
ASEG = {
    0: 0, 2: 2, 3: 3, 4: 4, 5: 4, 7: 5, 8: 13, 10: 6, 11: 7, 12: 8, 13: 9, 14: 1, 15: 1, 16: 10, 17: 11, 18: 12, 24: 0, 26: 0, 28: 0,
    30: 0, 31: 4, 41: 2, 42: 3, 43: 4, 44: 4, 46: 5, 47: 13, 49: 6, 50: 7, 51: 8, 52: 9, 53: 11, 54: 12, 58: 0, 60: 0, 62: 0, 63: 4,
    77: 2, 80: 2, 85: 0, 251: 2, 255: 2, 1000: 3, 1035: 3, 2000: 3, 2035: 3, 72: 0,
}  # fmt: skip


def test_freesurfer_ids_become_structures():
    ids = np.array(list(ASEG), np.int32).reshape(-1, 1, 1)
    found = to_structures(ids, "aseg.mgz")
    assert found.dtype == np.uint8 and found.ravel().tolist() == list(ASEG.values())


def test_structures_stay_as_they_are():
    labels = np.arange(14).reshape(14, 1, 1).astype(np.float32)
    assert np.array_equal(to_structures(labels, "x"), labels)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([0, 1, 2.5], "the label 2.5"),
        ([-1, 0, 2], "the label -1"),
        ([*range(14), 1e30], "the label 1e+30"),
        ([*range(14), 2.0**63], "the label 9.22337e+18"),
        ([0, 2, 41, 3, 42, 49, 16, 4_000_000_000], "the label 4e+09"),
        ([0, 0], "an empty label map"),
        ([0, 1, 2, 3], "only the labels 1, 2, 3"),
        ([0, 2, 3, 207], "ids up to 207 but not 41 (right cerebral white matter)"),
    ],
)  # fmt: skip
def test_other_schemes_are_refused(ids, found):
    with pytest.raises(UserError) as caught:
        to_structures(np.array(ids).reshape(-1, 1, 1), "x")
    assert (caught.value.where, caught.value.found) == ("x", found)

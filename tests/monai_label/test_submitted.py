"""Labels as 3D Slicer submits them: numbered by the order of the segments, with their names."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.labels import LABELS
from fedsr_monai.monai_label.submitted import SERVED, with_own_ids

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


@pytest.fixture
def submitted(tmp_path):
    def write(*numbers: float, dtype=np.int16):
        volume = np.array([0, *numbers], dtype).reshape(1, 1, -1)
        nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "scan.nii.gz")
        return tmp_path / "scan.nii.gz"

    return write


def segments(*names: str) -> list[dict]:
    return [{"name": name, "idx": number} for number, name in enumerate(names, 1)]


def values(path) -> list[int]:
    return np.asarray(nib.load(path).dataobj).ravel().tolist()


def test_removed_and_reordered_segments_get_the_ids_of_their_names(submitted, tmp_path):
    path = submitted(1, 2, 3, 2)
    info = segments("Thalamus", "cerebellar white matter", "3rd/4th ventricle ", "a segment without a voxel")
    mapped = with_own_ids(path, info, tmp_path / "out")
    assert mapped == tmp_path / "out" / "scan.nii.gz" and values(mapped) == [0, 6, 5, 1, 5]
    assert values(path) == [0, 1, 2, 3, 2]  # what was submitted stays
    assert np.array_equal(nib.load(mapped).affine, AFFINE)


def test_labels_in_our_order_are_used_as_they_are(submitted, tmp_path):
    path = submitted(1, 5, 13)
    assert with_own_ids(path, segments(*SERVED), tmp_path / "out") == path
    assert with_own_ids(path, segments(*(name for number, name in LABELS.items() if number)), tmp_path / "out") == path
    assert with_own_ids(path, [], tmp_path / "out") == path  # a client that sends no names
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("numbers", "info", "message"),
    [
        ((1, 2), segments("thalamus", "tumour"), "found the segment 'tumour', expected one of 3rd/4th ventricle, "),
        ((1, 3), segments("thalamus", "caudate"), "found the id 3 without a name"),
        ((1, 14), [], "found the id 14 without a name, expected ids from 1 to 13"),
        ((-1,), [], "found the id -1 without a name"),
        ((1, 0.5), [], "found fractions, expected a label map of whole numbers"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_by_file(submitted, tmp_path, numbers, info, message):
    path = submitted(*numbers, dtype=np.float32)
    with pytest.raises(UserError, match=f"scan.nii.gz: {message}"):
        with_own_ids(path, info, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_a_label_map_is_named(tmp_path):
    (tmp_path / "scan.seg.nrrd").write_text("NRRD")
    with pytest.raises(UserError, match="scan.seg.nrrd: found a file that cannot be read"):
        with_own_ids(tmp_path / "scan.seg.nrrd", [], tmp_path / "out")

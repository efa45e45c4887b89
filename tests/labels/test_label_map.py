from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nilearn.maskers import NiftiLabelsMasker

from fedsr_monai.errors import UserError
from fedsr_monai.labels import COLOURS, LABELS
from fedsr_monai.labels.label_map import write_label_map
from fedsr_monai.spatial.header import forms_to_meta, header_of
from fedsr_monai.transforms import SaveImageLabelMapd

AFFINE = np.array([[0.0, -2.0, 0.1, 30.0], [1.5, 0.0, 0.0, -40.0], [0.0, 0.1, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]])


def test_volume_and_table(tmp_path):
    labels = np.random.default_rng(0).integers(0, 14, (5, 6, 7))
    write_label_map(tmp_path / "new" / "a_dseg.nii.gz", labels, header_of(AFFINE, (0, 4)))
    image = nib.load(tmp_path / "new" / "a_dseg.nii.gz")
    assert image.get_data_dtype() == np.uint8 and np.array_equal(np.asanyarray(image.dataobj), labels)
    assert np.array_equal(image.affine, AFFINE.astype(np.float32).astype(float))
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 4)
    table = [line.split("\t") for line in (tmp_path / "new" / "a_dseg.tsv").read_text().splitlines()]
    assert table[0] == ["index", "name", "abbreviation", "color"]
    assert [row[:2] for row in table[1:]] == [[str(i), name] for i, name in LABELS.items()]
    assert table[11] == ["10", "brain stem", "BS", "#8C8C96"]
    names = ["a_dseg.nii.gz", "a_dseg.tsv", "labels.ctbl", "labels_lut.txt", "volumes.csv"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names


def lines(path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_tables_as_other_software_parses_them(tmp_path):
    """3D Slicer: a first line that names the kind of file, then id, name without spaces, red, green, blue, opacity.
    FreeSurfer: six fields per line, the last the transparency.
    """
    write_label_map(tmp_path / "a_dseg.nii.gz", np.ones((4, 4, 4)), header_of(AFFINE))
    assert (tmp_path / "labels.ctbl").read_text().startswith("# Color table file")
    for name, opacity in (("labels.ctbl", [0] + 13 * [255]), ("labels_lut.txt", 14 * [0])):
        fields = [line.split() for line in lines(tmp_path / name)]
        assert all(len(row) == 6 for row in fields)
        assert {int(row[0]): row[1].replace("_", " ") for row in fields} == LABELS
        assert {int(row[0]): tuple(map(int, row[2:5])) for row in fields} == COLOURS
        assert [int(row[5]) for row in fields] == opacity


def test_the_bids_table_is_one_that_nilearn_takes(tmp_path):
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels.ravel()[:14] = range(14)
    write_label_map(tmp_path / "a_dseg.nii.gz", labels, header_of(np.eye(4)))
    masker = NiftiLabelsMasker(tmp_path / "a_dseg.nii.gz", lut=tmp_path / "a_dseg.tsv", standardize=None)
    masker.fit_transform(nib.Nifti1Image(labels[..., None].astype(np.float32), np.eye(4)))
    assert set(masker.region_names_.values()) == set(LABELS.values()) - {"background"}


def test_the_same_labels_are_the_same_bytes(tmp_path):
    for name in "ab":
        write_label_map(tmp_path / f"{name}.nii.gz", np.ones((4, 4, 4)), header_of(AFFINE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_saved_under_the_name_of_the_scan(tmp_path):
    labels = MetaTensor(torch.full((1, 4, 5, 6), 3, dtype=torch.uint8), affine=torch.as_tensor(AFFINE))
    labels.meta |= {"filename_or_obj": "/data/sub-01.T1w.nii.gz", "qform_code": torch.tensor(2), "sform_code": 1}
    result = SaveImageLabelMapd("pred", tmp_path)({"pred": labels})
    assert result["pred"] is labels
    image = nib.load(tmp_path / "sub-01.T1w_dseg.nii.gz")
    assert image.shape == (4, 5, 6) and (int(image.header["qform_code"]), int(image.header["sform_code"])) == (2, 1)
    assert (tmp_path / "sub-01.T1w_dseg.tsv").is_file()


def test_both_forms_of_the_scan_are_kept(tmp_path):
    header = header_of(np.diag([-2.0, 2.0, 3.0, 1.0]), (1, 4))
    header.set_sform(AFFINE)
    header["pixdim"][1:4] = 2.001, 2.001, 3.001
    labels = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.as_tensor(header.get_best_affine()))
    labels.meta |= {"filename_or_obj": "scan.nii.gz"} | forms_to_meta(header)
    SaveImageLabelMapd("pred", tmp_path)({"pred": labels})
    written = nib.load(tmp_path / "scan_dseg.nii.gz").header
    assert written.get_sform(coded=True)[1] == 4 and written.get_qform(coded=True)[1] == 1
    assert np.array_equal(written.get_sform(), header.get_sform()) and np.array_equal(
        written["pixdim"][:4], header["pixdim"][:4]
    )
    assert all(written[field] == header[field] for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out/a_dseg.tsv: .*cannot be written \(Not a directory\)"):
        write_label_map(tmp_path / "file" / "out" / "a_dseg.nii.gz", np.ones((4, 4, 4)), header_of(AFFINE))

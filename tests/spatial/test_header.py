from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fedsr_monai.spatial.header import (
    FORM_FIELDS,
    copy_forms,
    form_conflict,
    forms_to_meta,
    header_from_meta,
    header_of,
    itk_affine,
)

SHAPE = (20, 22, 24)


def rigid(angles, shift) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * (2.0, 2.5, 3.0)
    affine[:3, 3] = shift
    return affine


S, Q = rigid((5, 10, -8), (-30, -40, -20)), rigid((0, 2, 0), (10, 20, 30))
SHEARED = S + np.array([[0, 0.3, 0, 0], *[[0] * 4] * 3])
SCALED = S * np.array([1.06, 1.06, 1.06, 1])


def forms(sform, qform, codes, pixdim=None) -> nib.Nifti1Header:
    """Return a header with these forms; `codes` are those of qform and sform."""
    header = header_of(qform)
    header.set_sform(sform)
    header["qform_code"], header["sform_code"] = codes
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    return header


def seen_by_itk(path, header: nib.Nifti1Header) -> np.ndarray:
    header = header.copy()
    header.set_data_shape(SHAPE)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_data_dtype(np.float32)
    path.write_bytes(header.binaryblock + bytes(4) + bytes(4 * int(np.prod(SHAPE))))
    image = itk.imread(path, itk.F)
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(list(image.GetSpacing()))
    affine[:3, 3] = list(image.GetOrigin())
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("qform_code", range(5))
@pytest.mark.parametrize("sform_code", range(5))
def test_itk_takes_the_form_that_we_say(tmp_path, sform_code, qform_code):
    if sform_code == qform_code == 0:
        return  # such files are refused
    header = forms(S, Q, (qform_code, sform_code))
    np.testing.assert_allclose(itk_affine(header), seen_by_itk(tmp_path / "scan.nii", header), atol=1e-3)


@pytest.mark.parametrize(
    "header",
    [
        forms(SHEARED, Q, (1, 1)),
        forms(SHEARED, Q, (2, 4)),
        forms(SCALED, Q, (0, 1), (2, 2.5, 3)),
        forms(SCALED, S, (1, 4), (2, 2.5, 3)),
        forms(S, S, (1, 2)),
        forms(S, S, (1, 2), (2.01, 2.51, 3.01)),
        forms(rigid((5, 10, -8), (-30, -40, -19.9)), S, (1, 4)),
        header_of(np.diag([-2.0, 2.0, 3.0, 1.0])),
    ],
    ids=["sheared, both 1", "sheared", "scaled", "scaled template", "same", "other sizes", "shifted", "left-handed"],
)
def test_itk_sees_the_voxels_where_we_say(tmp_path, header):
    np.testing.assert_allclose(itk_affine(header), seen_by_itk(tmp_path / "scan.nii", header), atol=1e-3)


def test_itk_refuses_a_sheared_sform_alone(tmp_path):
    header = forms(SHEARED, Q, (0, 2))
    assert itk_affine(header) is None
    with pytest.raises(RuntimeError, match="orthonormal"):
        seen_by_itk(tmp_path / "scan.nii", header)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (forms(S, Q, (1, 1)), ["read by its sform", "mm from its qform", "see it there too"]),
        (forms(S, Q, (1, 4)), ["read by its sform", "mm from its qform", "mm from there"]),
        (forms(SHEARED, S, (0, 1)), ["read by its sform; ITK", "refuse its sheared axes"]),
        (forms(SCALED, S, (0, 1), (2, 2.5, 3)), ["read by its sform; ITK", "see it up to 5.9 mm from there"]),
    ],
)
def test_what_programs_see_elsewhere_is_told(header, words):
    text = form_conflict(header, SHAPE)
    assert all(word in text for word in words)


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (2, 0), (1, 4)])
def test_nothing_is_told_where_all_programs_agree(codes):
    assert form_conflict(forms(S, S, codes), SHAPE) is None
    assert form_conflict(forms(rigid((5, 10, -8), (-30, -40, -19.95)), S, codes), SHAPE) is None


def test_forms_travel_as_meta_data():
    header = forms(SHEARED, Q, (3, 4))
    header.set_xyzt_units("mm")
    meta = forms_to_meta(header)
    copied = header_from_meta(meta, SHEARED)
    assert all(np.array_equal(copied[field][:4], header[field][:4]) if field == "pixdim" else
               np.array_equal(copied[field], header[field]) for field in FORM_FIELDS)  # fmt: skip
    target = nib.Nifti1Header()
    copy_forms(header, target)
    assert target.get_xyzt_units()[0] == "mm" and int(target["qform_code"]) == 3 and int(target["sform_code"]) == 4
    assert np.array_equal(target.get_qform(), header.get_qform()) and np.array_equal(
        target.get_sform(), header.get_sform()
    )


def test_a_volume_on_another_grid_gets_forms_of_its_own():
    meta = forms_to_meta(forms(S, Q, (3, 4)))
    moved = header_from_meta(meta, Q)
    np.testing.assert_allclose(moved.get_sform(), Q, atol=1e-5)
    np.testing.assert_allclose(moved.get_qform(), Q, atol=1e-5)
    assert (int(moved["qform_code"]), int(moved["sform_code"])) == (3, 4)
    assert int(header_from_meta({}, Q)["sform_code"]) == 1

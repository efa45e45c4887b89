from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.load import read_mask, read_scan
from fedsr_monai.spatial.nifti import Volume

AFFINE = np.array([[0, 0, 2.0, 5], [-2, 0, 0, 7], [0, 3, 0, 9], [0, 0, 0, 1]])


def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, (6, 7, 8), np.int16)


def written(path, voxels, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(voxels, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mgz"])
def test_formats(tmp_path, name):
    kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image
    volume = read_scan(written(tmp_path / name, scan(), kind=kind))
    assert volume.voxels.dtype == np.float32 and np.array_equal(volume.voxels, scan())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_one_volume_in_four_dimensions(tmp_path):
    assert np.array_equal(read_scan(written(tmp_path / "a.nii.gz", scan()[..., None])).voxels, scan())


@pytest.mark.parametrize(
    ("voxels", "found"),
    [
        (np.stack([scan()] * 2, -1), "shape (6, 7, 8, 2)"),
        (scan()[:, :, :1], "shape (6, 7, 1)"),
        (np.where(scan() > 800, np.nan, scan()).astype(np.float32), "voxels that are NaN or infinite"),
        (np.full((6, 7, 8), 3, np.int16), "a constant image (all 3)"),
        (scan() - 400, "negative voxels"),
        (scan().astype(np.complex64), "complex64 voxels"),
    ],
    ids=["series", "slice", "nan", "constant", "negative", "complex"],
)  # fmt: skip
def test_what_is_not_a_scan(tmp_path, voxels, found):
    path = written(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(UserError) as caught:
        read_scan(path)
    assert caught.value.where == str(path) and found in caught.value.found


def test_files_that_are_not_volumes(tmp_path):
    (tmp_path / "cut.mgz").write_bytes(written(tmp_path / "a.mgz", scan(), kind=nib.MGHImage).read_bytes()[:-100])
    (tmp_path / "x.dcm").touch()
    for name, found in (
        ("none.nii", "no such file"),
        ("x.dcm", "a file that is not .nii"),
        ("cut.mgz", "a broken gzip stream"),
    ):
        with pytest.raises(UserError) as caught:
            read_scan(tmp_path / name)
        assert caught.value.where == str(tmp_path / name) and caught.value.found.startswith(found)
        assert "\n" not in str(caught.value)


def test_masks(tmp_path):
    volume = Volume(scan().astype(np.float32), AFFINE)
    inside = np.zeros((6, 7, 8), np.uint8)
    inside[1:5, 2:6, 2:6] = 1
    assert np.array_equal(read_mask(written(tmp_path / "mask.nii.gz", inside), volume), inside > 0)
    share = inside * np.float32(0.7)
    share[2, 3, 3] = 0.3
    assert read_mask(written(tmp_path / "share.nii.gz", share), volume).sum() == inside.sum() - 1
    brain = 50 * inside
    brain[2, 3, 3] = 1  # erased by hand, in FreeSurfer's way
    assert read_mask(written(tmp_path / "brainmask.mgz", brain, kind=nib.MGHImage), volume).sum() == inside.sum() - 1
    # the same mask on other voxels: two of the axes swapped and one reversed
    turned = np.flip(inside.transpose(1, 0, 2), 1)
    affine = AFFINE @ np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert np.array_equal(read_mask(written(tmp_path / "turned.nii.gz", turned, affine), volume), inside > 0)
    far = AFFINE.copy()
    far[0, 3] = 900
    with pytest.raises(UserError, match="no voxel of the scan.*mask of this scan"):
        read_mask(written(tmp_path / "far.nii.gz", inside, far), volume)

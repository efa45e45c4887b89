from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImage, LoadImaged, SaveImage

from fedsr_monai.errors import UserError, user_error
from fedsr_monai.spatial.header import FORM_FIELDS
from fedsr_monai.spatial.reader import VolumeReader

AFFINE = np.diag([-2.0, 3.0, 2.0, 1.0])
AFFINE[:3, 3] = 40, -50, 10


def save(path, pixdim=None, codes=(1, 1), voxels=None):
    image = nib.Nifti1Image(np.ones((5, 6, 7), np.int16) if voxels is None else voxels, AFFINE)
    image.set_qform(np.eye(4) if pixdim else AFFINE, codes[0])
    image.set_sform(AFFINE, codes[1])
    if pixdim:
        image.header["pixdim"][1:4] = pixdim
        image.header["qform_code"] = codes[0]
    nib.save(image, path)
    return path


def test_the_affine_is_nibabel_s_where_monai_s_own_reader_takes_another(tmp_path):
    path = save(tmp_path / "scan.nii.gz", pixdim=(2.001, 3.001, 2.001), codes=(1, 4))
    expected = nib.load(path).affine
    assert np.abs(LoadImage()(path).affine.numpy() - expected).max() > 10
    scan = LoadImage(VolumeReader(), ensure_channel_first=True)(path)
    assert scan.shape == (1, 5, 6, 7) and scan.dtype == torch.float32
    assert np.array_equal(scan.affine.numpy(), expected)


def test_meta_data_are_those_of_monai_s_reader(tmp_path):
    path = save(tmp_path / "scan.nii.gz", codes=(2, 3))
    ours, theirs = LoadImage(VolumeReader())(path), LoadImage()(path)
    assert set(theirs.meta) <= set(ours.meta) and set(FORM_FIELDS) <= set(ours.meta)
    assert ours.meta["filename_or_obj"] == str(path) == theirs.meta["filename_or_obj"]
    for key in ("affine", "original_affine", "spatial_shape", "qform_code", "sform_code", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(ours.meta[key], theirs.meta[key])
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor())


@pytest.mark.parametrize("axes", [1, 2])
def test_by_name_in_a_configuration_batched_and_saved(tmp_path, axes):
    path = save(tmp_path / "scan.nii.gz", voxels=np.ones((5, 6, 7, *[1] * axes), np.int16))
    load = LoadImaged("image", reader="fedsr_monai.spatial.reader.VolumeReader", ensure_channel_first=True)
    (batch,) = DataLoader(Dataset([{"image": str(path)}], load), batch_size=1)
    assert batch["image"].shape == (1, 1, 5, 6, 7)
    SaveImage(tmp_path / "out", separate_folder=False, print_log=False)(load({"image": str(path)})["image"])
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "scan_trans.nii.gz").affine, AFFINE)


def test_what_it_refuses_no_other_reader_takes(tmp_path):
    path = save(tmp_path / "scan.nii.gz", codes=(0, 0))
    assert LoadImage()(path).shape == (5, 6, 7)
    with pytest.raises(UserError, match="scan.nii.gz: found an unknown orientation"):
        LoadImage(VolumeReader())(path)
    with pytest.raises(RuntimeError) as caught:
        Compose([LoadImaged("image", reader=VolumeReader())])({"image": str(path)})
    assert "unknown orientation" in str(user_error(caught.value))
    with pytest.raises(UserError, match="found 2 files for one scan"):
        LoadImage(VolumeReader())([path, path])


def test_a_script_that_reads_a_scan_hears_nothing_of_decoders_on_the_gpu(tmp_path):
    path = save(tmp_path / "scan.nii.gz")
    script = f"""
from fedsr_monai.spatial.reader import VolumeReader
from monai.transforms import LoadImage
assert LoadImage(VolumeReader())({str(path)!r}).shape == (5, 6, 7)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

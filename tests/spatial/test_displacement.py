from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.spatial.displacement import field_on_scan, labels_under_field, write_displacement
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import header_of
from fedsr_monai.spatial.nifti import make_image, write_nifti, write_volume
from fedsr_monai.spatial.resampling import sample, voxel_map
from fedsr_monai.spatial.warping import warp
from tests.helpers.itk_warp import warped_by_itk

GRID = standard_grid(6.0, (32, 32, 32))
# permuted, flipped and oblique, with another spacing along each axis
TURN = Rotation.from_euler("xyz", (5, -8, 11), degrees=True).as_matrix()
SCAN = Grid(np.eye(4), (46, 44, 40))
SCAN.affine[:3, :3] = TURN @ np.array([[0.0, -3.9, 0.0], [0.0, 0.0, 5.9], [-4.2, 0.0, 0.0]])
SCAN.affine[:3, 3] = (GRID.affine @ [15.5, 15.5, 15.5, 1])[:3] - SCAN.affine[:3, :3] @ [22.5, 21.5, 19.5]


@pytest.fixture
def ddf() -> torch.Tensor:
    """A smooth displacement of up to some voxels, [3, 32, 32, 32]."""
    coarse = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    return 1.5 * torch.nn.functional.interpolate(coarse, size=(32, 32, 32), mode="trilinear", align_corners=True)[0]


def forms(codes=(1, 1), sform_scale=1.0, qform_shift=0.0, pixdim=0.0):
    """Return a header of the scan whose two forms and voxel sizes need not agree; `codes` are those of qform and sform."""
    header = header_of(SCAN.affine, codes)
    header.set_sform(SCAN.affine * np.array([sform_scale, sform_scale, sform_scale, 1]))
    header["qoffset_y"] += qform_shift
    header["pixdim"][1:4] += pixdim
    return header


@pytest.mark.parametrize(
    "header",
    [
        None,
        forms((0, 2)),
        forms((3, 0)),
        forms((1, 4), qform_shift=60),
        forms((1, 1), qform_shift=60),
        forms((1, 4), sform_scale=1.07),
        forms((0, 1), sform_scale=1.07),
        forms((0, 2), pixdim=0.02),
    ],
    ids=["plain", "sform", "qform", "two forms", "two forms, scanner", "scales", "scales, one form", "rounded sizes"],
)
def test_itk_warps_the_atlas_onto_the_scan_as_we_do(tmp_path, phantom, ddf, header):
    """Voxel by voxel of the scan, wherever ITK sees it."""
    scan = SCAN if header is None else Grid(header.get_best_affine(), SCAN.shape)
    field = field_on_scan(ddf, GRID, scan)
    write_displacement(tmp_path / "warp.nii.gz", field, GRID, scan, header)
    write_volume(tmp_path / "atlas.nii.gz", phantom[0][0].numpy(), GRID.affine)
    zeros = make_image(np.zeros(SCAN.shape, np.float32), header_of(scan.affine) if header is None else header)
    write_nifti(tmp_path / "scan.nii.gz", zeros)

    theirs = warped_by_itk(*(tmp_path / name for name in ("atlas.nii.gz", "warp.nii.gz", "scan.nii.gz")))
    ours = sample(phantom[0], voxel_map(GRID.affine, scan.affine), SCAN.shape, shift=field)[0].numpy()
    unmoved = sample(phantom[0], voxel_map(GRID.affine, scan.affine), SCAN.shape)[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99999
    assert np.corrcoef(unmoved.ravel(), theirs.ravel())[0, 1] < 0.95  # the field matters


def test_the_header_is_that_of_a_vector_field_on_the_scan(tmp_path, ddf):
    write_displacement(
        tmp_path / "warp.nii.gz", field_on_scan(ddf, GRID, SCAN), GRID, SCAN, header_of(SCAN.affine, (1, 2))
    )
    image = nib.load(tmp_path / "warp.nii.gz")
    assert image.shape == (*SCAN.shape, 1, 3) and image.get_data_dtype() == np.float32
    assert image.header.get_intent()[0] == "vector" and int(image.header["sform_code"]) == 2
    np.testing.assert_allclose(image.affine, SCAN.affine, atol=1e-5)


def test_millimetres_left_and_posterior_are_positive(tmp_path):
    right, front, up = torch.zeros(3, 32, 32, 32), torch.zeros(3, 32, 32, 32), torch.zeros(3, 32, 32, 32)
    right[0], front[1], up[2] = 1, 2, 3
    for ddf, vector in ((right, (-6, 0, 0)), (front, (0, -12, 0)), (up, (0, 0, 18))):
        write_displacement(tmp_path / "warp.nii.gz", field_on_scan(ddf, GRID, SCAN), GRID, SCAN)
        np.testing.assert_allclose(nib.load(tmp_path / "warp.nii.gz").dataobj[20, 20, 20, 0], vector, atol=1e-4)


def test_on_the_grid_itself_it_is_the_networks_own_warp(phantom, ddf):
    field = field_on_scan(ddf, GRID, GRID)
    torch.testing.assert_close(field, ddf, atol=1e-4, rtol=0)
    ours = sample(phantom[0], np.eye(4), GRID.shape, padding_mode="border", shift=field)
    torch.testing.assert_close(ours, warp(phantom[0][None], ddf[None])[0], atol=1e-4, rtol=0)


def test_labels_follow_the_field(phantom, ddf):
    field = field_on_scan(ddf, GRID, SCAN)
    labels = labels_under_field(phantom[1], field, GRID, SCAN)
    assert labels.shape == (1, *SCAN.shape) and labels.dtype == torch.uint8
    matrix = voxel_map(GRID.affine, SCAN.affine)
    for value in (2, 10, 13):
        share = sample((phantom[1] == value).float(), matrix, SCAN.shape, shift=field)
        assert bool((labels[share > 0.5] == value).all()) and not bool((labels[share == 0] == value).any())
    far = Grid(SCAN.affine + np.array([[0, 0, 0, 900.0]] + 3 * [[0, 0, 0, 0]]), SCAN.shape)
    assert not labels_under_field(phantom[1], torch.zeros(3, *SCAN.shape), GRID, far).any()

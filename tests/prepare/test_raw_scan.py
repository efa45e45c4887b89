from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from fedsr_monai.inference.segment import segment
from fedsr_monai.networks import FedSRNet, Prediction
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.displacement import field_on_scan, write_displacement
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import header_of
from fedsr_monai.spatial.nifti import write_volume
from fedsr_monai.spatial.resampling import sample, voxel_map
from tests.helpers.itk_warp import warped_by_itk
from tests.helpers.raw_scans import SHAPE, atlas, raw_scan, save

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path):
    image, label, grid = atlas()
    write_volume(tmp_path / "site/images/a.nii.gz", image, grid.affine)
    return write_site(tmp_path / "site", "site", image, label, grid.affine, [{"image": "images/a.nii.gz"}])


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def ddf() -> torch.Tensor:
    coarse = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=SHAPE, mode="trilinear", align_corners=True)


def test_a_raw_scan_is_labelled_in_its_own_space_and_the_field_maps_the_atlas_to_it(
    tmp_path, site, weights, monkeypatch, ddf
):
    image, label, grid = atlas()
    volume, labels, own, _ = raw_scan(4)
    path = save(tmp_path / "scan.nii.gz", volume, own.affine)
    logits = 8 * torch.nn.functional.one_hot(torch.from_numpy(label)[None].long(), 14).movedim(-1, 1).float()
    seen = {}

    def predict(self, scan):
        seen["scan"] = scan
        return Prediction(logits, 0.3 * ddf)  # small, so that both heads agree as those of a good result do

    monkeypatch.setattr(FedSRNet, "predict", predict)
    monkeypatch.setattr("fedsr_monai.transforms.resample_to_grid.FINE", 0)  # one pass: it answers the same to any image
    (written,) = segment([path], tmp_path / "out", weights=weights, site=site, register=True, raw=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        "scan_dseg.nii.gz",
        "scan_warp.nii.gz",
        "scan_alignment.png",
    }

    result, source = nib.load(written), nib.load(path)
    assert (
        result.shape == source.shape
        and result.get_data_dtype() == np.uint8
        and np.array_equal(result.affine, source.affine)
    )
    assert [int(result.header[code]) for code in ("qform_code", "sform_code")] == [
        int(source.header[code]) for code in ("qform_code", "sform_code")
    ]
    found = np.asarray(result.dataobj)
    dice = [2 * ((found == k) & (labels == k)).sum() / ((found == k).sum() + (labels == k).sum()) for k in (2, 3, 13)]
    assert (
        min(dice) > 0.7
    )  # 6 mm voxels; a network that answers with the atlas' labels leaves them all to the affine map

    # the field alone, by ITK, and our transformer followed by the affine map, give the same image in the scan's space
    theirs = warped_by_itk(site / "atlas/image.nii.gz", tmp_path / "out/scan_warp.nii.gz", path)
    vectors = np.asarray(nib.load(tmp_path / "out/scan_warp.nii.gz").dataobj)[:, :, :, 0]
    points = (
        np.stack(np.meshgrid(*map(np.arange, own.shape), indexing="ij"), -1) @ own.affine[:3, :3].T + own.affine[:3, 3]
    )
    places = points + vectors * (-1, -1, 1)
    assert np.corrcoef(theirs.ravel(), volume.ravel())[0, 1] > 0.6
    inside = sample_at(image, grid, places)
    assert np.abs(inside - theirs).max() < 2e-3
    assert seen["scan"].shape[2:] == SHAPE and np.corrcoef(seen["scan"].ravel(), image.ravel())[0, 1] > 0.9


def sample_at(image: np.ndarray, grid: Grid, places: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(grid.affine)
    return ndimage.map_coordinates(image, np.moveaxis(places @ inverse[:3, :3].T + inverse[:3, 3], -1, 0), order=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_composed_field_is_the_transformer_then_the_affine_map(tmp_path, ddf, seed):
    """ITK and ANTs, given the field alone, find the atlas where our transformer and the affine map put it."""
    image, _, grid = atlas()
    volume, _, own, place = raw_scan(seed)
    placed = Grid(np.linalg.inv(place) @ own.affine, own.shape)
    field = field_on_scan(ddf[0], grid, placed)
    write_displacement(tmp_path / "warp.nii.gz", field, grid, placed, header_of(own.affine))
    write_volume(tmp_path / "atlas.nii.gz", image, grid.affine)
    save(tmp_path / "scan.nii.gz", volume.astype(np.float32), own.affine)
    theirs = warped_by_itk(tmp_path / "atlas.nii.gz", tmp_path / "warp.nii.gz", tmp_path / "scan.nii.gz")
    ours = sample(torch.from_numpy(image)[None], voxel_map(grid.affine, placed.affine), own.shape, shift=field)[
        0
    ].numpy()
    assert np.abs(ours - theirs).max() < 2e-3
    unmoved = sample(torch.from_numpy(image)[None], voxel_map(grid.affine, placed.affine), own.shape)[0].numpy()
    assert np.corrcoef(unmoved.ravel(), theirs.ravel())[0, 1] < 0.99  # the field matters


def test_ants_agrees(tmp_path, ddf):
    ants = pytest.importorskip("ants", reason="ANTs is not installed")
    image, _, grid = atlas()
    volume, _, own, place = raw_scan(0)
    placed = Grid(np.linalg.inv(place) @ own.affine, own.shape)
    field = field_on_scan(ddf[0], grid, placed)
    write_displacement(tmp_path / "warp.nii.gz", field, grid, placed, header_of(own.affine))
    write_volume(tmp_path / "atlas.nii.gz", image, grid.affine)
    save(tmp_path / "scan.nii.gz", volume.astype(np.float32), own.affine)
    fixed, moving = (ants.image_read(str(tmp_path / name)) for name in ("scan.nii.gz", "atlas.nii.gz"))
    theirs = ants.apply_transforms(fixed, moving, [str(tmp_path / "warp.nii.gz")], interpolator="linear").numpy()
    ours = sample(torch.from_numpy(image)[None], voxel_map(grid.affine, placed.affine), own.shape, shift=field)[
        0
    ].numpy()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9999

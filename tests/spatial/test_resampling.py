from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, SpatialResample
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.spatial import warping
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import (
    is_identity,
    low_pass,
    most_likely,
    one_hot_at,
    resample_labels,
    sample,
    sample_labels,
    voxel_map,
)
from fedsr_monai.transforms import ResampleToGrid, ResampleToGridd

GRID = standard_grid(6.0, (32, 32, 32))


def oblique(spacing, shape, angles=(9.0, -14.0, 20.0), order=(2, 0, 1), signs=(-1, 1, -1)) -> Grid:
    """A grid around the same middle with permuted, flipped and turned axes."""
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ (np.eye(3)[:, order] * signs)
    affine[:3, :3] = turned * spacing
    middle = GRID.affine @ [15.5, 15.5, 15.5, 1]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(affine, tuple(shape))


def on(grid: Grid, values: torch.Tensor) -> MetaTensor:
    return MetaTensor(values, affine=torch.as_tensor(grid.affine))


def world(grid: Grid) -> np.ndarray:
    """Millimetres [3, D, H, W] of the voxels of a grid."""
    indices = np.indices(grid.shape).reshape(3, -1)
    return (grid.affine[:3, :3] @ indices + grid.affine[:3, 3:]).reshape(3, *grid.shape)


def dice(a: torch.Tensor, b: torch.Tensor, labels) -> float:
    return float(
        np.mean([2 * int(((a == k) & (b == k)).sum()) / (int((a == k).sum()) + int((b == k).sum())) for k in labels])
    )


def test_a_linear_function_of_position_stays_itself_on_any_grid():
    scan = oblique((4.0, 5.0, 3.0), (52, 44, 70))
    ramp = np.tensordot([0.01, -0.02, 0.03], world(scan), 1)
    result = ResampleToGrid(GRID)(on(scan, torch.from_numpy(ramp)[None].float()))
    expected = np.tensordot([0.01, -0.02, 0.03], world(GRID), 1)
    middle = (slice(10, 22),) * 3  # away from the box of the scan, outside of which there is 0
    np.testing.assert_allclose(result[0].numpy()[middle], expected[middle], atol=1e-4)
    np.testing.assert_allclose(result.affine.numpy(), GRID.affine)


def test_agrees_with_monai_where_nothing_is_filtered():
    scan = oblique((7.0, 6.5, 8.0), (30, 33, 28))
    image = on(scan, torch.rand(1, *scan.shape, generator=torch.Generator().manual_seed(0)))
    expected = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True)(
        image.clone(), dst_affine=torch.as_tensor(GRID.affine), spatial_size=GRID.shape
    )
    torch.testing.assert_close(ResampleToGrid(GRID)(image).as_tensor(), expected.as_tensor().float(), atol=1e-4, rtol=0)


def test_a_scan_on_the_grid_passes_unchanged():
    image = torch.rand(1, 32, 32, 32)
    nearly = GRID.affine.copy()
    nearly[:3] += 1e-5  # what a header in float32 does to it
    assert torch.equal(ResampleToGrid(GRID)(MetaTensor(image, affine=torch.as_tensor(nearly))).as_tensor(), image)
    assert not is_identity(voxel_map(GRID.affine, GRID.affine + 0.1), GRID.shape, GRID.shape)


def test_what_the_coarser_grid_cannot_hold_is_filtered_out():
    checkerboard = np.indices((40, 40, 40)).sum(axis=0) % 2
    coarse = np.diag([4.0, 4.0, 4.0, 1.0])
    filtered = low_pass(checkerboard.astype(np.float32), coarse)[10:30, 10:30, 10:30]
    assert np.abs(filtered - 0.5).max() < 1e-3
    for kept in (np.eye(4), np.diag([0.5, 0.5, 0.5, 1.0])):
        assert np.array_equal(low_pass(checkerboard, kept), checkerboard)


def test_anisotropic_scans_are_filtered_along_fine_axes_only():
    impulse = np.zeros((21, 21, 21), np.float32)
    impulse[10, 10, 10] = 1
    spread = low_pass(impulse, np.diag([4.0, 1.0, 0.5, 1.0]))
    assert spread[:, 10, 10].astype(bool).sum() > 3
    assert spread[10, :, 10].astype(bool).sum() == spread[10, 10, :].astype(bool).sum() == 1


def test_labels_forward_and_backward_on_an_oblique_grid_of_equal_spacing(phantom):
    fine = Grid(
        np.block([[np.eye(3) * 3, GRID.affine[:3, 3:] - 1.5], [np.zeros((1, 3)), np.ones((1, 1))]]), (64, 64, 64)
    )
    label = torch.nn.functional.interpolate(phantom[1][None].float(), scale_factor=2, mode="nearest")[0]
    scan = oblique((3.0, 3.0, 3.0), (66, 66, 66))
    there = ResampleToGrid(scan, kind="label")
    moved = there(on(fine, label))
    back = there.inverse(moved)
    assert set(torch.unique(moved.as_tensor()).tolist()) == set(range(14))
    assert dice(back.as_tensor(), label, range(1, 14)) > 0.97
    np.testing.assert_allclose(back.affine.numpy(), fine.affine)
    nearest = sample(
        label, voxel_map(fine.affine, scan.affine), scan.shape
    )  # what is between the labels is not a label
    assert set(torch.unique(nearest).tolist()) - set(range(14))


def test_labels_outside_the_volume_are_background():
    label = torch.ones(1, 8, 8, 8, dtype=torch.uint8)
    result = resample_labels(label, np.array([[1.0, 0, 0, -20], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (8, 8, 8))
    assert result.dtype == torch.uint8 and not result.any()


def test_the_inverse_is_what_invertd_calls(phantom):
    scan = oblique((6.0, 6.0, 6.0), (34, 34, 34))
    image = ResampleToGrid(scan)(on(GRID, phantom[0]))
    image.applied_operations = []
    pipeline = Compose([ResampleToGridd("image", GRID)])
    data = pipeline({"image": image})
    data["pred"] = data["image"].clone()
    inverted = Invertd("pred", transform=pipeline, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert inverted.shape == image.shape
    np.testing.assert_allclose(inverted.affine.numpy(), scan.affine, atol=1e-6)
    assert float((inverted - image).abs().mean()) < 0.03  # interpolated twice


def test_kinds_by_key_and_missing_keys(phantom):
    scan = oblique((6.0, 6.0, 6.0), (34, 34, 34))
    resample = ResampleToGridd(["image", "label"], GRID, kind=["image", "label"], allow_missing_keys=True)
    both = {"image": on(scan, torch.rand(1, 34, 34, 34)), "label": on(scan, torch.full((1, 34, 34, 34), 7.0))}
    assert set(torch.unique(resample(both)["label"].as_tensor()).tolist()) == {0, 7}
    assert set(resample({"image": both["image"]})) == {"image"}
    with pytest.raises(KeyError, match="label"):
        ResampleToGridd(["image", "label"], GRID)({"image": both["image"]})
    with pytest.raises(
        ValueError, match=r"^ResampleToGrid\(\) 'kind' is 'mask'; expected one of \['image', 'label'\]$"
    ):
        ResampleToGrid(GRID, kind="mask")


def test_slabs_and_one_piece_are_the_same(monkeypatch):
    volume = torch.rand(2, 20, 20, 20)
    matrix = voxel_map(GRID.affine, oblique((5.0, 5.0, 5.0), (17, 23, 19)).affine)
    whole = sample(volume, matrix, (17, 23, 19))
    monkeypatch.setattr("fedsr_monai.spatial.resampling.SLAB", 1)
    assert torch.equal(sample(volume, matrix, (17, 23, 19)), whole)
    assert torch.equal(
        sample(volume, matrix, (17, 23, 19), lambda part: part.argmax(0, keepdim=True)), whole.argmax(0, keepdim=True)
    )


def test_fine_scans_go_to_the_finer_grid_at_the_resolution_of_the_grid():
    ramp = np.add.outer(np.add.outer(np.arange(40.0), 2 * np.arange(40.0)), 3 * np.arange(40.0)) + 1
    scan = Grid(np.diag([1.0, 1.0, 1.0, 1.0]), (40, 40, 40))
    coarse = Grid(np.array([[2.0, 0, 0, 4], [0, 2, 0, 4], [0, 0, 2, 4], [0, 0, 0, 1]]), (16, 16, 16))
    volume = MetaTensor(torch.from_numpy(ramp)[None].float(), affine=torch.as_tensor(scan.affine))
    there = ResampleToGrid(coarse, fineness=2)
    fine, plain = there(volume), ResampleToGrid(coarse)(volume)
    assert fine.shape == (1, 32, 32, 32) and plain.shape == (1, 16, 16, 16)
    torch.testing.assert_close(fine[:, ::2, ::2, ::2].as_tensor(), plain.as_tensor())
    torch.testing.assert_close(
        fine.as_tensor()[0, 1:21, 1:21, 1:21], torch.from_numpy(ramp)[5:25, 5:25, 5:25].float(), atol=1e-2, rtol=0
    )
    back = there.inverse(fine)
    assert back.shape == volume.shape
    torch.testing.assert_close(
        back.as_tensor()[0, 8:28, 8:28, 8:28], volume.as_tensor()[0, 8:28, 8:28, 8:28], atol=0.1, rtol=0
    )
    assert there(MetaTensor(torch.ones(1, 20, 20, 20), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))).shape == (
        1,
        16,
        16,
        16,
    )
    with pytest.raises(ValueError, match="'fineness' is 2 for kind 'label'"):
        ResampleToGrid(coarse, "label", 2)


@pytest.mark.parametrize("kind", ["label map", "probabilities"])
@pytest.mark.parametrize("shifted", [False, True])
def test_labels_are_those_of_all_fractions_interpolated_everywhere(phantom, kind, shifted):
    """Also beyond the volume, which is background."""
    torch.manual_seed(0)
    fractions = torch.nn.functional.one_hot(phantom[1][0].long(), 14).movedim(-1, 0).float()
    if kind == "probabilities":
        fractions = (3 * fractions + torch.rand_like(fractions)).softmax(dim=0)
    volume, grid = standard_grid(6.0, (32, 32, 32)), oblique((5.0, 4.0, 6.0), (48, 60, 44))
    matrix = voxel_map(volume.affine, grid.affine)
    shift = 6 * torch.rand(3, 1, 1, 1) + torch.randn(3, *grid.shape) if shifted else None
    values = sample(fractions, matrix, grid.shape, shift=shift)
    values[0] = 1 - values[1:].sum(dim=0)
    expected = most_likely(values)
    found = sample_labels(fractions, matrix, grid.shape, shift)
    assert (found != expected).float().mean() < 1e-5  # two labels may tie but for rounding
    assert len(torch.unique(found)) == 14
    if kind == "label map":  # without its one-hot map
        found = sample_labels(None, matrix, grid.shape, shift, labels=phantom[1][0].to(torch.uint8))
        assert (found != expected).float().mean() < 1e-5


def test_a_one_hot_map_that_is_not_made(phantom):
    torch.manual_seed(0)
    label = phantom[1][0].to(torch.uint8)
    places = [40 * torch.rand(1000) - 4 for _ in range(3)]
    one_hot = torch.nn.functional.one_hot(label.long(), 14).movedim(-1, 0).float()
    expected = warping.sample(one_hot[None], [place[None, None, None] for place in places], "zeros")[0, :, 0, 0]
    torch.testing.assert_close(one_hot_at(label, places, 14), expected, atol=1e-5, rtol=0)
    assert float(expected.sum(dim=0).min()) == 0  # some lie outside


def test_a_position_that_is_no_number_is_background(phantom):
    fractions = torch.nn.functional.one_hot(phantom[1][0].long(), 14).movedim(-1, 0).float()
    assert not sample_labels(fractions, np.eye(4), (32, 32, 32), torch.full((3, 32, 32, 32), torch.nan)).any()
    label = phantom[1][0].to(torch.uint8)
    assert not sample_labels(None, np.eye(4), (32, 32, 32), torch.full((3, 32, 32, 32), torch.nan), label).any()


def test_the_most_likely_label_is_the_first_of_those_that_tie():
    assert most_likely(torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]])).tolist() == [[0, 1]]

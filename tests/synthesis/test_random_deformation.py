from __future__ import annotations

import pytest
import torch

from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis import RandomDeformation
from fedsr_monai.synthesis.random_deformation import smooth_noise


def field_of(label: torch.Tensor, seed: int = 0, **options) -> torch.Tensor:
    torch.manual_seed(seed)
    return RandomDeformation(6.0, **options)(label[None])


STILL = {"scales": (), "rotation": 0.0, "zoom": (1.0, 1.0), "shift": 0.0, "growth": 0.0}


def test_noise_has_unit_variance_and_the_step_that_is_asked():
    torch.manual_seed(0)
    fine, coarse = (smooth_noise((32, 40, 36), step, 3, torch.device("cpu")) for step in (2.0, 12.0))
    for noise in (fine, coarse):
        assert noise.shape == (1, 3, 32, 40, 36) and noise.std().item() == pytest.approx(1, abs=1e-3)
    assert fine.diff(dim=2).std() > 3 * coarse.diff(dim=2).std()


def test_noise_is_a_coarse_grid_resampled_at_a_random_offset():
    shape, step = (32, 40, 36), 7.0
    torch.manual_seed(3)
    nodes = torch.randn(2, 7, 8, 8)
    sizes = [49, 56, 56]
    starts = [int(torch.randint(0, size - n + 1, ())) for size, n in zip(sizes, shape)]
    whole = torch.nn.functional.interpolate(nodes[None], size=sizes, mode="trilinear", align_corners=True)
    window = whole[(..., *[slice(a, a + n) for a, n in zip(starts, shape)])]
    torch.manual_seed(3)
    noise = smooth_noise(shape, step, 2, torch.device("cpu"))
    torch.testing.assert_close(noise, window / window.std(), atol=1e-5, rtol=1e-5)


def test_same_seed_same_field(phantom):
    one, same, other = (field_of(phantom[1], seed) for seed in (3, 3, 4))
    assert one.shape == (1, 3, 32, 32, 32)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_fields_deform_without_folding(phantom):
    for seed in range(4):
        ddf = field_of(phantom[1], seed)
        assert 0.1 < ddf.square().sum(1).sqrt().mean() < 5  # voxels of 6 mm
        jacobian = torch.stack([torch.stack(torch.gradient(ddf[0, i])) for i in range(3)]) + torch.eye(3).view(
            3, 3, 1, 1, 1
        )
        assert (torch.linalg.det(jacobian.permute(2, 3, 4, 0, 1)) <= 0).float().mean() < 1e-3


def test_nothing_asked_leaves_a_zoom_of_few_percent(phantom):
    ddf = field_of(phantom[1], **STILL)
    centre = ddf[:, :, 15:17, 15:17, 15:17].abs().max()
    assert centre < 0.1 and ddf.abs().max() < 0.2 * 16


def test_zoom_below_one_makes_the_brain_smaller(phantom):
    volumes = []
    for zoom in (0.8, 1.0, 1.2):
        ddf = field_of(phantom[1], **STILL | {"zoom": (zoom, zoom)})
        volumes.append((warp(phantom[1][None].float(), ddf, mode="nearest") > 0).sum().item())
    assert volumes == sorted(volumes) and volumes[0] < 0.8 * volumes[1]


def test_growth_moves_the_boundary_of_one_structure(phantom):
    ventricles = torch.isin(phantom[1], torch.tensor([1, 4], dtype=torch.uint8))
    label = ventricles.to(torch.uint8)  # whichever structure is drawn, it is this one
    ratios = []
    for seed in range(6):
        still, grown = (field_of(label, seed, **STILL | {"growth": growth}) for growth in (0.0, 12.0))
        before, after = (warp(label[None].float(), ddf, mode="nearest").sum().item() for ddf in (still, grown))
        ratios.append(after / before)
    assert max(ratios) > 1.1 and min(ratios) < 0.95


def test_dilation_widens_the_ventricles_and_little_else(phantom):
    label = phantom[1][None].float()
    grown, brains = [], []
    for seed in range(6):
        ddf = field_of(phantom[1], seed, **STILL | {"dilation": 30.0, "dilated": 1.0})  # 5 voxels of 6 mm
        after = warp(label, ddf, mode="nearest")
        grown.append(((after == 4).sum() / (label == 4).sum()).item())
        brains.append(((after > 0).sum() / (label > 0).sum()).item())
    assert min(grown) > 0.9 and max(grown) > 2
    assert 0.95 < min(brains) and max(brains) < 1.1


def test_dilation_happens_in_the_fraction_of_draws_that_is_asked(phantom):
    label = phantom[1][None].float()

    def wide(dilated: float) -> int:
        torch.manual_seed(0)
        draw = RandomDeformation(6.0, **STILL | {"dilation": 30.0, "dilated": dilated})
        volumes = [(warp(label, draw(phantom[1][None]), mode="nearest") == 4).sum() for _ in range(30)]
        return sum(bool(volume > 1.3 * (label == 4).sum()) for volume in volumes)

    assert wide(0.0) == 0 and 4 < wide(0.4) < 18 and wide(1.0) > 22


def test_registration_is_applied_first(phantom):
    ddf = torch.zeros(1, 3, 16, 16, 16)
    ddf[:, 0] = 1.0  # two voxels of the full grid
    torch.manual_seed(0)
    with_registration = RandomDeformation(6.0)(phantom[1][None], ddf)
    expected = field_of(phantom[1])
    expected[:, 0] += 2.0
    torch.testing.assert_close(with_registration, expected, atol=1e-5, rtol=0)


def test_odd_grids(phantom):
    assert field_of(phantom[1][:, :27, :30, :31]).shape == (1, 3, 27, 30, 31)

from __future__ import annotations

import itertools

import pytest
import torch
from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from torch.nn import functional as F

from fedsr_monai.losses import local_cross_correlation, smoothness
from fedsr_monai.losses.registration import _BoxMean, box_mean_plain, local_cross_correlation_plain


def images(seed: int = 0, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    a = F.avg_pool3d(torch.rand(1, 1, size, size, size), 3, 1, 1)
    b = 0.5 * a + 0.5 * F.avg_pool3d(torch.rand(1, 1, size, size, size), 3, 1, 1)
    return a, b


def reference(moving: torch.Tensor, fixed: torch.Tensor, window: int = 9) -> torch.Tensor:
    """The plain definition in float64."""
    return local_cross_correlation_plain(moving.double(), fixed.double(), window)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 6])
def test_both_box_means_average_over_the_window(radius):
    torch.manual_seed(0)
    volume = torch.rand(2, 1, 9, 14, 11)
    sides = [range(n) for n in volume.shape[2:]]
    expected = torch.empty_like(volume)
    for i, j, k in itertools.product(*sides):
        window = [slice(max(n - radius, 0), n + radius + 1) for n in (i, j, k)]
        expected[:, :, i, j, k] = volume[(..., *window)].mean(dim=(2, 3, 4))
    torch.testing.assert_close(_BoxMean.apply(volume, radius), expected)
    torch.testing.assert_close(box_mean_plain(volume, radius), expected)


def test_box_mean_gradient():
    torch.manual_seed(0)
    volume = torch.rand(1, 2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _BoxMean.apply(v, 1), volume)


@pytest.mark.parametrize("window", [3, 5, 9])
def test_value_and_gradient_are_those_of_the_definition(window):
    a, b = images()
    ours, theirs = a.clone().requires_grad_(True), a.clone().requires_grad_(True)
    value, expected = local_cross_correlation(ours, b, window), reference(theirs, b, window)
    assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-3 * float(theirs.grad.abs().max()), rtol=0)


def test_agrees_with_monai_away_from_the_border():
    """On images in [0, 1] whose border is empty, where MONAI's loss is in its range and the window does not matter."""
    a, b = images(size=24)
    inside = F.pad(torch.ones(1, 1, 10, 10, 10), [7] * 6)
    monai = LocalNormalizedCrossCorrelationLoss(kernel_size=5, smooth_nr=0.0, smooth_dr=1e-4 * 125)(
        a * inside, b * inside
    )
    assert local_cross_correlation(a * inside, b * inside, window=5, eps=1e-4).item() == pytest.approx(
        monai.item(), abs=0.02
    )


def test_identical_images_reach_the_lower_end():
    a, _ = images()
    assert -1 <= local_cross_correlation(a, a, eps=1e-8).item() < -0.999


@pytest.mark.parametrize(
    "change", [lambda x: (x - x.mean()) / x.std(), lambda x: x + 1, lambda x: 3 * x - 5, lambda x: x + 100]
)
def test_stays_in_range_and_does_not_see_brightness(change):
    """z-scores and constant backgrounds, which lead MONAI's loss to -6 and -149."""
    a, b = images()
    value = local_cross_correlation(change(a), change(b)).item()
    assert -1 <= value <= 0
    if change(torch.zeros(2)).abs().max() <= 5:
        # The range is rescaled by some of these, so that eps, not brightness, makes the difference that is left.
        assert value == pytest.approx(reference(change(a), change(b)).item(), abs=5e-3)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_flat_images_are_uncorrelated(level):
    flat = torch.full((1, 1, 12, 12, 12), level)
    assert local_cross_correlation(flat, flat).item() == pytest.approx(0, abs=1e-6)


def test_inverted_contrast_counts_as_alike():
    a, _ = images()
    assert local_cross_correlation(1 - a, a).item() == pytest.approx(local_cross_correlation(a, a).item(), abs=1e-5)


def test_worse_alignment_costs_more():
    a, _ = images(size=24)
    losses = [local_cross_correlation(a.roll(shift, dims=2), a).item() for shift in (0, 1, 2, 4)]
    assert losses == sorted(losses)


def test_errors_name_the_argument():
    a, b = images()
    with pytest.raises(ValueError, match=r"^local_cross_correlation\(\) 'window' must be odd, got 8$"):
        local_cross_correlation(a, b, window=8)
    with pytest.raises(
        ValueError,
        match=r"^local_cross_correlation\(\) 'moving' has shape \(1, 1, 8, 16, 16\), 'fixed' \(1, 1, 16, 16, 16\); they",
    ):
        local_cross_correlation(a[:, :, :8], b)


def test_a_checkerboard_is_rough():
    steps = torch.arange(8)
    checkerboard = 1 - 2.0 * ((steps[:, None, None] + steps[:, None] + steps) % 2)
    ddf = checkerboard.expand(1, 3, 8, 8, 8)
    assert smoothness(ddf).item() == 12  # each of three differences is 2
    assert DiffusionLoss()(ddf.clone()).item() < 1e-6  # central differences do not see it


def test_smoothness_of_a_linear_field_is_its_squared_slope():
    ddf = torch.zeros(1, 3, 6, 7, 8)
    ddf[:, 0] = 0.5 * torch.arange(7.0)[:, None]
    assert smoothness(ddf).item() == pytest.approx(0.25 / 3)
    assert smoothness(torch.full((1, 3, 4, 4, 4), 7.0)).item() == 0

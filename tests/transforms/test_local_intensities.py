from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import voxel_map
from fedsr_monai.transforms import LabelsOnScand, ResampleToGridd
from fedsr_monai.transforms.labels_on_scan import SURE, is_finer, labels_on_grid
from fedsr_monai.transforms.local_intensities import (
    NOISE,
    NOISY,
    WEIGHT,
    LocalIntensities,
    noise_level,
    with_intensities,
)

COARSE = Grid(np.diag([2.0, 2.0, 2.0, 1.0]), (24, 24, 24))
FINE = COARSE.finer(2)
MEANS = torch.tensor([100.0, 60.0, 90.0])  # what is no structure, and two that meet


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """Two structures [48, 48, 48] at 1 mm, whose border has waves of 8 mm that a grid of 2 mm barely shows."""
    x, y, z = torch.meshgrid(*3 * [torch.arange(48.0)], indexing="ij")
    waves = 23.5 + 2.5 * torch.sin(y * (2 * torch.pi / 8)) * torch.sin(z * (2 * torch.pi / 8))
    label = torch.where(x < waves, 1, 2)
    rim = torch.stack([x, y, z]).sub(23.5).abs().amax(dim=0) > 18
    return torch.where(rim, 0, label)


@pytest.fixture(scope="module")
def probabilities(truth) -> torch.Tensor:
    """What a network at 2 mm would say: the waves are blurred away."""
    one_hot = F.one_hot(truth, 3).movedim(-1, 0).float()
    blurred = F.avg_pool3d(F.pad(one_hot[None], 6 * [4], mode="replicate"), 9, stride=1)[0]
    return blurred[:, ::2, ::2, ::2]


def image_of(truth: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return (MEANS[truth] + 4 * torch.randn(truth.shape))[None]


def labels(scan: torch.Tensor, probabilities: torch.Tensor, affine: np.ndarray = FINE.affine) -> torch.Tensor:
    evidence = LocalIntensities(scan, affine, probabilities, COARSE.affine).evidence()
    return labels_on_grid(probabilities, voxel_map(COARSE.affine, affine), tuple(scan.shape[1:]), evidence)[0]


def test_borders_follow_the_scan(truth, probabilities):
    inside = truth > 0
    plain = labels_on_grid(probabilities, voxel_map(COARSE.affine, FINE.affine), FINE.shape)[0]
    found = labels(image_of(truth), probabilities)
    wrong = [int(((result != truth) & inside).sum()) for result in (plain, found)]
    assert wrong[0] > 2000 and wrong[1] < wrong[0] / 4


def test_neither_scale_nor_bias_field_matters(truth, probabilities):
    image = image_of(truth)
    found = labels(image, probabilities)
    assert float((labels(1000 * image, probabilities) != found).float().mean()) < 1e-4
    field = torch.linspace(0.75, 1.25, 48)[None, :, None, None] * torch.linspace(1.15, 0.85, 48)
    wrong = int(((labels(image * field, probabilities) != truth) & (truth > 0)).sum())
    assert wrong < 2 * int(((found != truth) & (truth > 0)).sum()) + 50


def test_a_turned_file_gives_the_same_labels(truth, probabilities):
    image = image_of(truth)
    turned = image.permute(0, 2, 3, 1).flip(1)
    affine = FINE.affine @ np.array([[0, 0, 1, 0], [-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    expected = labels(image, probabilities).permute(1, 2, 0).flip(0)
    assert float((labels(turned, probabilities, affine) != expected).float().mean()) < 5e-4


def test_what_the_network_is_sure_of_stands(truth):
    certain = F.one_hot(truth[::2, ::2, ::2], 3).movedim(-1, 0) * (SURE + 0.01 - (1 - SURE - 0.01) / 2)
    certain = certain + (1 - SURE - 0.01) / 2
    misleading = image_of(3 - truth.clamp(min=1))
    found = labels(misleading, certain)
    assert torch.equal(found[::2, ::2, ::2].long(), truth[::2, ::2, ::2])


def test_mean_and_variance_are_those_of_the_scan():
    torch.manual_seed(0)
    scan = (50 + 5 * torch.randn(1, 48, 48, 48)).clamp(min=1)
    only = torch.zeros(2, 24, 24, 24)
    only[1] = 1
    model = LocalIntensities(scan, FINE.affine, only, COARSE.affine)
    mean, variance = model.model[0, 1, 3:9, 3:9, 3:9] * model.top, model.model[0, 2, 3:9, 3:9, 3:9] - NOISE**2
    assert mean.mean() == pytest.approx(50, abs=0.3) and mean.std() < 0.5
    assert variance.mean().sqrt() * model.top == pytest.approx(5, abs=0.3)


def test_voxels_that_were_cut_away_say_nothing(truth, probabilities):
    scan = image_of(truth)
    scan[0, :24] = 0
    model = LocalIntensities(scan, FINE.affine, probabilities, COARSE.affine)
    values = model.log_likelihood(torch.tensor([0.0, 60.0]), 3 * [torch.tensor([12.0, 12.0])])
    assert not values[:, 0].any() and values[:, 1].min() < -1
    # and they do not darken the means of what is left
    assert model.model[0, 2].min() * model.top > 85


def test_an_empty_scan_or_an_absent_label_does_no_harm(probabilities):
    empty = torch.zeros(1, *FINE.shape)
    plain = labels_on_grid(probabilities, voxel_map(COARSE.affine, FINE.affine), FINE.shape)[0]
    assert torch.equal(labels(empty, probabilities), plain)
    padded = torch.cat([probabilities, torch.zeros(1, *COARSE.shape)])
    found = with_intensities(padded.clamp(min=1e-6).log(), COARSE.affine, torch.rand(1, *FINE.shape), FINE.affine)
    assert torch.isfinite(found).all() and not (found.argmax(dim=0) == 3).any()


@pytest.mark.parametrize(("spacing", "finer"), [(1.0, True), (1.4, True), (1.8, False), (2.0, False)])
def test_only_scans_finer_than_the_network_take_part(spacing, finer):
    torch.manual_seed(0)
    grid = Grid(np.diag([2.0, 2.0, 2.0, 1.0]), (16, 16, 16))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    size = round(32 / spacing)
    scan = MetaTensor(torch.rand(1, size, size, size) + 0.5, affine=torch.as_tensor(affine))
    data = ResampleToGridd("image", grid)({"image": scan})
    assert is_finer(data["image"]) == finer
    data |= {"pred": torch.randn(3, *grid.shape), "scan": scan}
    with_scan, without, absent = (
        LabelsOnScand("pred", scan_key=key)(part)["pred"]
        for key, part in (("scan", data), (None, data), ("scan", {k: v for k, v in data.items() if k != "scan"}))
    )
    assert torch.equal(without, absent)
    assert torch.equal(with_scan, without) != finer


@pytest.mark.parametrize("sd", [2.0, 10.0])
def test_noise_is_found_and_counts_against_the_intensities(truth, probabilities, sd):
    torch.manual_seed(0)
    scan = MEANS[truth] + sd * torch.randn(truth.shape)
    assert noise_level(scan) == pytest.approx(sd, rel=0.15)
    model, scaled = (LocalIntensities(s[None], FINE.affine, probabilities, COARSE.affine) for s in (scan, 1000 * scan))
    assert model.weight == pytest.approx(WEIGHT / (1 + (sd / model.top / NOISY) ** 2), rel=0.2)
    assert scaled.weight == pytest.approx(model.weight, rel=1e-3)

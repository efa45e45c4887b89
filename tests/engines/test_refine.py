from __future__ import annotations

import torch
from monai.networks.layers import GaussianFilter

from fedsr_monai.engines.refine import refine_registration
from fedsr_monai.evaluation.registration import folded_percent
from fedsr_monai.spatial.warping import warp

SHAPE = (32, 28, 24)


def atlas() -> torch.Tensor:
    """Return a ball in a ball, ids [1, 1, D, H, W]."""
    axes = torch.meshgrid([torch.arange(n) - n / 2 + 0.5 for n in SHAPE], indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    return ((radius < 10).to(torch.uint8) + (radius < 6).to(torch.uint8))[None, None]


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([labels == k for k in range(3)], dim=1).float()


def moved(ddf: torch.Tensor) -> torch.Tensor:
    return warp(one_hot(atlas()), ddf)


def overlap(ddf: torch.Tensor, fractions: torch.Tensor) -> float:
    found, truth = moved(ddf).argmax(1), fractions.argmax(1)
    values = [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2)]
    return float(sum(values)) / 2


def test_warped_labels_meet_the_predicted_ones_without_folds():
    torch.manual_seed(0)
    truth = GaussianFilter(3, 3.0)(torch.randn(1, 3, *SHAPE))
    fractions = moved(2 * truth / truth.std())  # without the guard against them two voxels would fold
    logits = (fractions + 1e-3).log()
    start = torch.full((1, 3, *SHAPE), 0.5)
    found = refine_registration(start, atlas(), logits, steps=40)
    assert overlap(start, fractions) < 0.85 and overlap(found, fractions) > 0.92
    assert folded_percent(found, torch.ones(1, *SHAPE, dtype=torch.bool)) == 0


def test_structures_take_the_predicted_size_where_borders_are_soft():
    """Soft Dice of fractions is best where a structure is larger or smaller than it should be."""
    fractions = GaussianFilter(3, 1.0)(one_hot(atlas()))
    found = moved(refine_registration(torch.zeros(1, 3, *SHAPE), atlas(), (fractions + 1e-6).log(), steps=48)).argmax(1)
    for k in (1, 2):
        assert 0.97 < (found == k).sum() / (fractions.argmax(1) == k).sum() < 1.03


def test_no_steps_leave_the_field():
    start = torch.full((1, 3, *SHAPE), 0.5)
    assert torch.equal(refine_registration(start, atlas(), torch.zeros(1, 3, *SHAPE), steps=0), start)


def test_two_runs_give_the_same_field():
    fields = [
        refine_registration(torch.zeros(1, 3, *SHAPE), atlas(), one_hot(atlas()).roll(1, 2), steps=3) for _ in range(2)
    ]
    assert torch.equal(*fields)


def test_odd_sides():
    start = torch.full((1, 3, 31, 28, 23), 0.5)
    labels = atlas()[..., :31, :, :23]
    logits = (warp(one_hot(labels), torch.zeros_like(start)) + 1e-3).log()
    found = refine_registration(start, labels, logits, steps=24)
    assert found.shape == start.shape and found[..., 8:24, 8:20, 6:18].abs().mean() < 0.2

from __future__ import annotations

import pytest
import torch

from fedsr_monai.engines.objectives import Labelled, Target, registration_losses, segmentation_losses, weighted
from fedsr_monai.losses import dice_cross_entropy
from fedsr_monai.networks import FedSRNet, Registration
from fedsr_monai.networks.label_fractions import label_fractions
from fedsr_monai.spatial.warping import resize_ddf


@pytest.fixture
def network(phantom) -> FedSRNet:
    torch.manual_seed(0)
    network = FedSRNet("tiny")
    network.set_atlas(*phantom)
    return network


def shifted(voxels: float) -> Registration:
    ddf = torch.zeros(1, 3, 16, 16, 16)
    ddf[:, 1] = voxels / 2
    return Registration(ddf, resize_ddf(ddf, (32, 32, 32)), [])


def test_the_right_displacement_has_the_lowest_losses(network, phantom):
    moved = [x[None].roll(-2, dims=3) for x in phantom]
    target, fractions = Target(moved[0], label_fractions(moved[1], 14)), network.atlas_fractions()
    losses = {
        shift: registration_losses(network, shifted(shift), target, fractions, None) for shift in (-2.0, 0.0, 2.0, 4.0)
    }
    for name in ("similarity", "dice"):
        assert min(losses, key=lambda shift: losses[shift][name].item()) == 2.0
    assert losses[2.0]["smoothness"].item() == 0


def test_labels_that_meet_cost_nothing_where_borders_are_soft(network):
    """A Dice whose denominator has no squares is above 0 there, and below it with other fractions than the target's."""
    fractions = network.atlas_fractions()
    target = Target(network.atlas_image, fractions)
    at_rest = registration_losses(network, shifted(0.0), target, fractions, None)["dice"]
    assert 0 < fractions[:, 1:].max() <= 1 and at_rest.abs() < 1e-5
    blurred = 0.5 * fractions + 0.5 * fractions.roll(1, dims=2)
    soft = registration_losses(network, shifted(0.0), Target(network.atlas_image, blurred), blurred, None)["dice"]
    assert soft.abs() < 1e-5


def test_segmentation_losses_by_kind(network, phantom):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 14, 8, 8, 8), torch.randint(0, 14, (1, 1, 8, 8, 8))
    labelled = {"exact": Labelled(logits[1:], label), "pseudo": Labelled(logits[:1], label, logits[:1].softmax(dim=1))}
    losses = segmentation_losses(network, labelled, [], None)
    assert losses["exact"].item() == dice_cross_entropy(logits[1:], label).item()
    assert losses["pseudo"].item() == dice_cross_entropy(logits[:1], label).item()


def test_a_lambda_of_zero_takes_a_term_out():
    broken = torch.tensor(float("nan"))
    assert weighted({"a": torch.tensor(2.0), "b": broken}, {"a": 3.0, "b": 0.0}).item() == 6.0

from __future__ import annotations

import pytest
import torch

from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.sizes import match_sizes, size_biases, size_factors

TOO_LARGE, TOO_SMALL, ELSEWHERE, CORTEX = 11, 8, 12, 3  # hippocampus, putamen, amygdala


def ball(centre: float, radius: float) -> torch.Tensor:
    """Signed distance to a sphere in a volume of 32 voxels along each axis, positive inside."""
    grid = torch.stack(torch.meshgrid(*3 * [torch.arange(32.0)], indexing="ij"))
    return radius - (grid - centre).norm(dim=0)


@pytest.fixture
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits by which the first ball is too large, the second too small, amygdala elsewhere and cortex too large; and the labels."""
    label = TOO_LARGE * (ball(8, 5) > 0).int() + TOO_SMALL * (ball(22, 6) > 0).int()
    label[2:6, 26:30, 2:6] = ELSEWHERE
    label[26:32, 26:32, 0:6] = CORTEX
    logits = torch.full((14, 32, 32, 32), -20.0)
    logits[0] = 0
    logits[TOO_LARGE], logits[TOO_SMALL] = ball(8, 5.8), ball(22, 5.2)
    logits[ELSEWHERE, 26:30, 2:6, 2:6] = 20
    logits[CORTEX, 25:32, 25:32, 0:7] = 20
    return logits, label


def test_structures_get_the_sizes_of_their_labels(labelled):
    logits, label = labelled
    before = size_factors(logits, label)
    assert before[TOO_LARGE] > 1.4 and before[TOO_SMALL] < 0.75 and before[ELSEWHERE] == 1
    biases = size_biases(logits, label)
    after = size_factors(logits + biases[:, None, None, None], label)
    assert after[[TOO_LARGE, TOO_SMALL]].tolist() == pytest.approx([1, 1], abs=0.05)
    # one unit of the logits is one voxel here
    assert biases[[TOO_LARGE, TOO_SMALL]].tolist() == pytest.approx([-0.8, 0.8], abs=0.2)


def test_what_is_no_deep_grey_matter_and_what_was_not_learnt_keep_their_logits(labelled):
    logits, label = labelled
    assert size_factors(logits, label)[CORTEX] > 1.2
    assert size_biases(logits, label)[[0, ELSEWHERE, CORTEX]].tolist() == [0, 0, 0]
    label[label == TOO_SMALL] = 0  # a structure that the labels do not have
    assert size_biases(logits, label)[TOO_SMALL] == 0
    assert not size_biases(torch.randn(14, 32, 32, 32), label).any()


@pytest.fixture
def network(labelled) -> FedSRNet:
    label = torch.zeros(1, 32, 32, 32)
    label[0] = labelled[1]
    return FedSRNet().set_atlas(torch.rand(1, 32, 32, 32), label)


def test_a_network_is_calibrated_by_its_last_biases_alone(network, labelled, monkeypatch):
    logits = labelled[0]
    monkeypatch.setattr(
        FedSRNet, "forward", lambda self, image: (logits + self.segmentation.logits.bias[:, None, None, None])[None]
    )
    network.segmentation.logits.bias.data.zero_()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    biases = match_sizes(network.train())
    assert network.training
    assert biases[TOO_LARGE] < 0 < biases[TOO_SMALL]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] + (biases if key == "segmentation.logits.bias" else 0)), key
    assert match_sizes(network).abs().max() < 0.2  # again: next to nothing
    network.segmentation.logits.bias.data.zero_()
    torch.testing.assert_close(match_sizes(network, share=0.5), biases / 2)


def test_nothing_changes_where_the_atlas_would_be_labelled_worse(network, labelled, monkeypatch):
    """Sizes alone say nothing of places."""
    monkeypatch.setattr("fedsr_monai.networks.sizes.size_biases", lambda logits, label: 30.0 * torch.eye(14)[TOO_LARGE])
    monkeypatch.setattr(FedSRNet, "forward", lambda self, image: labelled[0][None])
    bias = network.segmentation.logits.bias.clone()
    assert not match_sizes(network).any()
    assert torch.equal(network.segmentation.logits.bias, bias)


@pytest.mark.parametrize(("after", "moved"), [(0.897, True), (0.893, False)])
def test_right_sizes_may_cost_a_little_of_the_dice_on_the_atlas(network, labelled, monkeypatch, after, moved):
    dice = iter([0.9, after])
    monkeypatch.setattr("fedsr_monai.networks.sizes.agreement", lambda found, label: next(dice))
    monkeypatch.setattr(FedSRNet, "forward", lambda self, image: labelled[0][None])
    assert match_sizes(network).any() == moved

from __future__ import annotations

import pytest
import torch

from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.sizes import match_sizes, size_biases, size_factors


def ball(centre: float, radius: float) -> torch.Tensor:
    """Signed distance to a sphere in a volume of 32 voxels along each axis, positive inside."""
    grid = torch.stack(torch.meshgrid(*3 * [torch.arange(32.0)], indexing="ij"))
    return radius - (grid - centre).norm(dim=0)


@pytest.fixture
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits by which the first ball is too large, the second too small, and the third elsewhere; and the labels."""
    label = (ball(8, 5) > 0).int() + 2 * (ball(22, 6) > 0).int()
    label[2:6, 26:30, 2:6] = 3
    logits = torch.full((4, 32, 32, 32), -20.0)
    logits[0] = 0
    logits[1], logits[2] = ball(8, 5.8), ball(22, 5.2)
    logits[3, 26:30, 2:6, 2:6] = 20
    return logits, label


def test_structures_get_the_sizes_of_their_labels(labelled):
    logits, label = labelled
    before = size_factors(logits, label)
    assert before[1] > 1.4 and before[2] < 0.75 and before[3] == 1
    biases = size_biases(logits, label)
    after = size_factors(logits + biases[:, None, None, None], label)
    assert after[1:3].tolist() == pytest.approx([1, 1], abs=0.05)
    # one unit of the logits is one voxel here
    assert biases[1:3].tolist() == pytest.approx([-0.8, 0.8], abs=0.2)


def test_background_and_what_was_not_learnt_keep_their_logits(labelled):
    logits, label = labelled
    assert size_biases(logits, label)[[0, 3]].tolist() == [0, 0]
    label[label == 2] = 0  # a structure that the labels do not have
    assert size_biases(logits, label)[2] == 0
    assert not size_biases(torch.randn(4, 32, 32, 32), label).any()


@pytest.fixture
def network(labelled) -> FedSRNet:
    label = torch.zeros(1, 32, 32, 32)
    label[0] = labelled[1]
    return FedSRNet(num_classes=4).set_atlas(torch.rand(1, 32, 32, 32), label)


def test_a_network_is_calibrated_by_its_last_biases_alone(network, labelled, monkeypatch):
    logits = labelled[0]
    monkeypatch.setattr(
        FedSRNet, "forward", lambda self, image: (logits + self.segmentation.logits.bias[:, None, None, None])[None]
    )
    network.segmentation.logits.bias.data.zero_()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    biases = match_sizes(network.train())
    assert network.training
    assert biases[1] < 0 < biases[2]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] + (biases if key == "segmentation.logits.bias" else 0)), key
    assert match_sizes(network).abs().max() < 0.2  # again: next to nothing


def test_nothing_changes_where_the_atlas_would_be_labelled_worse(network, labelled, monkeypatch):
    """Sizes alone say nothing of places."""
    monkeypatch.setattr("fedsr_monai.networks.sizes.size_biases", lambda logits, label: torch.tensor([0, 30.0, 0, 0]))
    monkeypatch.setattr(FedSRNet, "forward", lambda self, image: labelled[0][None])
    bias = network.segmentation.logits.bias.clone()
    assert not match_sizes(network).any()
    assert torch.equal(network.segmentation.logits.bias, bias)

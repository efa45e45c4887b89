from __future__ import annotations

import pytest
import torch

from fedsr_monai.networks.sa import channel_statistics
from fedsr_monai.networks.scie import DESIGNS, SCIE


def test_identity_at_initialisation_bitwise():
    torch.manual_seed(0)
    features = torch.randn(2, 8, 4, 5, 6)
    assert torch.equal(SCIE(8)(features, torch.randn(8)), features)


def awake(channels: int) -> SCIE:
    """A block whose zero-initialised layers have learned something."""
    torch.manual_seed(0)
    block = SCIE(channels)
    with torch.no_grad():
        for parameter in (*block.channel_mlp[-1].parameters(), block.place_scale):
            parameter.normal_()
    return block


def test_sa_vector_guides_by_channel():
    block, features = awake(8), torch.randn(1, 8, 4, 4, 4)
    with torch.no_grad():
        block.place_scale.zero_()
        one, other = block(features, torch.zeros(8)), block(features, torch.ones(8))
    assert not torch.allclose(one, other)
    # By channel alone: one affine map per channel, so the ratio of differences between voxels is the same everywhere.
    ratio = (one[0] - one[0, :, :1, :1, :1]) / (features[0] - features[0, :, :1, :1, :1])
    ratio = ratio.flatten(1)[:, 1:]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-2, rtol=1e-2)


def test_sa_vector_guides_by_position():
    block = awake(8)
    with torch.no_grad():
        for parameter in block.channel_mlp[-1].parameters():
            parameter.zero_()
        features = torch.randn(1, 8, 4, 4, 4)
        gains = [(block(features, sa) / features)[0].flatten(1) for sa in (torch.randn(8), torch.randn(8))]
    assert all(gain.std(dim=1).min() > 1e-4 for gain in gains)  # some voxels are weighed more than others,
    assert torch.corrcoef(torch.stack([gain[0] for gain in gains]))[0, 1] < 0.99  # other ones for another vector


def test_every_parameter_learns_after_the_first_step():
    block = awake(8)
    block(torch.randn(2, 8, 4, 4, 4), torch.randn(8)).square().mean().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_is_zero_at_the_start_gets_a_gradient_at_once():
    block = SCIE(8)
    block(torch.randn(2, 8, 4, 4, 4), torch.randn(8)).square().mean().backward()
    assert block.channel_mlp[-1].weight.grad.any() and block.place_scale.grad.any()


def statistics_and_sa(channels: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A convolution's output, its statistics, and an SA tensor of mean and variance over scans."""
    torch.manual_seed(0)
    output = 3 * torch.randn(2, channels, 4, 4, 4) + 1
    sa = torch.stack([0.3 * torch.randn(2 * channels), torch.full((2 * channels,), 0.04)])
    return output, channel_statistics(output), sa


@pytest.mark.parametrize("design", ["film_difference", "attention", "gate"])
def test_designs_on_the_convolution_begin_with_the_identity_and_then_read_the_sa_vector(design):
    features, statistics, sa = statistics_and_sa()
    block = DESIGNS[design](8, 16)
    assert torch.equal(block(features, sa, statistics), features)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        one, other = block(features, sa, statistics), block(features, sa.flip(1), statistics)
    assert (one - other).abs().max() > 1e-3


def test_normalise_gives_every_scan_the_statistics_of_the_sa_vector():
    output, statistics, sa = statistics_and_sa()
    with torch.no_grad():
        normalised = channel_statistics(DESIGNS["normalise"](8, 16)(output, sa, statistics))
    torch.testing.assert_close(normalised, sa[0].expand_as(normalised), atol=1e-4, rtol=1e-4)


def test_a_scan_like_all_others_is_left_alone_by_film_difference():
    output, statistics, sa = statistics_and_sa()
    block = DESIGNS["film_difference"](8, 16)
    with torch.no_grad():
        for parameter in block.mlp[-1].parameters():
            parameter.normal_()
        block.mlp[0].bias.zero_()
        block.mlp[-1].bias.zero_()
        sa[0] = statistics[0]
        assert torch.equal(block(output[:1], sa, statistics[:1]), output[:1])

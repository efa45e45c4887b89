from __future__ import annotations

import math

import torch

from fedsr_monai.networks.sa import SARepresentation, channel_statistics, whitened


def filled() -> SARepresentation:
    torch.manual_seed(0)
    sa = SARepresentation([4, 6, 8])
    for vector in sa.buffers():
        vector.normal_()
    return sa


def test_update_is_equation_7():
    sa = filled()
    before = [sa.registration[scale].clone() for scale in range(3)]
    pooled = [torch.randn(2, n, requires_grad=True) for n in (4, 6, 8)]
    sa.update("registration", pooled, alpha=0.1)
    for scale in range(3):
        expected = 0.9 * before[scale] + 0.1 * pooled[scale].mean(dim=0)
        torch.testing.assert_close(sa.registration[scale], expected)
        assert not sa.registration[scale].requires_grad


def test_update_of_one_head_leaves_the_other():
    sa = filled()
    before = [sa.segmentation[scale].clone() for scale in range(3)]
    sa.update("registration", [torch.randn(1, n) for n in (4, 6, 8)], alpha=0.5)
    assert all(torch.equal(sa.segmentation[scale], before[scale]) for scale in range(3))


def test_alpha_one_sets_the_vector():
    sa = filled()
    pooled = [torch.randn(1, n) for n in (4, 6, 8)]
    sa.update("segmentation", pooled, alpha=1.0)
    assert all(torch.equal(sa.segmentation[scale], pooled[scale][0]) for scale in range(3))


def test_update_from_bfloat16_keeps_float32():
    sa = filled()
    sa.update("segmentation", [torch.randn(1, n).bfloat16() for n in (4, 6, 8)], alpha=0.5)
    assert {vector.dtype for vector in sa.buffers()} == {torch.float32}


def test_vectors_in_the_order_of_the_scales():
    sa = filled()
    assert all(
        a is b for a, b in zip(sa.registration.vectors(), [sa.registration[scale] for scale in range(3)], strict=True)
    )


def test_kept_in_the_state_dict_and_not_a_parameter():
    sa = filled()
    assert list(sa.state_dict()) == [f"{head}.{scale}" for head in ("registration", "segmentation") for scale in "012"]
    assert list(sa.parameters()) == []
    other = SARepresentation([4, 6, 8])
    other.load_state_dict(sa.state_dict())
    assert all(torch.equal(other.segmentation[scale], sa.segmentation[scale]) for scale in range(3))


def test_statistics_of_the_convolution_are_mean_and_log_spread():
    torch.manual_seed(0)
    output = 2 * torch.randn(1, 3, 20, 20, 20) + torch.tensor([1.0, -1.0, 0.0])[:, None, None, None]
    expected = torch.tensor([[1.0, -1.0, 0.0, *[math.log(2)] * 3]])
    torch.testing.assert_close(channel_statistics(output), expected, atol=0.1, rtol=0)


def test_mean_and_variance_over_scans_are_those_of_the_scans():
    torch.manual_seed(0)
    sa = SARepresentation([4, 4, 4], "convolution")
    sa.update("registration", [torch.zeros(1, 8)] * 3, alpha=1.0)
    for _ in range(3000):
        sa.update("registration", [3 + 2 * torch.randn(1, 8)] * 3, alpha=0.01)
    mean, variance = sa.registration[0]
    assert (mean - 3).abs().max() < 0.6 and (variance.sqrt() - 2).abs().max() < 0.5
    torch.testing.assert_close(whitened(mean[None] + 2 * variance.sqrt(), sa.registration[0]), torch.full((1, 8), 2.0))

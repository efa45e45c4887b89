from __future__ import annotations

import torch

from fedsr_monai.networks.sa import SARepresentation


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

from __future__ import annotations

import io
import math

import pytest
import torch
from torch.nn import functional as F

from fedsr_monai.losses import InfoNCE, ParzenMI, ScanNCE, mutual_information_estimator


def profiles(channels: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(channels), torch.randn(channels)


def test_parzen_is_higher_for_matching_profiles():
    sa, other = profiles()
    estimator = ParzenMI()
    same = estimator(sa[None], sa).item()
    near = estimator((sa + 0.3 * other)[None], sa).item()
    independent = estimator(other[None], sa).item()
    assert same > near > independent + 0.2
    assert independent == pytest.approx(0, abs=0.3)


def test_parzen_does_not_see_scale_and_shift():
    sa, other = profiles()
    pooled = (sa + other)[None]
    assert ParzenMI()(5 * pooled - 2, sa).item() == pytest.approx(ParzenMI()(pooled, sa).item(), abs=1e-4)


@pytest.mark.parametrize("estimator", [ParzenMI(), InfoNCE()])
def test_ascent_raises_it(estimator):
    sa, pooled = profiles()
    vector = sa.clone().requires_grad_(True)
    before = estimator(pooled[None], vector)
    before.backward()
    with torch.no_grad():
        vector += 0.1 * vector.grad / vector.grad.norm() * vector.norm()
        assert estimator(pooled[None], vector) > before


@pytest.mark.parametrize("estimator", [ParzenMI(), InfoNCE()])
def test_gradient_only_where_asked(estimator):
    sa, pooled = profiles()
    pooled = pooled[None].requires_grad_(True)
    estimator(pooled, sa, "segmentation.0").backward()
    assert pooled.grad.abs().sum() > 0 and sa.grad is None and not sa.requires_grad
    vector = sa.clone().requires_grad_(True)
    estimator(pooled.detach(), vector).backward()
    assert vector.grad.abs().sum() > 0


@pytest.mark.parametrize("estimator", [ParzenMI(), InfoNCE()])
def test_constant_vectors_give_finite_numbers_and_gradients(estimator):
    pooled = torch.zeros(1, 16, requires_grad=True)
    value = estimator(pooled, torch.zeros(16), "registration.0")
    value.backward()
    assert value.isfinite() and pooled.grad.isfinite().all()


def test_infonce_is_capped_by_its_queue():
    torch.manual_seed(0)
    estimator = InfoNCE(queue=4, temperature=0.01)
    sa = F.normalize(torch.randn(32), dim=0)
    for _ in range(6):
        estimator(torch.randn(1, 32), sa, "segmentation.0")
    assert estimator.queues["segmentation.0"].shape == (4, 32)
    bound = estimator(sa[None], sa, "segmentation.0").item()
    assert bound == pytest.approx(math.log(5), abs=1e-3) and bound <= math.log(5) + 1e-6


def test_infonce_tells_apart():
    torch.manual_seed(0)
    estimator, sa = InfoNCE(queue=8).train(), torch.randn(32)
    for _ in range(8):
        estimator(torch.randn(1, 32), sa, "k")
    estimator.eval()
    assert estimator(sa[None], sa, "k") > estimator(torch.randn(1, 32), sa, "k") + 1


def test_infonce_queues_are_kept_apart_and_only_grow_in_training():
    estimator, (sa, pooled) = InfoNCE(), profiles()
    estimator(pooled[None], sa, "registration.0")
    estimator(pooled[None, :32], sa[:32], "registration.1")
    estimator(pooled[None], sa)  # no key: the server's ascent leaves nothing behind
    estimator.eval()
    estimator(pooled[None], sa, "registration.0")
    assert {key: len(queue) for key, queue in estimator.queues.items()} == {"registration.0": 1, "registration.1": 1}
    assert not estimator.queues["registration.0"].requires_grad


def test_infonce_queue_is_in_the_state_dict():
    estimator, (sa, pooled) = InfoNCE(), profiles()
    for _ in range(3):
        estimator(pooled[None], sa, "segmentation.2")
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    file.seek(0)
    other = InfoNCE()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.queues["segmentation.2"], estimator.queues["segmentation.2"])
    assert torch.equal(other(pooled[None], sa, "segmentation.2"), estimator(pooled[None], sa, "segmentation.2"))
    assert len(other.queues["segmentation.2"]) == len(estimator.queues["segmentation.2"]) == 4


def test_scans_are_told_apart_whatever_all_profiles_share():
    torch.manual_seed(0)
    bounds = {}
    for offset in (0.0, 100.0):
        estimator, spread = ScanNCE(queue=8).train(), torch.full((16,), 0.5)
        generator = torch.Generator().manual_seed(1)
        for _ in range(8):
            estimator(offset + 0.5 * torch.randn(1, 16, generator=generator), torch.full((16,), offset), "k", spread)
        estimator.eval()
        near = estimator(torch.full((1, 16), offset), torch.full((16,), offset), "k", spread)
        far = estimator(estimator.queues["k"][:1], torch.full((16,), offset), "k", spread)
        assert near > far + 0.2 and near <= math.log(9)
        bounds[offset] = float(near)
    assert bounds[0.0] == pytest.approx(bounds[100.0], abs=1e-3)


def test_the_mean_of_the_sites_is_the_best_for_scan_nce():
    sites = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    vector = sites.mean(dim=0).requires_grad_(True)
    sum(ScanNCE()(site[None], vector) for site in sites).backward()
    assert vector.grad.abs().max() < 1e-4


def test_balanced_weight_rises_and_follows_what_was_measured():
    balanced = mutual_information_estimator("scans", fraction=0.05, warmup=10)
    assert balanced.scale(5) == 0.5 and balanced.scale(10) == balanced.scale(99) == 1.0
    balanced.measured(0.5, 20)
    assert balanced.scale(20) == pytest.approx(0.1)
    balanced.measured(0.025, 5)  # at half of the weight that is half of the aim: as it should be
    assert balanced.scale(20) == pytest.approx(0.1)
    other = mutual_information_estimator("scans", fraction=0.05)
    other.load_state_dict(balanced.state_dict())
    assert other.scale(1) == pytest.approx(0.1)

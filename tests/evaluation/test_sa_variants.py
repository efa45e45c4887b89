from __future__ import annotations

import math

import pytest
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.sa_variants import change_sa, effect
from fedsr_monai.networks import FedSRNet
from fedsr_monai.sites.site import load_site


@pytest.fixture
def network(phantom) -> FedSRNet:
    torch.manual_seed(0)
    network = FedSRNet(scie="film_difference", sa_statistics="convolution").set_atlas(*phantom).eval()
    network.initialise_sa()
    with torch.no_grad():
        for vector in network.sa.buffers():
            vector += torch.rand(vector.shape)
    return network


def vectors(network: FedSRNet) -> dict[str, torch.Tensor]:
    return {name: vector.clone() for name, vector in network.sa.named_buffers()}


def test_each_variant_replaces_the_mean_over_scans_and_keeps_their_variance(network, site_folder):
    site, learned = load_site(site_folder()), vectors(network)
    found = {}
    for variant in ("learned", "permuted", "zero", "atlas", "site"):
        change_sa(network, variant, site)
        found[variant] = vectors(network)
        assert all(torch.equal(found[variant][name][1], learned[name][1]) for name in learned)
        network.sa.load_state_dict(learned)
    for name, vector in learned.items():
        assert torch.equal(found["learned"][name], vector) and not found["zero"][name][0].any()
        pairs = [set(map(tuple, of[0].view(2, -1).T.tolist())) for of in (vector, found["permuted"][name])]
        assert pairs[0] == pairs[1] and not torch.equal(
            found["permuted"][name], vector
        )  # mean and spread stay together
        # Scans are the atlas a little moved: their statistics are near those of it, and not the same.
        of_scans = found["site"][name][0]
        near, far = ((of_scans - other[0]).abs().mean() for other in (found["atlas"][name], vector))
        assert 0 < near < 0.5 * far


def test_unknown_variants_are_named(network, site_folder):
    with pytest.raises(UserError, match="^sa: found 'shuffled', expected one of learned, permuted, zero, atlas, site"):
        change_sa(network, "shuffled", load_site(site_folder()))


def rows(values: dict[str, float]) -> list[dict]:
    return [{"task": "segmentation", "site": "a", "case": case, "dice": dice} for case, dice in values.items()]


def test_scans_are_the_units_of_an_effect_and_networks_are_averaged_first():
    learned = [rows({"1": 0.8, "2": 0.7, "3": 0.6}), rows({"1": 0.8, "2": 0.7, "3": 0.6})]
    changed = [rows({"1": 0.7, "2": 0.6, "3": 0.51}), rows({"1": 0.7, "2": 0.58, "3": 0.5})]
    found = effect(learned, changed, "segmentation")
    assert found.difference == pytest.approx(-0.1016667) and found.scans == 3 and 0 < found.p < 0.01
    assert effect(learned, learned, "segmentation").p == 1.0
    assert math.isnan(effect([rows({"1": 0.5})], [rows({"1": 0.4})], "segmentation").p)

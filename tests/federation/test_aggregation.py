from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from fedsr_monai.federation.aggregation import (
    RULES,
    aggregate,
    aggregate_sa,
    clipped_mean,
    coordinate_median,
    krum_sites,
    site_weights,
    trimmed_mean,
    weighted_mean,
)


def correlation(pooled: torch.Tensor, sa: torch.Tensor) -> torch.Tensor:
    """A stand-in for Phi with a known maximum: the correlation over channels."""
    x, y = pooled[0] - pooled[0].mean(), sa - sa.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def updates(seed=0, sites=("a", "b", "c")):
    generator = torch.Generator().manual_seed(seed)
    return {
        site: {
            "encoder.w": torch.randn(5, 7, generator=generator),
            "sa.segmentation.0": torch.rand(16, generator=generator),
        }
        for site in sites
    }


def test_weights_by_images_and_uniform():
    assert site_weights({"b": 1, "a": 3}, "images", declared="ab") == {"a": 0.75, "b": 0.25}
    assert site_weights({"b": 1, "a": 3}, "uniform") == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="weighting.*median.*images, uniform"):
        site_weights({"a": 1}, "median")


def test_mean_is_image_weighted():
    two = {"a": {"encoder.w": torch.tensor([1.0, 2.0])}, "b": {"encoder.w": torch.tensor([5.0, 10.0])}}
    assert weighted_mean(two, {"a": 0.75, "b": 0.25}, two["a"])["encoder.w"].tolist() == [2.0, 4.0]
    assert weighted_mean(two, {"a": 0.5, "b": 0.5}, two["a"])["encoder.w"].tolist() == [3.0, 6.0]


def test_sums_run_in_float64():
    # In float32 the sum 1e8 + 1 - 1e8 loses the one.
    many = {site: {"w": torch.tensor([value])} for site, value in (("a", 3e8), ("b", 3.0), ("c", -3e8))}
    result = aggregate(many, dict.fromkeys("abc", 1 / 3), many["a"])["w"]
    assert result.item() == pytest.approx(1.0, abs=1e-6) and result.dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("phi", [None, correlation])
def test_the_order_of_the_sites_does_not_matter(phi, rule):
    first = updates(sites="abcde")
    weights = {"a": 0.2, "b": 0.2, "c": 0.3, "d": 0.2, "e": 0.1}
    previous = {"encoder.w": torch.zeros(5, 7), "sa.segmentation.0": torch.rand(16)}
    forward = aggregate(first, weights, previous, phi, rule)
    backward = aggregate(dict(reversed(first.items())), dict(reversed(weights.items())), previous, phi, rule)
    assert list(forward) == list(backward)
    assert all(torch.equal(forward[key], backward[key]) for key in forward)


def test_sa_rises_above_the_mean():
    vectors = {site: update["sa.segmentation.0"] for site, update in updates(1).items()}
    weights = {"a": 0.6, "b": 0.3, "c": 0.1}

    def total(vector):
        return sum(weights[site] * float(correlation(vectors[site][None], vector)) for site in vectors)

    mean = aggregate_sa(vectors, weights, correlation, steps=0).float()
    risen = aggregate_sa(vectors, weights, correlation).float()
    assert torch.allclose(mean, sum(weights[site] * vectors[site] for site in vectors))
    assert total(risen) > total(mean) + 1e-3
    assert (risen - mean).norm() <= 5 * 0.02 * mean.norm() + 1e-6


def test_sa_never_falls_below_the_mean_however_long_the_step():
    vectors = {"a": torch.rand(16, generator=torch.Generator().manual_seed(3))}
    result = aggregate_sa(vectors, {"a": 1.0}, correlation, lr=100.0).float()
    assert float(correlation(vectors["a"][None], result)) >= 1 - 1e-6


def test_a_flat_objective_leaves_the_mean():
    vectors = {"a": torch.zeros(4), "b": torch.zeros(4)}
    result = aggregate_sa(vectors, {"a": 0.5, "b": 0.5}, lambda x, f: (f * x[0]).sum())
    assert result.tolist() == [0.0] * 4


def test_of_mean_and_variance_over_scans_the_mean_ascends():
    sent = {"sa.segmentation.0": torch.rand(2, 16, generator=torch.Generator().manual_seed(7))}
    two = {site: {"sa.segmentation.0": torch.stack([u["sa.segmentation.0"]] * 2)} for site, u in updates().items()}
    weights = {"a": 0.2, "b": 0.3, "c": 0.5}
    result = aggregate(two, weights, sent, correlation)["sa.segmentation.0"]
    plain = aggregate(two, weights, sent, None)["sa.segmentation.0"]
    assert torch.equal(result[1], plain[1]) and not torch.equal(result[0], plain[0])


def test_only_sa_keys_ascend():
    result = aggregate(updates(), {"a": 0.2, "b": 0.3, "c": 0.5}, updates(5)["a"], correlation)
    plain = aggregate(updates(), {"a": 0.2, "b": 0.3, "c": 0.5}, updates(5)["a"], None)
    assert torch.equal(result["encoder.w"], plain["encoder.w"])
    assert not torch.equal(result["sa.segmentation.0"], plain["sa.segmentation.0"])


@pytest.mark.parametrize(
    ("images", "weights"),
    [
        ({"a": 10, "b": 10, "c": 10, "liar": 100_000}, {"a": 0.25, "b": 0.25, "c": 0.25, "liar": 0.25}),
        ({"a": 10, "b": 20, "liar": 10**9}, {"a": 0.2222, "b": 0.4444, "liar": 0.3333}),  # 15, the median of 10 and 20
        ({"a": 7, "liar": 10**5}, {"a": 0.5, "liar": 0.5}),
        ({"liar": 10**5}, {"liar": 1.0}),
    ],
)
def test_a_claimed_image_count_never_outweighs_the_others(images, weights):
    declared = [site for site in images if site != "liar"]
    assert site_weights(images, "images", declared) == pytest.approx(weights, abs=1e-4)


def test_without_any_declaration_no_site_outweighs_the_median_of_the_others():
    weights = site_weights({"a": 8, "b": 24, "c": 31, "d": 100_000})
    assert weights["d"] == pytest.approx(24 / (8 + 24 + 24 + 24))


SENT = {"w": torch.zeros(40)}


def sites(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {chr(97 + n): {"w": torch.randn(40, generator=generator)} for n in range(count)}


def stacked(many):
    return np.stack([many[site]["w"].double().numpy() for site in sorted(many)])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_median_is_numpys(count):
    many = sites(count)
    assert np.allclose(coordinate_median(many, {}, SENT)["w"], np.median(stacked(many), axis=0), atol=1e-15)


@pytest.mark.parametrize(("count", "out"), [(1, 0), (2, 0), (3, 1), (4, 1), (7, 1), (8, 2), (12, 3)])
def test_the_trimmed_mean_is_scipys(count, out):
    many = sites(count)
    expected = scipy.stats.trim_mean(stacked(many), (out + 0.5) / count if out else 0.0, axis=0)
    assert np.allclose(trimmed_mean(many, {}, SENT)["w"], expected, atol=1e-15)


def test_the_clipped_mean_shortens_what_is_longer_than_the_median_and_keeps_the_rest():
    sent = {"w": torch.tensor([1.0, 0.0])}
    moves = {"a": [0.0, 1.0], "b": [2.0, 0.0], "c": [0.0, -30.0]}
    many = {site: {"w": sent["w"] + torch.tensor(move)} for site, move in moves.items()}
    result = clipped_mean(many, {"a": 0.5, "b": 0.25, "c": 0.25}, sent)["w"]
    assert result.tolist() == pytest.approx([1.0 + 0.25 * 2, 0.5 - 0.25 * 2])


def test_clipping_a_site_that_does_not_move_is_no_division_by_zero():
    many = dict.fromkeys("ab", SENT)
    assert torch.equal(clipped_mean(many, {"a": 0.5, "b": 0.5}, SENT)["w"], SENT["w"].double())


@pytest.mark.parametrize("count", [4, 5, 7, 9])
def test_krum_keeps_the_sites_with_the_least_sum_of_squared_distances_to_their_neighbours(count):
    many = sites(count, seed=3)
    vectors = stacked(many)
    hostile = max(1, (count - 3) // 2)
    scores = []
    for one in range(count):
        squared = sorted(float(((vectors[one] - vectors[other]) ** 2).sum()) for other in range(count) if other != one)
        scores.append(sum(squared[: max(1, count - hostile - 2)]))
    expected = sorted(sorted(many)[number] for number in np.argsort(scores)[: count - hostile])
    assert krum_sites(many, SENT) == expected


def test_krum_leaves_out_the_site_that_is_far_from_the_others_and_never_one_of_three():
    many = {
        site: {"w": torch.full((40,), value)} for site, value in (("a", 1.0), ("b", 1.1), ("c", 0.9), ("evil", -1.0))
    }
    assert krum_sites(many, SENT) == ["a", "b", "c"]
    weights = {"a": 0.1, "b": 0.1, "c": 0.2, "evil": 0.6}
    assert aggregate(many, weights, SENT, rule="krum")["w"].tolist() == pytest.approx([0.975] * 40)
    assert krum_sites({site: many[site] for site in ("a", "b", "evil")}, SENT) == ["a", "b", "evil"]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("mean", "clipped_mean")])
def test_one_hostile_site_of_four_cannot_move_a_robust_rule_out_of_the_others_range(rule):
    many = sites(3) | {"evil": {"w": torch.full((40,), 1e6)}}
    result = aggregate(many, dict.fromkeys(many, 0.25), SENT, rule=rule)["w"]
    honest = stacked({site: many[site] for site in "abc"})
    assert (result.numpy() <= honest.max(0) + 1e-6).all() and (result.numpy() >= honest.min(0) - 1e-6).all()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_agrees_with_sites_that_agree(rule):
    many = {site: updates()["a"] for site in "abcd"}
    result = aggregate(many, dict.fromkeys("abcd", 0.25), updates(3)["a"], rule=rule)
    assert all(torch.allclose(result[key], many["a"][key], atol=1e-6) for key in many["a"])
    assert aggregate(dict.fromkeys("ab", {}), {"a": 0.5, "b": 0.5}, {}, rule=rule) == {}

from __future__ import annotations

import pytest
import torch

from fedsr_monai.federation.aggregation import aggregate, aggregate_encoder, aggregate_sa, site_weights


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
    assert site_weights({"b": 1, "a": 3}, "images") == {"a": 0.75, "b": 0.25}
    assert site_weights({"b": 1, "a": 3}, "uniform") == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match=r"^weighting: found 'median', expected 'images' or 'uniform'$"):
        site_weights({"a": 1}, "median")


def test_mean_is_image_weighted():
    two = {"a": {"encoder.w": torch.tensor([1.0, 2.0])}, "b": {"encoder.w": torch.tensor([5.0, 10.0])}}
    assert aggregate_encoder(two, {"a": 0.75, "b": 0.25})["encoder.w"].tolist() == [2.0, 4.0]
    assert aggregate_encoder(two, {"a": 0.5, "b": 0.5})["encoder.w"].tolist() == [3.0, 6.0]


def test_sums_run_in_float64():
    # In float32 the sum 1e8 + 1 - 1e8 loses the one.
    many = {site: {"w": torch.tensor([value])} for site, value in (("a", 3e8), ("b", 3.0), ("c", -3e8))}
    assert aggregate_encoder(many, dict.fromkeys("abc", 1 / 3))["w"].item() == pytest.approx(1.0, abs=1e-6)
    assert aggregate_encoder(many, dict.fromkeys("abc", 1 / 3))["w"].dtype == torch.float32


@pytest.mark.parametrize("phi", [None, correlation])
def test_the_order_of_the_sites_does_not_matter(phi):
    first = updates()
    weights = {"a": 0.2, "b": 0.3, "c": 0.5}
    previous = {"encoder.w": torch.zeros(5, 7), "sa.segmentation.0": torch.rand(16)}
    forth = aggregate(first, weights, previous, phi)
    back = aggregate(dict(reversed(first.items())), dict(reversed(weights.items())), previous, phi)
    assert list(forth) == list(back)
    assert all(torch.equal(forth[key], back[key]) for key in forth)


def test_sa_rises_above_the_mean_and_is_smoothed():
    vectors = {site: update["sa.segmentation.0"] for site, update in updates(1).items()}
    weights = {"a": 0.6, "b": 0.3, "c": 0.1}
    previous = torch.zeros(16)

    def total(vector):
        return sum(weights[site] * float(correlation(vectors[site][None], vector)) for site in vectors)

    mean = aggregate_sa(vectors, weights, previous, correlation, steps=0, alpha=1.0)
    risen = aggregate_sa(vectors, weights, previous, correlation, alpha=1.0)
    assert torch.allclose(mean, sum(weights[site] * vectors[site] for site in vectors))
    assert total(risen) > total(mean) + 1e-3
    assert (risen - mean).norm() <= 5 * 0.02 * mean.norm() + 1e-6

    previous = torch.rand(16)
    smoothed = aggregate_sa(vectors, weights, previous, correlation, alpha=0.1)
    assert torch.allclose(smoothed, 0.9 * previous + 0.1 * risen, atol=1e-6)


def test_sa_never_falls_below_the_mean_however_long_the_step():
    vectors = {"a": torch.rand(16, generator=torch.Generator().manual_seed(3))}
    result = aggregate_sa(vectors, {"a": 1.0}, torch.zeros(16), correlation, lr=100.0, alpha=1.0)
    assert float(correlation(vectors["a"][None], result)) >= 1 - 1e-6


def test_a_flat_objective_leaves_the_mean():
    vectors = {"a": torch.zeros(4), "b": torch.zeros(4)}
    result = aggregate_sa(vectors, {"a": 0.5, "b": 0.5}, torch.ones(4), lambda x, f: (f * x[0]).sum(), alpha=0.5)
    assert result.tolist() == [0.5] * 4


def test_only_sa_keys_ascend():
    result = aggregate(updates(), {"a": 0.2, "b": 0.3, "c": 0.5}, updates(5)["a"], correlation)
    plain = aggregate(updates(), {"a": 0.2, "b": 0.3, "c": 0.5}, updates(5)["a"], None)
    assert torch.equal(result["encoder.w"], plain["encoder.w"])
    assert not torch.equal(result["sa.segmentation.0"], plain["sa.segmentation.0"])

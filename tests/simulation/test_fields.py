from __future__ import annotations

import numpy as np

from fedsr_monai.simulation.fields import smooth_field

AXES = [np.arange(-60.0, 61, 6), np.arange(-80.0, 41, 6), np.arange(-60.0, 61, 6)]


def test_unit_variance_and_the_asked_smoothness():
    """White noise after a Gaussian of s has the correlation exp(-d^2 / (4 s^2))."""
    fields = np.concatenate([smooth_field(np.random.default_rng(seed), AXES, 12.0) for seed in range(40)])
    assert abs(fields.std() - 1) < 0.05
    near = (fields[:, 2:] * fields[:, :-2]).mean() / (fields**2).mean()  # 12 mm apart
    assert abs(near - np.exp(-0.25)) < 0.04


def test_the_field_belongs_to_places_not_to_the_grid():
    coarse = smooth_field(np.random.default_rng(3), AXES, 9.0)
    fine = smooth_field(np.random.default_rng(3), [np.arange(a[0], a[-1] + 1, 2.0) for a in AXES], 9.0)
    assert np.allclose(coarse, fine[:, ::3, ::3, ::3], atol=1e-5)


def test_full_symmetry_mirrors_the_vector():
    field = smooth_field(np.random.default_rng(0), AXES, 9.0, symmetric=1.0, mirror=(-1, 1, 1))
    mirrored = field[:, ::-1] * np.array([-1, 1, 1])[:, None, None, None]
    assert np.allclose(field, mirrored, atol=1e-5)


def test_a_share_of_symmetry_is_a_share_of_the_variance():
    fields = np.concatenate([smooth_field(np.random.default_rng(s), AXES, 8.0, 0.5, mirror=(1,)) for s in range(40)])
    far = np.abs(AXES[0]) > 24  # the midline itself is its own mirror
    correlation = (fields * fields[:, ::-1])[:, far].mean() / (fields**2)[:, far].mean()
    assert abs(correlation - 0.5) < 0.06

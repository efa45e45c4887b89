from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.simulation.profiles import PROFILES, Scanner, profile, random_profile
from fedsr_monai.simulation.scanner import LEVELS, rician, strip_mask, thick_slices, tissue_means
from fedsr_monai.simulation.subject import simulate_subject

SHAPE = (32, 32, 32)


def test_thick_slices_keep_the_mean_and_isotropic_ones_the_image():
    image = np.random.default_rng(0).random((10, 12, 40), dtype=np.float32)
    assert thick_slices(image, np.array([2.0, 2, 2]), 2, 0.0) is image
    thick = thick_slices(image, np.array([2.0, 2, 2]), 2, 8.0)
    assert thick.shape == image.shape and abs(thick.mean() - image.mean()) < 0.01
    assert np.diff(thick, axis=2).std() < 0.3 * np.diff(image, axis=2).std()


def test_thick_slices_keep_a_ramp():
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (3, 3, 40))
    thick = thick_slices(ramp, np.array([2.0, 2, 2]), 2, 5.0)
    assert np.allclose(thick[0, 0, 2:-2], np.arange(40)[2:-2], atol=0.06)  # half voxels count as they are


def test_noise_in_air_is_rayleigh():
    """Mean sqrt(pi / 2) sd without a signal; about the signal where it is strong."""
    rng = np.random.default_rng(0)
    assert abs(rician(rng, np.zeros((40, 40, 40), np.float32), 0.1).mean() - np.sqrt(np.pi / 2) * 0.1) < 1e-3
    assert abs(rician(rng, np.ones((40, 40, 40), np.float32), 0.1).std() - 0.1) < 2e-3


def test_the_border_of_the_brain_mask_wanders():
    x = np.linspace(-96, 96, 65)
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(x, x, x)))
    coverage = (radius < 60).astype(np.float32)
    mask = strip_mask(np.random.default_rng(0), coverage, np.full(3, 3.0), [x, x - 16, x], 1.5)
    assert mask[radius < 55].all() and not mask[radius > 66].any()
    assert (mask & (radius > 60.5)).any() and (~mask & (radius < 60)).any()


def test_both_ventricular_fluids_and_the_sulci_move_together():
    means = np.stack([tissue_means(np.random.default_rng(s), Scanner(jitter=0.02)) for s in range(200)])
    assert np.corrcoef(means[:, 0], means[:, 4])[0, 1] > 0.9 and abs(np.corrcoef(means[:, 0], means[:, 2])[0, 1]) < 0.3


@pytest.mark.parametrize("name", PROFILES)
def test_an_image_is_in_range_with_empty_background(name):
    image, label = simulate_subject(PROFILES[name], 1, 6.0, SHAPE)
    assert image.dtype == np.float32 and label.dtype == np.uint8
    assert image.min() == 0 and image.max() == 1 and np.array_equal(image * LEVELS, np.rint(image * LEVELS))
    faces = np.concatenate([np.take(image, (0, -1), axis).ravel() for axis in range(3)])
    assert (faces == 0).mean() > 0.95
    white, grey, fluid = (np.median(image[label == k]) for k in (2, 3, 4))
    assert white > grey > fluid > 0


def test_scanners_differ_but_the_anatomy_does_not():
    adult = PROFILES["adult-3t"]
    other = replace(adult, scanner=PROFILES["other-vendor"].scanner)
    (image, label), (image_2, label_2) = (simulate_subject(p, 4, 6.0, SHAPE) for p in (adult, other))
    assert np.array_equal(label, label_2)
    brain = label > 0
    assert np.abs(image - image_2)[brain].mean() > 0.05


def test_subjects_differ():
    labels = [simulate_subject(PROFILES["adult-3t"], seed, 6.0, SHAPE)[1] for seed in (0, 1)]
    assert (labels[0] != labels[1]).mean() > 0.03


@pytest.mark.parametrize("seed", range(3))
def test_random_hospitals_give_images_too(seed):
    image, label = simulate_subject(random_profile(np.random.default_rng(seed)), seed, 6.0, SHAPE)
    assert image.max() == 1 and len(np.unique(label)) > 11


def test_an_unknown_profile_is_named():
    with pytest.raises(UserError, match="profiles: found 'mars', expected one of adult-3t, "):
        profile("mars")

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from fedsr_monai.atlas.build import grid_affine, transform
from fedsr_monai.atlas.templates import high_resolution_templates
from fedsr_monai.simulation.profiles import PROFILES
from fedsr_monai.simulation.shape import (
    Population,
    integrate,
    random_affine,
    random_velocity,
    subject_points,
    velocity_affine,
)

SHAPE = (64, 80, 64)
AFFINE = grid_affine(2.5, SHAPE)
INNER = (slice(None), *[slice(10, -10)] * 3)  # of the velocity grid: the brain


def jacobian(points: np.ndarray, spacing: float) -> np.ndarray:
    gradient = np.stack([np.stack(np.gradient(component, spacing)) for component in points])
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))


@pytest.mark.parametrize("name", PROFILES)
def test_no_subject_folds(name):
    for seed in range(2):
        points = subject_points(np.random.default_rng(seed), PROFILES[name].population, AFFINE, SHAPE)
        assert jacobian(points, 2.5)[2:-2, 2:-2, 2:-2].min() > 0.1


def test_displacements_are_those_of_people():
    """About 5 mm on average and 9 mm at the 95th percentile, before the affine."""
    length = [
        np.sqrt((integrate(random_velocity(np.random.default_rng(s), 1.0, 0.0))[INNER] ** 2).sum(0)) for s in range(4)
    ]
    assert 4.2 < np.mean(length) < 5.6 and 7.5 < np.percentile(length, 95) < 10


def test_integration_undoes_itself_with_the_opposite_velocity():
    velocity = random_velocity(np.random.default_rng(1), 1.0, 0.0)
    there, back = integrate(velocity), integrate(-velocity)
    grid = np.indices(there.shape[1:], dtype=np.float32)
    at_target = np.stack([map_coordinates(c, grid + there / 3, order=1, mode="nearest") for c in back])
    rest = np.sqrt(((there + at_target)[INNER] ** 2).sum(0))
    assert rest.mean() < 0.15 and np.sqrt((there[INNER] ** 2).sum(0)).mean() > 3


def test_a_subject_is_the_same_at_every_resolution():
    fine = subject_points(np.random.default_rng(5), Population(), grid_affine(3.0, (64, 64, 64)), (64, 64, 64))
    coarse_affine = grid_affine(3.0, (64, 64, 64)) @ np.diag([2, 2, 2, 1])
    coarse = subject_points(np.random.default_rng(5), Population(), coarse_affine, (32, 32, 32))
    assert np.allclose(fine[:, ::2, ::2, ::2], coarse, atol=1e-3)


@pytest.mark.parametrize("growth, larger", [(2.0, True), (-1.0, False)])
def test_ventricles_grow_and_shrink(growth, larger):
    templates = high_resolution_templates()
    affine = velocity_affine()
    grid = transform(affine, np.indices((65, 75, 67), dtype=np.float32))
    size = []
    for amount in (0.0, growth):
        points = grid + integrate(random_velocity(np.random.default_rng(2), 0.0, amount))
        voxels = np.rint(transform(np.linalg.inv(templates.affine), points)).astype(int)
        inside = ((voxels >= 0) & (voxels < np.reshape(templates.label.shape, (3, 1, 1, 1)))).all(0)
        size.append((templates.label[tuple(voxels[:, inside])] == 4).sum())
    assert (1.6 * size[0] < size[1] < 2.4 * size[0]) if larger else (size[1] < 0.75 * size[0])


def test_children_have_smaller_heads():
    rng = np.random.default_rng(0)
    volume = [np.linalg.det(random_affine(rng, PROFILES["paediatric"].population)[:3, :3]) for _ in range(50)]
    assert abs(np.mean(volume) - 0.92**-3) < 0.05

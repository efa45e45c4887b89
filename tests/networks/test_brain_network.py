from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsr_monai.networks.brain_network import MULTIPLE, SPACING, brain_network, network_input
from fedsr_monai.spatial.resampling import sample, voxel_map
from tests.helpers.raw_scans import random_grid


def ball(grid) -> np.ndarray:
    """A bright ball of 40 mm at (10, -20, 30), dimmer towards the front."""
    points = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) @ grid.affine[:3, :3].T
    points = points + grid.affine[:3, 3] - (10, -20, 30)
    return np.where(np.linalg.norm(points, axis=-1) < 40, 500 - 5 * points[..., 1], 0).astype(np.float32)


@pytest.mark.parametrize("spacing", [(1.2, 1.0, 1.5), (1.0, 4.0, 1.0)])
def test_the_input_is_the_same_image_whatever_the_voxels_of_the_scan(spacing):
    grid = random_grid(3, np.array([0.0, 0, 0]), spacing, side=140.0)
    image, own = network_input(ball(grid), grid.affine)
    assert image.shape[1:] == own.shape and not any(n % MULTIPLE for n in own.shape)
    assert np.allclose(own.affine[:3, :3], SPACING * np.eye(3))
    assert max(own.shape) * SPACING < 140  # the empty rest of the scan is left out
    assert 0 <= image.min() and image.max() == 1
    expected = ball(own)
    inside, outside = expected > 0, expected == 0
    assert np.corrcoef(image[0].numpy()[inside], expected[inside])[0, 1] > 0.75
    assert ((image[0].numpy() > 0.3) == inside).mean() > 0.95 and outside.any()


def test_an_empty_scan_has_an_input_too():
    image, grid = network_input(np.zeros((20, 30, 10), np.float32), np.eye(4))
    assert not image.any() and image.shape[1:] == grid.shape


def test_the_scale_of_the_intensities_does_not_matter():
    torch.manual_seed(0)
    network = brain_network().eval()
    volume = np.random.default_rng(0).random((40, 48, 40)).astype(np.float32)
    with torch.no_grad():
        first, second = (
            network(network_input(factor * volume, np.diag([3, 3, 3, 1.0]))[0][None]) for factor in (1, 900)
        )
    assert torch.allclose(first, second, atol=1e-4)
    grid = network_input(volume, np.diag([3, 3, 3, 1.0]))[1]
    assert sample(first[0], voxel_map(grid.affine, np.diag([3, 3, 3, 1.0])), volume.shape).shape == (1, 40, 48, 40)

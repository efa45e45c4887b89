from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.spatial.resampling import resample_labels, voxel_map
from tests.helpers.raw_scans import atlas, pose, random_grid

pytestmark = pytest.mark.slow


def dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(1, 14)])


@pytest.mark.parametrize("seed", range(4))
def test_labels_to_the_grid_and_back_lose_little(seed):
    """At equal resolution, in any pose and on any axes."""
    _, label, grid = atlas(2.0, (80, 96, 80))
    matrix = pose(seed)
    matrix[:3, :3] /= np.cbrt(np.linalg.det(matrix[:3, :3]))
    centre = (matrix @ [*(grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1])[:3], 1])[:3]
    own = random_grid(seed, centre, (2.0, 2.0, 2.0), side=200.0)
    native = resample_labels(torch.from_numpy(label)[None], voxel_map(matrix @ grid.affine, own.affine), own.shape)
    prepared_grid = standard_grid(2.0, (80, 98, 84))
    placed = np.linalg.inv(matrix) @ own.affine
    prepared = resample_labels(native, voxel_map(placed, prepared_grid.affine), prepared_grid.shape)
    back = resample_labels(prepared, voxel_map(prepared_grid.affine, placed), own.shape)
    kept = dice(native[0].numpy(), back[0].numpy())
    assert kept.mean() > 0.98 and kept.min() > 0.95

"""Raw-looking scans for the tests: a brain anywhere in space, on a grid of its own, as a scanner would have it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import resample_image, resample_labels, voxel_map

SHAPE, SPACING = (32, 36, 32), 6.0


def atlas(spacing: float = SPACING, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray, Grid]:
    image, label, affine = build_atlas(spacing, shape)
    return image, label, Grid(affine, shape)


def pose(seed: int, nod: float = 20.0) -> np.ndarray:
    """A head's place in the scanner: a matrix [4, 4] from points of the atlas to points of the scan."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    angles = rng.uniform(-1, 1, 3) * (nod, 8, 10)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(rng.uniform(0.92, 1.06, 3))
    matrix[:3, 3] = rng.uniform(-40, 40, 3)
    return matrix


def random_grid(seed: int, centre: np.ndarray, spacing: tuple[float, float, float], side: float = 230.0) -> Grid:
    """Voxels around a point, the axes permuted, flipped and turned."""
    rng = np.random.default_rng(seed)
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice((-1.0, 1.0), 3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix() @ axes * spacing
    shape = tuple(int(np.ceil(side / step)) for step in spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(affine, shape)


def raw_scan(
    seed: int, spacing=(3.0, 2.5, 4.0), skull: bool = False, source: tuple[np.ndarray, np.ndarray, Grid] | None = None
) -> tuple[np.ndarray, np.ndarray, Grid, np.ndarray]:
    """Voxels int16, labels uint8, grid and pose of a scan with bias field and noise; with `skull` in a head of bone and scalp."""
    image, label, grid = source or atlas(3.0, (64, 72, 64))
    place = pose(seed)
    centre = (place @ [*(grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1])[:3], 1])[:3]
    own = random_grid(seed, centre, spacing)
    matrix = voxel_map(place @ grid.affine, own.affine)
    volume = resample_image(torch.from_numpy(in_a_head(image, grid) if skull else image)[None], matrix, own.shape)[
        0
    ].numpy()
    labels = resample_labels(torch.from_numpy(label)[None], matrix, own.shape)[0].numpy()
    if not skull:
        volume[volume < 0.05] = 0
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((4, 4, 4))
    bias = np.exp(0.15 * ndimage.zoom(coarse, np.array(own.shape) / 4, order=3, mode="nearest", grid_mode=True))
    noisy = np.hypot(volume * bias + 0.02 * rng.standard_normal(volume.shape), 0.02 * rng.standard_normal(volume.shape))
    if not skull:
        noisy[volume == 0] = 0
    return (1000 * noisy).astype(np.int16), labels, own, place


def in_a_head(image: np.ndarray, grid: Grid) -> np.ndarray:
    """A brain in fluid, bone and scalp, on a neck."""
    step = grid.spacing
    near = ndimage.binary_closing(np.pad(image > 0, 8), iterations=4)[8:-8, 8:-8, 8:-8]
    distance = ndimage.distance_transform_edt(~near) * step
    head = image.copy()
    head[(image == 0) & (distance <= 3)] = 0.2  # fluid
    head[(distance > 3) & (distance <= 8)] = 0.05  # bone
    head[(distance > 8) & (distance <= 14)] = 1.1  # scalp
    x, y, z = (
        grid.affine[a, a] * np.arange(n).reshape([-1 if b == a else 1 for b in range(3)]) + grid.affine[a, 3]
        for a, n in enumerate(grid.shape)
    )
    neck = ((x / 55) ** 2 + ((y + 35) / 60) ** 2 < 1) & (z < -50) & (distance > 8)
    return np.where(neck & (distance > 14), 0.6, head).astype(np.float32)


def save(path: Path, volume: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return path

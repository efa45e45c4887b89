"""One simulated subject: an anatomy with a shape of its own, imaged by a scanner, with exact labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fedsr_monai.atlas.build import LOW_PASS, grid_affine, label_of, sample, soft_labels, transform
from fedsr_monai.atlas.templates import high_resolution_templates
from fedsr_monai.simulation.fields import grid_axes
from fedsr_monai.simulation.profiles import Profile
from fedsr_monai.simulation.scanner import acquire
from fedsr_monai.simulation.shape import subject_points


def simulate_subject(
    profile: Profile, seed: int | Sequence[int], spacing: float | Sequence[float], shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate one subject of a site: image float32 [D, H, W] in [0, 1] and labels uint8 [D, H, W] on the grid of
    `grid_affine`.

    The labels come from the same warp of the (low-passed) one-hot maps, by argmax. The image is not a warped template
    but tissue means, another template's texture and the scanner's faults on those maps. `seed` is anything that
    `numpy.random.SeedSequence` takes. Shape and look are drawn from separate streams, and the shape does not depend on
    the grid: a subject stays itself under another scanner or resolution.

    Raises:
        UserError: the grid cuts the brain, or the template packages are not installed.
    """
    affine = grid_affine(spacing, shape)
    templates = high_resolution_templates()
    anatomy, look = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    points = subject_points(anatomy, profile.population, affine, shape)
    voxels = transform(np.linalg.inv(templates.affine), points)
    # most of the grid is air: only the voxels that hold some brain are looked up in the 14 maps
    soft, near = soft_labels(tuple(LOW_PASS * np.diag(affine)[:3]))
    inside = ndimage.map_coordinates(near, voxels, order=0, output=bool)
    voxels = voxels[:, inside]
    fractions = np.stack([sample(channel, voxels) for channel in soft])
    label = np.zeros(inside.shape, np.uint8)
    label[inside] = label_of(fractions)
    image = acquire(look, profile.scanner, fractions / 255, inside, voxels, templates, grid_axes(affine, shape))
    return image, label

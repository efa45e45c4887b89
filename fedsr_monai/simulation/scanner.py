"""The image that a scanner takes of a brain, from tissue fractions in space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fedsr_monai.atlas.build import sample
from fedsr_monai.atlas.templates import NUM_REGIONS, Templates
from fedsr_monai.simulation.fields import smooth_field
from fedsr_monai.simulation.profiles import TISSUE, Scanner
from fedsr_monai.simulation.real_anatomy import RealAnatomy

SLOW_VARIATION = ((12.0, 0.03), (3.0, 0.02))  # smoothness in mm, fraction of the signal
LEVELS = 4096  # stored intensities are multiples of 1 / LEVELS: 12 bits, as from scanners, and files that compress well


def acquire(
    rng: np.random.Generator,
    scanner: Scanner,
    fractions: np.ndarray,
    inside: np.ndarray,
    voxels: np.ndarray,
    templates: Templates | RealAnatomy,
    axes: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the image of one subject: float32 [D, H, W] in [0, 1], exactly 0 outside the (imperfect) brain mask.

    Args:
        rng: source of everything random in this scan.
        scanner: the scanner and its protocol.
        fractions: fractions [NUM_REGIONS, N] of the regions in the voxels `inside`; they sum to the fraction of brain (channel
            0 is CSF).
        inside: bool [D, H, W], the voxels that hold some brain.
        voxels: positions [3, N] of these N voxels, in voxel coordinates of the templates.
        templates: source of the texture, the fluid in the sulci and the distance to the ventricles.
        axes: positions of the grid along x, y, z in mm.
    """
    spacing = np.array([axis[1] - axis[0] for axis in axes])
    means = tissue_means(rng, scanner)
    brain = fractions.sum(0)
    signal = _weighted_sum(means, fractions)
    cortex = _weighted_sum(means[[3, 13]], fractions[[3, 13]])
    fluid = np.minimum(np.float32(scanner.sulci) * sample(templates.csf, voxels), 1)
    signal -= fluid * (cortex - means[0] * (fractions[3] + fractions[13]))
    texture = _texture(rng, scanner, voxels, templates)
    signal += scanner.texture_strength * texture * (1 - fractions[0])
    for sigma, size in SLOW_VARIATION:
        signal *= 1 + np.float32(size) * smooth_field(rng, axes, sigma)[0][inside]
    if scanner.periventricular:
        signal -= _leukoaraiosis(rng, scanner, voxels, templates, axes, inside) * fractions[2]
    # the surroundings of the brain (dura, vessels) are visible where the mask is too wide
    around = np.float32(means[0]) * (1.2 + 0.35 * smooth_field(rng, axes, 4.0)[0])
    image = np.clip(around, 0.05, 0.7)
    image[inside] = signal + (1 - brain) * image[inside]
    coverage = np.zeros(inside.shape, np.float32)
    coverage[inside] = brain

    if scanner.blur:
        image = ndimage.gaussian_filter(image, scanner.blur / spacing)
    image = thick_slices(image, spacing, scanner.slice_axis, scanner.slice_thickness)
    image = np.maximum(image, 0) ** np.float32(rng.uniform(*scanner.gamma))
    image *= np.exp(np.float32(scanner.bias_sd) * smooth_field(rng, axes, scanner.bias_scale)[0])
    image = rician(rng, image, scanner.noise)
    mask = strip_mask(rng, coverage, spacing, axes, scanner.strip_error)
    image[~mask] = 0
    image = np.clip(image / np.percentile(image[mask], 99.8), 0, 1)
    return (np.rint(image * LEVELS) / LEVELS).astype(np.float32)


def tissue_means(rng: np.random.Generator, scanner: Scanner) -> np.ndarray:
    """Return the mean signal of each region in this scan."""
    base = np.array([TISSUE[k] + scanner.shift.get(k, 0.0) for k in range(NUM_REGIONS)])
    base = 1 + scanner.contrast * (base - 1)
    jitter = scanner.jitter * np.clip(rng.standard_normal(NUM_REGIONS), -2.5, 2.5)
    jitter[[1, 4]] = jitter[0] + 0.3 * jitter[[1, 4]]  # the ventricles hold the same fluid as label 0
    return np.clip(base + jitter, 0.03, 1.3).astype(np.float32)


def thick_slices(image: np.ndarray, spacing: np.ndarray, axis: int, thickness: float) -> np.ndarray:
    """Average over slabs of `thickness` mm along `axis` and interpolate back linearly."""
    if thickness <= spacing[axis]:
        return image
    size = image.shape[axis]
    slabs = int(np.ceil(size * spacing[axis] / thickness))
    # cumulative sums give the exact mean of a slab whose borders fall between voxels
    total = np.concatenate([np.zeros_like(np.take(image, [0], axis)), np.cumsum(image, axis, dtype=np.float32)], axis)
    edges = np.minimum(np.arange(slabs + 1) * thickness / spacing[axis], size)
    at_edges = _linear(total, edges, axis)
    width = np.diff(edges).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
    means = np.diff(at_edges, axis=axis) / width
    centres = (edges[1:] + edges[:-1]) / 2 - 0.5
    position = np.interp(np.arange(size), centres, np.arange(slabs))
    return _linear(means, position, axis)


def rician(rng: np.random.Generator, image: np.ndarray, sd: float) -> np.ndarray:
    """Return the magnitude of the signal plus complex Gaussian noise."""
    real = image + np.float32(sd) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sd) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.sqrt(real**2 + imaginary**2)


def strip_mask(
    rng: np.random.Generator, coverage: np.ndarray, spacing: np.ndarray, axes: Sequence[np.ndarray], error: float
) -> np.ndarray:
    """Return a brain mask whose border wanders by about `error` mm (standard deviation), on average a little outside."""
    sigma = 2.0
    smooth = ndimage.gaussian_filter(coverage, sigma / spacing)
    slope = 1 / (np.sqrt(2 * np.pi) * sigma)  # slope of a blurred edge, per mm
    wander = 0.3 + error * smooth_field(rng, axes, 9.0)[0]
    mask = smooth > np.clip(0.5 - slope * wander, 0.15, 0.85)
    return ndimage.binary_fill_holes(mask)


def _texture(
    rng: np.random.Generator, scanner: Scanner, voxels: np.ndarray, templates: Templates | RealAnatomy
) -> np.ndarray:
    weight = {"2009c": 1.0, "mni152": 0.0, "mixed": rng.uniform(0, 1)}[scanner.texture]
    texture = np.zeros(voxels.shape[1], np.float32)
    for part, volume in ((weight, templates.texture_2009c), (1 - weight, templates.texture_mni152)):
        if part:
            texture += np.float32(part) * sample(volume, voxels)
    return texture


def _leukoaraiosis(rng, scanner, voxels, templates, axes, inside) -> np.ndarray:
    distance = np.maximum(sample(templates.ventricle_distance, voxels), 0)
    patches = np.clip(0.6 + 0.7 * smooth_field(rng, axes, 5.0)[0][inside], 0, 2)
    strength = scanner.periventricular * np.clip(1 + 0.4 * rng.standard_normal(), 0.2, 2)
    return np.float32(strength) * patches * np.exp(-distance / np.float32(4))


def _weighted_sum(means: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    result = np.zeros(fractions.shape[1], np.float32)
    for mean, part in zip(means, fractions):
        result += mean * part
    return result


def _linear(volume: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    low = np.clip(np.floor(positions).astype(int), 0, volume.shape[axis] - 2)
    weight = (positions - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
    return (1 - weight) * np.take(volume, low, axis) + weight * np.take(volume, low + 1, axis)

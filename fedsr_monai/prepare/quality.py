"""Judging an alignment: the measures, and the limits beyond which a scan is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.alignment import Alignment

OVERLAP = 0.80  # least Dice of the brain with the atlas' brain
# Least correlation ratio. Measured: 0.30 to 0.51 for whole heads, 0.55 to 0.59 for stripped brains; at most 0.16 for the
# same brains turned by 30 or 180 degrees, shifted by 20 mm, or replaced by noise or by the depth below the surface; 0.21
# for the atlas itself, replaced in the same way.
CORRELATION = 0.24
SMOOTHING = 2.0  # mm, standard deviation: voxel by voxel, noise and small misfits would hide the likeness of two brains
SCALE = (0.65, 1.55)  # growth along each principal axis, with room for infants' and large heads
ANISOTROPY = 1.5  # largest ratio between these
TURN = 60.0  # largest rotation in degrees
GAIN = 0.1  # nats by which another orientation must be better before it is blamed
BINS = 32


@dataclass(frozen=True)
class Quality:
    """Hold how well a scan is registered to the atlas.

    `overlap`: Dice of the two brains. `correlation`: correlation ratio, that is, the fraction of the variance of the atlas'
    intensities that the scan's intensities explain (0 none, 1 all; the contrasts may differ), with both images smoothed
    and one voxel inside both brains. `scales`: growth from scan to atlas along the principal axes. `turn`: rotation in
    degrees.
    """

    overlap: float
    correlation: float
    scales: tuple[float, ...]
    turn: float


def quality(alignment: Alignment, on_grid: np.ndarray, atlas: np.ndarray, spacing: float) -> Quality:
    """Measure an alignment.

    Args:
        alignment: alignment of the scan.
        on_grid: the scan's brain [D, H, W] on the grid of the atlas, 0 outside the brain.
        atlas: image [D, H, W] of the atlas, 0 outside the brain.
        spacing: spacing of the grid in mm.
    """
    top = np.percentile(on_grid[on_grid > 0], 50) if (on_grid > 0).any() else 1.0
    own, other = on_grid > 0.1 * top, atlas > 0
    own = ndimage.binary_fill_holes(own)
    both = own & other
    overlap = 2 * both.sum() / max(own.sum() + other.sum(), 1)
    left, scales, right = np.linalg.svd(alignment.matrix[:3, :3])
    rotation = left @ right
    turn = float(np.degrees(Rotation.from_matrix(rotation).magnitude())) if np.linalg.det(rotation) > 0 else 180.0
    deep = ndimage.binary_erosion(both)  # at the border both are dim, whatever they show
    given, explained = (_smoothed(volume, both, SMOOTHING / spacing)[deep] for volume in (on_grid, atlas))
    correlation = correlation_ratio(given, explained) if deep.sum() > 10 * BINS else 0.0
    return Quality(float(overlap), correlation, tuple(float(s) for s in scales), turn)


def _smoothed(volume: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth a volume within a mask; voxels outside have no weight."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    return ndimage.gaussian_filter(np.where(inside, volume, 0), sigma) / np.maximum(weight, 1e-6)


def correlation_ratio(given: np.ndarray, explained: np.ndarray) -> float:
    """Return the fraction of the variance of `explained` that its means in 32 equally filled bins of `given` explain.

    Roche et al., MICCAI 1998.
    """
    edges = np.quantile(given, np.linspace(0, 1, BINS + 1)[1:-1])
    members = np.searchsorted(edges, given)
    counts = np.bincount(members, minlength=BINS)
    means = np.bincount(members, explained, minlength=BINS) / np.maximum(counts, 1)
    variance = explained.var()
    return float((counts * (means - explained.mean()) ** 2).sum() / (len(given) * variance)) if variance > 0 else 0.0


def check_alignment(alignment: Alignment, found: Quality, where: str) -> None:
    """Refuse an alignment that cannot be right.

    Raises:
        UserError: the alignment is refused; the error names `where`, the scan, and the first limit that is violated.
    """
    if alignment.gain > GAIN:
        turn = Rotation.from_matrix(alignment.turned)
        degrees = round(np.degrees(turn.magnitude()))
        axis = "xyz"[int(np.argmax(np.abs(turn.as_rotvec())))]
        better = f"a better fit to the atlas turned by {degrees} degrees about {axis} than as the header says"
        raise UserError(where, better, "x to the right, y to the front and z up", "fix the orientation in the header")
    within = SCALE[0] <= min(found.scales) and max(found.scales) <= SCALE[1]
    if not within or max(found.scales) > ANISOTROPY * min(found.scales):
        text = " x ".join(f"{s:.2f}" for s in found.scales)
        expected = f"{SCALE[0]} to {SCALE[1]}, similar along all axes"
        raise UserError(where, f"growth by {text} to fit the atlas", expected, "check the voxel size and the mask")
    if found.turn > TURN:
        fix = "check the orientation in the header"
        raise UserError(where, f"a turn of {found.turn:.0f} degrees to fit the atlas", f"at most {TURN:.0f}", fix)
    if found.overlap < OVERLAP:
        overlap = f"an overlap with the atlas' brain of {found.overlap:.2f} (Dice)"
        raise UserError(where, overlap, f"{OVERLAP:.2f} or more", "check the mask, or give one")
    if found.correlation < CORRELATION:
        ratio = f"no likeness to the atlas that it was registered to (correlation ratio {found.correlation:.2f})"
        raise UserError(where, ratio, f"{CORRELATION:.2f} or more", "check that it is a brain of the atlas' contrast")

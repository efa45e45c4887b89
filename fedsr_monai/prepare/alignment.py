"""The affine registration of a brain to the atlas, with ITK and several initial maps."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedsr_monai.prepare.bias import coarsen
from fedsr_monai.prepare.itk_image import from_itk_affine, to_itk, to_itk_affine
from fedsr_monai.spatial.grid import Grid

PITCHES = (-25.0, 0.0, 25.0)  # degrees about the axis from ear to ear: heads nod more than they roll
RIM = 10.0  # mm around the atlas' brain that the metric includes
TURNS = 5  # how many of the 23 quarter turns are followed: a right one begins far above the others (0.8 to 1.0 against 0.5 nats)
TURN_ITERATIONS = 20  # enough to see whether a quarter turn fits
# Spacing in mm, iterations, first step in mm, fraction of the voxels that are sampled. To sample all of them on the last level would
# move the map by 0.3 mm and take three times as long.
LEVELS: tuple[tuple[float, int, float, float], ...] = (
    (8.0, 60, 8.0, 1.0),
    (4.0, 100, 1.0, 1.0),
    (2.0, 60, 0.5, 0.25),
)


@dataclass(frozen=True)
class Alignment:
    """Hold the affine map of a scan to an atlas.

    `matrix` [4, 4] takes points of the scan to points of the atlas, RAS+ millimetres; `information` is the mutual
    information of the two images in nats. `turned` is the rotation matrix of the best initial map that does not follow the
    scan's header; `gain` is its advantage in nats over the best one that does.
    """

    matrix: np.ndarray
    information: float
    turned: np.ndarray
    gain: float


class Level(NamedTuple):
    """Hold the images and settings of a search at one resolution.

    Attributes:
        fixed: ITK image of the atlas.
        region: ITK image that is not 0 where the metric is computed in `fixed`.
        moving: ITK image of the scan.
        iterations: largest number of iterations.
        step: length of the first step in mm.
        share: fraction of the region's voxels that the descent samples, regularly spaced.
    """

    fixed: sitk.Image
    region: sitk.Image
    moving: sitk.Image
    iterations: int
    step: float
    share: float

    def copy(self, iterations: int) -> Level:
        """Return a copy for a search in another thread, because ITK stores the requests of a filter in its input images."""
        fixed, region, moving = (sitk.Image(image) for image in self[:3])
        for image in (fixed, region, moving):
            image.MakeUnique()
        return Level(fixed, region, moving, iterations, self.step, self.share)


def cube_rotations() -> Iterator[np.ndarray]:
    """Yield the 24 rotations that take axes to axes, the identity first."""
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[range(3), order] = signs
        if np.linalg.det(matrix) > 0:
            yield matrix


def brain_frame(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centre (mm) and the volume (mm^3) of a mask."""
    voxels = np.argwhere(mask)
    return affine[:3, :3] @ voxels.mean(0) + affine[:3, 3], len(voxels) * abs(np.linalg.det(affine[:3, :3]))


def align(brain: np.ndarray, affine: np.ndarray, atlas: np.ndarray, grid: Grid) -> Alignment:
    """Register a scan to the atlas image.

    Mattes mutual information (Mattes et al., IEEE TMI 2003) over the atlas' brain and a rim around it is maximised by
    gradient descent at three resolutions. The initial maps match the centres of mass. Three of them follow the header,
    with the head pitched by different angles; the best of 23 quarter turns serve only to detect wrong headers.

    Args:
        brain: the scan [D, H, W], 0 outside the brain.
        affine: affine of the scan, [4, 4].
        atlas: image [D, H, W] of the atlas, 0 outside the brain.
        grid: grid of the atlas.
    """
    coarse, *finer = _levels(brain, affine, atlas, grid)
    initial = _InitialMaps(brain, affine, atlas, grid)
    nods = [Rotation.from_euler("x", angle, degrees=True).as_matrix() for angle in PITCHES]
    turns = [turn for turn in cube_rotations() if not np.allclose(turn, np.eye(3))]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # one thread per search: ITK releases Python's lock

        def search(rotation: np.ndarray, iterations: int) -> Future[tuple[np.ndarray, float]]:
            return pool.submit(register, coarse.copy(iterations), initial(rotation))

        nodding = [search(nod, coarse.iterations) for nod in nods]
        begins = [search(turn, 0) for turn in turns]
        followed = sorted(range(len(turns)), key=lambda k: -begins[k].result()[1])[:TURNS]
        searched = [search(turns[k], TURN_ITERATIONS) for k in followed]
    best, information = max((found.result() for found in nodding), key=lambda result: result[1])
    turned = [found.result()[1] for found in searched]
    gain, turn = max(turned) - information, turns[followed[int(np.argmax(turned))]]
    for level in finer:
        best, information = register(level, best)
    return Alignment(np.linalg.inv(best), information, turn, gain)


def _levels(brain: np.ndarray, affine: np.ndarray, atlas: np.ndarray, grid: Grid) -> list[Level]:
    levels = []
    for spacing, iterations, step, share in LEVELS:
        fixed, fixed_affine = coarsen(atlas, grid.affine, max(spacing, grid.spacing))
        moving, moving_affine = coarsen(brain, affine, max(spacing, grid.spacing))
        images = to_itk(fixed, fixed_affine), _region(fixed, fixed_affine), to_itk(moving, moving_affine)
        levels.append(Level(*images, iterations, step, share))
    return levels


class _InitialMaps:
    """Turns a rotation into an initial map, from atlas to scan, that matches the centres and sizes of the two brains."""

    def __init__(self, brain: np.ndarray, affine: np.ndarray, atlas: np.ndarray, grid: Grid) -> None:
        self.centre, volume = brain_frame(atlas > 0, grid.affine)
        self.own_centre, own = brain_frame(brain > 0, affine)
        self.scale = float(np.clip((own / volume) ** (1 / 3), 0.7, 1.4))

    def __call__(self, rotation: np.ndarray) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * rotation
        matrix[:3, 3] = self.own_centre - matrix[:3, :3] @ self.centre
        return matrix


def _region(atlas: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Return the region in which the metric is computed: the brain of the atlas and 10 mm around it."""
    distance = ndimage.distance_transform_edt(atlas <= 0, sampling=np.linalg.norm(affine[:3, :3], axis=0))
    return to_itk(distance <= RIM, affine, np.uint8)


def register(level: Level, initial: np.ndarray) -> tuple[np.ndarray, float]:
    """Find the map with the largest mutual information near an initial one.

    The result is never worse than `initial`. This is checked here because the descent may not end at the best map that it
    has seen, and ITK's switch for that does not restore the parameters of this optimizer.

    Args:
        level: images and settings; with 0 iterations, the initial map is only measured.
        initial: map [4, 4] from fixed to moving points, RAS+ millimetres.

    Returns:
        The map [4, 4] and its mutual information in nats; -inf if ITK finds no overlap.
    """
    fixed, region, moving, iterations, step, share = level
    middle = np.array(fixed.TransformIndexToPhysicalPoint([n // 2 for n in fixed.GetSize()]))
    transform = to_itk_affine(initial, middle)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricFixedMask(region)
    if share < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(share, seed=1)
    method.SetMetricUseFixedImageGradientFilter(False)
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-4,
        numberOfIterations=max(iterations, 1),
        relaxationFactor=0.7,
        estimateLearningRate=method.Once,
        maximumStepSizeInPhysicalUnits=step,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        before = -method.MetricEvaluate(fixed, moving)
        if not iterations:
            return initial, before
        method.Execute(fixed, moving)
        found = from_itk_affine(transform), -method.MetricEvaluate(fixed, moving)
    except RuntimeError:  # ITK: all samples map outside the moving image, or the map has become singular
        return initial, -np.inf
    return max(found, (initial, before), key=lambda result: result[1])

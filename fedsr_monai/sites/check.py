"""Finding every violation of the site folder's contract, by opening every file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.sites.contract import BRAIN_LITRES, entry_kinds, read_spec, section_entries, site_faults
from fedsr_monai.sites.site import Site
from fedsr_monai.spatial.grid import fine_affine, fine_shape
from fedsr_monai.spatial.nifti import numbers, read_volume

AFFINE_TOLERANCE = 1e-3  # mm; headers keep float32
RANGE_TOLERANCE = 1e-4
COARSE = 1.25  # a brain looks larger on a coarse grid, because voxels that it only touches count in full


def check_site(path: str | os.PathLike, atlas_alone: bool = False) -> list[UserError]:
    """Return all violations of the contract below `path`: where, what was found, what was expected, and the fix.

    `site.json` is judged first, then every volume it names. An empty list means that the site is fit for use. Nothing
    is raised for a broken site, however broken.

    Args:
        path: the site folder.
        atlas_alone: open only the volumes of the atlas, for callers that need nothing else from the site.

    Examples:
        >>> import fedsr_monai as fm
        >>> fm.check_site("sites/adult-3t")
        []
        >>> fm.check_site("nowhere")[0].expected
        'a site folder with site.json'
    """
    root = Path(path).absolute()
    try:
        spec = read_spec(root)
    except UserError as error:
        return [error]
    by_key = site_faults(root, spec)
    faults = list(by_key.values())

    # A wrong declaration cannot be compared with: its fault has already been noted, and the rest is still checked.
    labels = {int(key): name for key, name in spec["labels"].items()} if "labels" not in by_key else None
    spacing = spec["spacing"] if "spacing" not in by_key else None
    shape = tuple(spec["shape"]) if "shape" not in by_key else None
    affine = None
    digests: dict[bytes | str, tuple[str, str]] = {}
    seen = set()

    for section, kind, relative in _files(root, spec):
        if (kind, relative) in seen or (atlas_alone and section != "atlas"):
            continue
        seen.add((kind, relative))
        file = root / relative
        try:
            state = file.stat()
            volume = _read(file, kind, state.st_size, state.st_mtime_ns)
        except UserError as fault:
            faults.append(fault)
            continue
        if kind == "fine_label":
            faults += _fine_faults(file, volume, shape, affine)
        else:
            faults += _grid_faults(file, volume, shape, spacing, affine)
        faults += volume.faults
        if affine is None and section == "atlas":
            affine = volume.affine
        if kind != "image":
            if labels is not None and volume.ids:
                faults += _label_faults(file, set(volume.ids), labels, needs_all=section == "atlas")
            continue
        first_section, other = digests.setdefault(volume.digest or relative, (section, relative))
        if other != relative:
            found = f"the same voxels as in {root / other} ({first_section})"
            expected = "each scan once" if first_section == section else "no scan in two sections"
            faults.append(UserError(file, found, expected, "remove one of the two"))
    return faults


def ensure_fit(sites: Iterable[str | os.PathLike | Site], atlas_alone: bool = False) -> None:
    """Refuse sites that violate the contract; everything that trains or evaluates calls this first.

    A volume that was already judged in this process, and has not changed since then, is not opened again.

    Args:
        sites: site folders, or loaded sites.
        atlas_alone: see `check_site`.

    Raises:
        UserErrors: a site violates the contract; the errors name every violation of every site.
    """
    roots = dict.fromkeys(site.root if isinstance(site, Site) else Path(site).absolute() for site in sites)
    faults = [fault for root in roots for fault in check_site(root, atlas_alone)]
    if faults:
        raise UserErrors(faults)


@dataclass(frozen=True)
class _Judged:
    """Hold the findings on one volume: its grid, the faults of its voxels alone, and values to compare with the site.

    `ids` are those of a sound label map, `digest` is that of the voxels of a sound image; otherwise they are empty.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    pixdim: tuple[float, ...]
    faults: tuple[UserError, ...]
    ids: tuple[int, ...] = ()
    digest: bytes = b""


@lru_cache(maxsize=1 << 16)
def _read(file: Path, kind: str, size: int, changed: int) -> _Judged:
    """Read and judge a volume; `size` and `changed` are part of the cache key, so that a changed file is read again."""
    volume = read_volume(file)
    voxels = volume.voxels
    grid = voxels.shape, volume.affine, tuple(volume.header["pixdim"][1:4])
    if kind != "image":
        faults, ids = _id_faults(file, voxels)
        return _Judged(*grid, tuple(faults), ids=ids)
    faults = _image_faults(file, voxels, volume.affine)
    digest = b"" if faults else hashlib.sha256(np.ascontiguousarray(voxels, dtype=np.float32).tobytes()).digest()
    return _Judged(*grid, tuple(faults), digest=digest)


def _files(root: Path, spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield section, kind and normalised relative path of each volume that exists."""
    for where, row in section_entries(spec):
        for kind in entry_kinds(where):
            value = row.get(kind) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value or os.path.isabs(value):
                continue
            if not os.path.normpath(value).startswith("..") and os.path.isfile(root / value):
                yield where.split("[")[0], kind, os.path.normpath(value)


def _grid_faults(
    file: Path,
    volume: _Judged,
    shape: tuple[int, ...] | None,
    spacing: Sequence[float] | None,
    affine: np.ndarray | None,
) -> list[UserError]:
    faults = []

    def fault(found: str, expected: str, fix: str) -> None:
        faults.append(UserError(file, found, expected, fix))

    to_grid = "resample it to the site's grid"
    if shape is not None and volume.shape != shape:
        fault(f"shape {volume.shape}", f"{shape} (site.json)", to_grid)
    sizes = nib.affines.voxel_sizes(volume.affine)
    if not np.allclose(sizes, volume.pixdim, rtol=0, atol=AFFINE_TOLERANCE):
        pixdim = numbers(volume.pixdim)
        fault(f"pixdim {pixdim} mm", f"the affine's {numbers(sizes)} mm", "write the file again with nibabel")
    if (codes := "".join(nib.aff2axcodes(volume.affine))) != "RAS":
        fault(f"orientation {codes}", "RAS", "reorient it, for example with nibabel.as_closest_canonical")
    elif spacing is not None and not np.allclose(sizes, spacing, rtol=0, atol=AFFINE_TOLERANCE):
        fault(f"spacing {numbers(sizes)} mm", f"{numbers(spacing)} (site.json)", to_grid)
    elif affine is not None:
        faults += _affine_faults(file, volume, affine, "the atlas image", "resample it to the atlas' grid")
    return faults


def _fine_faults(
    file: Path, volume: _Judged, shape: tuple[int, ...] | None, affine: np.ndarray | None
) -> list[UserError]:
    fix = "resample the atlas' labels to it, or remove the entry"
    if shape is not None and volume.shape != fine_shape(shape):
        expected = f"{fine_shape(shape)}: voxels of a third of the site's, with the same centres at the corners"
        return [UserError(file, f"shape {volume.shape}", expected, fix)]
    if affine is None:
        return []
    return _affine_faults(file, volume, fine_affine(affine), "a third of the atlas' voxels", fix)


def _affine_faults(file: Path, volume: _Judged, wanted: np.ndarray, source: str, fix: str) -> list[UserError]:
    if np.allclose(volume.affine, wanted, rtol=0, atol=AFFINE_TOLERANCE):
        return []
    row = np.abs(volume.affine - wanted).max(axis=1).argmax()
    found = f"affine row {row + 1} {numbers(volume.affine[row])}"
    return [UserError(file, found, f"{numbers(wanted[row])} ({source})", fix)]


def _image_faults(file: Path, volume: np.ndarray, affine: np.ndarray) -> list[UserError]:
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        return [UserError(file, f"a constant image (all {low:g})", "a scan", "export it again or remove the entry")]
    faults = []
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        faults.append(UserError(file, f"intensities from {low:g} to {high:g}", "[0, 1]", "rescale them"))
    faces = np.concatenate([np.take(volume, (0, -1), axis=axis).ravel() for axis in range(3)])
    zero = float((faces == 0).mean())
    if zero < 0.5:
        found = f"a background that is not zero ({100 * zero:.0f} % of the outer voxels are 0)"
        faults.append(UserError(file, found, "exactly 0", "strip the skull and mask"))
    litres = np.count_nonzero(volume > 0) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    low, high = BRAIN_LITRES[0], BRAIN_LITRES[1] * COARSE
    if not faults and not low <= litres <= high:
        expected = f"a brain of {low} to {high} litres on a background of 0"
        faults.append(
            UserError(file, f"{litres:.2g} litres above 0", expected, "strip the skull, and check the spacing")
        )
    return faults


def _id_faults(file: Path, volume: np.ndarray) -> tuple[list[UserError], tuple[int, ...]]:
    """Return the faults of the ids of a label map, whatever the site's labels are, and the ids if there is no fault."""
    ids = np.unique(volume)
    fractions = ids[ids != np.round(ids)]
    if len(fractions):
        fix = "resample label maps with nearest neighbour"
        return [UserError(file, f"the label {fractions[0]:g}", "whole numbers", fix)], ()
    if not ids.any():
        fix = "export it again or remove the entry"
        return [UserError(file, "an empty label map", "at least one structure", fix)], ()
    return [], tuple(int(value) for value in ids)


def _label_faults(file: Path, ids: set[int], labels: Mapping[int, str], needs_all: bool) -> list[UserError]:
    unknown = sorted(ids - set(labels))
    if unknown:
        expected = f"0 to {len(labels) - 1} (site.json)"
        return [UserError(file, f"unknown label ids {_list(unknown)}", expected, "map or remove them")]
    absent = sorted(set(labels) - ids)
    if needs_all and absent:
        found = f"no voxel of {', '.join(labels[i] for i in absent)}"
        return [UserError(file, found, "all structures of site.json", "label them or shorten the list")]
    return []


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")

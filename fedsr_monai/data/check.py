"""Every breach of the site folder's contract, found by opening every file."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from fedsr_monai.data.contract import SECTIONS, read_json, site_faults
from fedsr_monai.errors import UserError

AFFINE_TOLERANCE = 1e-3  # mm; headers keep float32
RANGE_TOLERANCE = 1e-4


class Breach(Exception):
    """A file that cannot be looked into any further."""


def check_site(path: str | os.PathLike) -> list[str]:
    """All breaches of the contract below `path`, one line each: file, what was found, what was expected, the cure.

    `site.json` is judged first, then every volume it names. An empty list means that the site is fit for use. Nothing
    is raised for a broken site, however broken.
    """
    root = Path(path).absolute()
    try:
        spec = read_json(root)
    except UserError as error:
        return [str(error)]
    faults = site_faults(root, spec)
    if not isinstance(spec, dict):
        return faults

    # What is declared wrongly cannot be compared with: the line about site.json has been written, the rest is still
    # checked.
    sound = {
        key for key in ("labels", "spacing", "shape") if not any(f"site.json: '{key}' " in fault for fault in faults)
    }
    labels = {int(key): name for key, name in spec["labels"].items()} if "labels" in sound else None
    spacing = spec["spacing"] if "spacing" in sound else None
    shape = tuple(spec["shape"]) if "shape" in sound else None
    affine, hashes, seen = None, {}, set()

    for place, kind, relative in _files(root, spec):
        if (kind, relative) in seen:
            continue
        seen.add((kind, relative))
        file = root / relative
        try:
            image, volume = read_nifti(file)
            faults += [f"{file}: {fault}" for fault in _grid_faults(image, shape, spacing, affine)]
        except Breach as breach:
            faults.append(f"{file}: {breach}")
            continue
        if affine is None and place == "atlas":
            affine = image.affine
        if kind == "label":
            found = _label_faults(volume, labels, needs_all=place == "atlas")
        else:
            found = _image_faults(volume)
            digest = hashlib.sha256(np.ascontiguousarray(volume, dtype=np.float32).tobytes()).digest()
            other = hashes.setdefault(digest, (place, relative))
            if other[1] != relative:
                rule = "no scan in two sections" if other[0] != place else "each scan once"
                found.append(
                    f"holds the same voxels as {root / other[1]} ({other[0]}), expected {rule}: remove one of the two"
                )
        faults += [f"{file}: {fault}" for fault in found]
    return faults


def _files(root: Path, spec: dict) -> Iterator[tuple[str, str, str]]:
    """Section, kind and normalised relative path of each volume that is there."""
    rows = [("atlas", spec.get("atlas"))]
    for section in SECTIONS:
        rows += [(section, row) for row in spec.get(section, [])] if isinstance(spec.get(section), list) else []
    for place, row in rows:
        for kind in ("image", "label"):
            value = row.get(kind) if isinstance(row, dict) else None
            if (
                not isinstance(value, str)
                or not value
                or os.path.isabs(value)
                or os.path.normpath(value).startswith("..")
            ):
                continue
            if os.path.isfile(root / value):
                yield place, kind, os.path.normpath(value)


def read_nifti(file: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Image and voxels. The whole file is decompressed, so that a cut or damaged stream is found even behind the last voxel.

    Raises:
        Breach: what is wrong with the file, without its name.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Breach(f"cannot be read ({error.strerror}), expected a readable file: check its permissions") from None
    if not content:
        raise Breach("empty file, expected a NIfTI volume: copy or export it again")
    compressed = content[:2] == b"\x1f\x8b"
    if file.suffix != (".gz" if compressed else ".nii"):
        kind = "a gzip stream" if compressed else "not a gzip stream"
        raise Breach(f"is {kind}, expected .nii.gz for compressed and .nii for plain NIfTI: rename or compress it")
    if compressed:
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, OSError) as error:
            raise Breach(f"broken gzip stream ({error}), expected a complete file: copy or export it again") from None
    if content[344:348] == b"n+1\0":
        kind = nib.Nifti1Image
    elif content[4:8] == b"n+2\0":
        kind = nib.Nifti2Image
    else:
        raise Breach("is not NIfTI, expected a NIfTI-1 or -2 volume: convert it, for example with dcm2niix or nibabel")
    try:
        # nibabel replaces sizes of 0 by 1 when it opens an image; other software does not
        header = kind.header_class(content[: kind.header_class.template_dtype.itemsize], check=False)
        sizes = header.get_zooms()[:3]
        if not (np.isfinite(sizes).all() and min(sizes) > 0):
            raise Breach(f"spacing {_numbers(sizes)} mm, expected sizes above 0: mend the header's pixdim")
        image = kind.from_bytes(content)
        volume = np.asanyarray(image.dataobj)
    except Breach:
        raise
    except Exception as error:  # nibabel raises a dozen types for damaged headers
        raise Breach(
            f"damaged NIfTI ({' '.join(str(error).split())}), expected a complete volume: copy or export it again"
        ) from None
    if volume.dtype.kind not in "iuf":
        raise Breach(f"holds {volume.dtype} voxels, expected whole numbers or floats: export it as one channel")
    return image, volume


def _grid_faults(image: nib.Nifti1Image, shape, spacing, affine) -> list[str]:
    if len(image.shape) != 3:
        raise Breach(
            f"has {len(image.shape)} dimensions {image.shape}, expected a 3-D volume: keep one volume of the series"
        )
    faults = []
    if shape is not None and image.shape != shape:
        faults.append(f"shape {image.shape}, expected {shape} (site.json): resample it to the site's grid")
    sizes = nib.affines.voxel_sizes(image.affine)
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        return faults + [
            f"singular affine with voxel sizes {_numbers(sizes)} mm, expected sizes above 0: mend the header"
        ]
    if not np.allclose(sizes, image.header.get_zooms(), rtol=0, atol=AFFINE_TOLERANCE):
        zooms = _numbers(image.header.get_zooms())
        faults.append(
            f"pixdim {zooms} mm, expected the affine's {_numbers(sizes)} mm: write the file again with nibabel"
        )
    if (codes := "".join(nib.aff2axcodes(image.affine))) != "RAS":
        faults.append(f"orientation {codes}, expected RAS: reorient it, for example with nibabel.as_closest_canonical")
    elif spacing is not None and not np.allclose(sizes, spacing, rtol=0, atol=AFFINE_TOLERANCE):
        faults.append(
            f"spacing {_numbers(sizes)} mm, expected {_numbers(spacing)} (site.json): resample it to the site's grid"
        )
    elif affine is not None and not np.allclose(image.affine, affine, rtol=0, atol=AFFINE_TOLERANCE):
        row = np.abs(image.affine - affine).max(axis=1).argmax()
        faults.append(
            f"affine row {row + 1} is {_numbers(image.affine[row])}, expected {_numbers(affine[row])} "
            "(the atlas image): resample it to the atlas' grid"
        )
    return faults


def _image_faults(volume: np.ndarray) -> list[str]:
    broken = int((~np.isfinite(volume)).sum())
    if broken:
        return [f"{broken} voxels are NaN or infinite, expected numbers in [0, 1]: mend the preprocessing of this scan"]
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        return [f"constant image (all {low:g}), expected a scan: export it again or remove the entry"]
    faults = []
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        faults.append(f"intensities from {low:g} to {high:g}, expected [0, 1]: rescale them")
    faces = np.concatenate([np.take(volume, (0, -1), axis=axis).ravel() for axis in range(3)])
    share = float((faces == 0).mean())
    if share < 0.5:
        faults.append(
            f"background is not zero ({100 * share:.0f} % of the outer voxels are 0), "
            "expected exactly 0: strip the skull and mask"
        )
    return faults


def _label_faults(volume: np.ndarray, labels: dict[int, str] | None, needs_all: bool) -> list[str]:
    if not np.isfinite(volume).all():
        return ["NaN or infinite labels, expected whole numbers: export the label map again"]
    ids = np.unique(volume)
    fractions = ids[ids != np.round(ids)]
    if len(fractions):
        return [
            f"label {fractions[0]:g} is not a whole number, expected ids: resample label maps with nearest neighbour"
        ]
    ids = {int(value) for value in ids}
    faults = []
    if labels is not None:
        unknown = sorted(ids - set(labels))
        if unknown:
            faults.append(
                f"unknown label ids {_list(unknown)}, expected 0 to {len(labels) - 1} (site.json): map or remove them"
            )
        absent = sorted(set(labels) - ids)
        if needs_all and absent and not unknown:
            names = ", ".join(labels[i] for i in absent)
            faults.append(f"no voxel of {names}, expected all structures of site.json: label them or shorten the list")
    if ids == {0}:
        faults.append("empty label map, expected at least one structure: export it again or remove the entry")
    return faults


def _numbers(values) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")

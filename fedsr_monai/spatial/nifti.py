"""NIfTI files: reading with the whole file checked, writing in one step with the same bytes for the same array."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from fedsr_monai.errors import UserError
from fedsr_monai.files import write_bytes


def volume_stem(path: str | os.PathLike) -> str:
    """Return the file name without `.nii`, `.nii.gz`, `.mgz` or `.mgh`."""
    return re.sub(r"\.(nii(\.gz)?|mgz|mgh)$", "", Path(path).name)


def read_nifti(path: str | os.PathLike) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Read an image and its voxels.

    The whole file is decompressed, so that a cut or damaged stream is found even behind the last voxel.

    Raises:
        UserError: the file cannot be read, is not a whole NIfTI-1 or -2 volume of numbers, or its name says other than what it holds.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            file,
            found=f"that it cannot be read ({error.strerror})",
            expected="a readable file",
            fix="check its permissions",
        ) from None
    if not content:
        raise UserError(file, found="an empty file", expected="a NIfTI volume", fix="copy or export it again")
    compressed = content[:2] == b"\x1f\x8b"
    if file.suffix != (".gz" if compressed else ".nii"):
        raise UserError(
            file,
            found="a gzip stream" if compressed else "no gzip stream",
            expected=".nii.gz for compressed and .nii for plain NIfTI",
            fix="rename or compress it",
        )
    if compressed:
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(
                file, found=f"a broken gzip stream ({error})", expected="a complete file", fix="copy or export it again"
            ) from None
    if content[344:348] == b"n+1\0":
        kind = nib.Nifti1Image
    elif content[4:8] == b"n+2\0":
        kind = nib.Nifti2Image
    else:
        raise UserError(
            file,
            found="something else than NIfTI",
            expected="a NIfTI-1 or -2 volume",
            fix="convert it, for example with dcm2niix or nibabel",
        )
    try:
        # nibabel replaces sizes of 0 by 1 when it opens an image; other software does not
        header = kind.header_class(content[: kind.header_class.template_dtype.itemsize], check=False)
        sizes = header.get_zooms()[:3]
        if not (np.isfinite(sizes).all() and min(sizes) > 0):
            raise UserError(
                file, found=f"spacing {numbers(sizes)} mm", expected="sizes above 0", fix="fix the header's pixdim"
            )
        image = kind.from_bytes(content)
        volume = np.asanyarray(image.dataobj)
    except UserError:
        raise
    except Exception as error:  # nibabel raises a dozen types for damaged headers
        raise UserError(
            file,
            found=f"damaged NIfTI ({' '.join(str(error).split())})",
            expected="a complete volume",
            fix="copy or export it again",
        ) from None
    if volume.dtype.kind not in "iuf":
        raise UserError(
            file, found=f"{volume.dtype} voxels", expected="whole numbers or floats", fix="export it as one channel"
        )
    return image, volume


def write_nifti(path: str | os.PathLike, image: nib.Nifti1Image, compresslevel: int = 4) -> None:
    """Write a .nii.gz in one step, gzip without a time stamp.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=compresslevel, mtime=0))


def make_image(volume: np.ndarray, affine: np.ndarray, codes: tuple[int, int]) -> nib.Nifti1Image:
    """Return a NIfTI-1 image in the array's own type, in millimetres, with the affine as qform and sform.

    Args:
        volume: the voxels.
        affine: [4, 4], voxel to millimetre, RAS+.
        codes: qform and sform code of the header.
    """
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units("mm")
    return image


def write_volume(path: str | os.PathLike, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume [D, H, W] in the array's own type in aligned space (codes 2): same array, same bytes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_nifti(path, make_image(volume, affine, codes=(2, 2)))


def numbers(values: Sequence[float]) -> str:
    """Return numbers as text, "(2, 2, 2.5)"."""
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"

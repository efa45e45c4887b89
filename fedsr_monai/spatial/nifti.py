"""Volume files: one reader of NIfTI and FreeSurfer's .mgz, and one writer, which gives the same bytes for the same array."""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHHeader

from fedsr_monai.errors import UserError
from fedsr_monai.files import atomic_path, check_regular
from fedsr_monai.spatial.header import copy_forms, form_conflict, header_of

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
VOXEL_MM = (0.05, 20.0)  # side of a voxel
LARGEST_MM = 1000.0  # side of the volume
LARGEST_BYTES = 1 << 31  # of the voxels: 500 million float32, more than a whole head at 0.35 mm
LARGEST_EXTRAS = 1 << 25  # bytes of header extensions, and of whatever follows the voxels
MILLIMETRES = {1: 1000.0, 3: 0.001}  # millimetres per unit, by NIfTI's code of the unit of space: metre and micrometre

Header = nib.Nifti1Header | nib.Nifti2Header | nib.freesurfer.mghformat.MGHHeader


@dataclass(frozen=True)
class Volume:
    """A volume as it is stored.

    Attributes:
        voxels: [D, H, W], whole numbers or floats, scaled as the header says.
        affine: [4, 4], voxel to millimetre, RAS+: the sform if its code is above 0, else the qform.
        header: both forms in millimetres with their codes (see `spatial.header`), for files that are written in the same
            space; by default made from the affine.
    """

    voxels: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header = None  # type: ignore[assignment]  # made of the affine below

    def __post_init__(self) -> None:
        if self.header is None:
            object.__setattr__(self, "header", header_of(self.affine))


def volume_stem(path: str | os.PathLike) -> str:
    """Return the file name without the suffix of a volume."""
    return re.sub(r"\.(nii(\.gz)?|mg[zh])$", "", Path(path).name)


def read_volume(path: str | os.PathLike) -> Volume:
    """Read a volume: NIfTI-1 or -2 (.nii, .nii.gz) or FreeSurfer (.mgz, .mgh).

    The affine is the one that nibabel gives, in millimetres whatever the unit of the file. Axes of length 1 after the
    third are dropped. The header is judged before any voxel is decompressed. Then no more is decompressed than the header
    promises, plus a limited number of bytes after the voxels, so that a truncated or damaged stream is found even after the
    last voxel. A header whose two forms are more than 0.1 mm apart is read by its sform, and a warning is logged, once per
    file (see `form_conflict`).

    Raises:
        UserError: the file cannot be read, is damaged, is not one 3-D volume of finite numbers, or its suffix does not match
            its content; its orientation is unknown; a form is singular or not finite; its voxels or its size cannot be those
            of a scanned head.
    """
    file = Path(path)
    with _open(file) as stream:
        start, header = _read_header(file, stream)
        with _damage_named(file):
            shape, forms, affine = _geometry(file, header, start)
            size = _size_in_bytes(file, header)
            header.get_slope_inter()
        content = start + _read(file, stream, max(0, size - len(start)))
        if len(content) < size:
            found = f"a file that ends after {len(content)} of {size} bytes"
            raise UserError(file, found, "a complete volume", "copy or export it again")
        if len(_read(file, stream, LARGEST_EXTRAS + 1)) > LARGEST_EXTRAS:
            found = f"more than {LARGEST_EXTRAS} bytes after the voxels"
            raise UserError(file, found, "the size that the header promises", "export it again")
    voxels = np.asanyarray(ArrayProxy(io.BytesIO(content), header)).reshape(shape, order="F")
    if not voxels.dtype.isnative:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="), order="K")
    if voxels.dtype.kind == "f" and (broken := int((~np.isfinite(voxels)).sum())):
        raise UserError(file, f"{broken} voxels that are NaN or infinite", "numbers", "export it again")
    if conflict := form_conflict(forms, shape):
        _warn_once(f"{file}: {conflict}")
    return Volume(voxels, affine, forms)


def read_geometry(path: str | os.PathLike) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a volume from its header alone; see `read_volume`.

    Raises:
        UserError: the file cannot be read or its header is refused.
    """
    file = Path(path)
    with _open(file) as stream:
        start, header = _read_header(file, stream)
        with _damage_named(file):
            shape, _, affine = _geometry(file, header, start)
    return shape, affine


@lru_cache(maxsize=1024)
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    if not file.name.endswith(SUFFIXES):
        fix = "convert it, for example with dcm2niix or nibabel"
        raise UserError(file, f"a file that is not {', '.join(SUFFIXES)}", "a NIfTI or FreeSurfer volume", fix)
    if file.is_symlink() and not file.exists():
        found = f"a link to {os.readlink(file)}, which does not exist"
        raise UserError(
            file, found, "a volume", "fetch the file that the link stands for, for example with datalad get"
        )
    if not file.exists():
        raise UserError(file, "no such file", "a volume", "check the path")
    check_regular(file, "a volume", "check the path")
    try:
        raw = open(file, "rb")
        start = raw.read(2)
        raw.seek(0)
    except OSError as error:
        found = f"that it cannot be read ({error.strerror})"
        raise UserError(file, found, "a readable file", "check the path and its permissions") from None
    with raw:
        if not start:
            raise UserError(file, "an empty file", "a NIfTI or FreeSurfer volume", "copy or export it again")
        compressed = start == b"\x1f\x8b"
        if compressed != (file.suffix in (".gz", ".mgz")):
            raise UserError(
                file,
                found="a gzip stream" if compressed else "no gzip stream",
                expected=".nii.gz or .mgz for compressed and .nii or .mgh for plain volumes",
                fix="rename or compress it",
            )
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw


def _read(file: Path, stream: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, or all that are left if there are fewer."""
    try:
        return stream.read(count)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(file, f"a broken gzip stream ({error})", "a complete file", "copy or export it again") from None


def _read_header(file: Path, stream: BinaryIO) -> tuple[bytes, Header]:
    """Return the first bytes of a file and the header in them."""
    mgh = file.suffix in (".mgz", ".mgh")
    start = _read(file, stream, 284 if mgh else 540)
    kind: type[Header]
    if mgh:
        kind = MGHHeader
    elif start[344:348] == b"n+1\0":
        kind = nib.Nifti1Header
    elif start[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
    else:
        fix = "convert it, for example with dcm2niix or nibabel"
        raise UserError(file, "something else than NIfTI", "a NIfTI-1 or -2 volume", fix)
    with _damage_named(file):
        return start, kind.from_fileobj(io.BytesIO(start))


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turn the many types of exception that nibabel raises for a damaged header into an error that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = f"a damaged header ({' '.join(str(error).split())})"
        raise UserError(file, found, "a complete volume", "copy or export it again") from None


def _geometry(file: Path, header: Header, start: bytes) -> tuple[tuple[int, ...], nib.Nifti1Header, np.ndarray]:
    """Return shape, forms and affine from a header, if they can be those of a head.

    Raises:
        UserError: they cannot be.
    """
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3 or min(shape) < 1 or max(shape[3:], default=1) > 1 or min(shape[:3]) < 2:
        raise UserError(file, f"the shape {shape}", "one 3-D volume", "take one volume out of the series")
    if isinstance(header, MGHHeader):
        forms, affine = _mgh_forms(file, header, start)
    else:
        forms, affine = _nifti_forms(file, header, start)
    check_size(file, np.linalg.norm(affine[:3, :3], axis=0), shape[:3])
    return shape[:3], forms, affine


def check_size(where: object, sides: Iterable[float], shape: Sequence[int]) -> None:
    """Refuse voxels and volumes whose size cannot be that of a scanned head.

    Args:
        where: the file, for the message.
        sides: the three sides of a voxel in mm.
        shape: shape of the volume.

    Raises:
        UserError: the size of the voxels or of the volume is out of range.
    """
    sides = np.array([*sides], dtype=float)
    if not VOXEL_MM[0] <= min(sides) <= max(sides) <= VOXEL_MM[1]:
        expected = f"sides of {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm"
        raise UserError(
            where, f"voxels of {numbers(sides)} mm", expected, "correct the header's unit (xyzt_units) or sizes"
        )
    extent = sides * shape
    if extent.max() > LARGEST_MM:
        expected = f"at most {LARGEST_MM:g} mm along each axis"
        raise UserError(where, f"a volume of {numbers(extent)} mm", expected, "correct the header, or crop the scan")


def _nifti_forms(file: Path, header: nib.Nifti1Header, start: bytes) -> tuple[nib.Nifti1Header, np.ndarray]:
    # When nibabel reads a header, it replaces sizes of 0 by 1, and those below 0 by their absolute value; other programs
    # do not.
    sizes = type(header)(start[: header.template_dtype.itemsize], check=False)["pixdim"][1:4]
    if not (np.isfinite(sizes).all() and min(sizes) > 0):
        raise UserError(file, f"spacing {numbers(sizes)} mm", "sizes above 0", "fix the header's pixdim")
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        raise UserError(
            file,
            found="an unknown orientation (qform and sform code 0)",
            expected="at least one form with its code",
            fix="convert it again from DICOM; if you know that its affine is right, set a code: "
            "nibabel's image.set_sform(image.affine, code=1)",
        )
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    affines = [
        _checked(file, name, form(), scale)
        for name, form, code in (("sform", header.get_sform, codes[0]), ("qform", header.get_qform, codes[1]))
        if code > 0
    ]
    forms = nib.Nifti1Header()
    copy_forms(header, forms)
    forms["pixdim"][1:4] *= scale
    for field in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        forms[field] = forms[field] * scale
    return forms, affines[0]


def _mgh_forms(file: Path, header: MGHHeader, start: bytes) -> tuple[nib.Nifti1Header, np.ndarray]:
    if int.from_bytes(start[28:30], "big", signed=True) <= 0:  # nibabel would use a default orientation
        fix = "convert it again from DICOM"
        raise UserError(file, "an unknown orientation (goodRASFlag 0)", "a header with the orientation", fix)
    affine = _checked(file, "header", header.get_affine(), 1.0)
    return header_of(affine), affine


def _checked(file: Path, name: str, form: np.ndarray, scale: float) -> np.ndarray:
    """Return a form [4, 4] in millimetres.

    Raises:
        UserError: the form is singular or not finite.
    """
    form = np.array(form, dtype=float)
    form[:3] *= scale
    finite = np.isfinite(form).all()
    if not finite or not abs(np.linalg.det(form[:3, :3])) > 1e-3 * np.prod(np.linalg.norm(form[:3, :3], axis=0)):
        found = f"a singular affine in its {name}" if finite else f"numbers that are not finite in its {name}"
        raise UserError(file, found, "voxels with a volume", "fix the header, or convert the scan again from DICOM")
    return form


def _size_in_bytes(file: Path, header: Header) -> int:
    """Return how many bytes the header promises, for itself and the voxels.

    Raises:
        UserError: there are more than a head needs, or the voxels are not numbers.
    """
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    if dtype.kind not in "iuf":
        raise UserError(file, f"{dtype} voxels", "whole numbers or floats", "export it as one channel")
    size = dtype.itemsize * int(np.prod([int(n) for n in header.get_data_shape()], dtype=object))
    if offset < 0:
        raise UserError(file, f"voxels from byte {offset} on", "the header before them", "copy or export it again")
    if size > LARGEST_BYTES or offset > LARGEST_EXTRAS:
        expected = f"at most {LARGEST_BYTES >> 20} MiB"
        raise UserError(
            file, f"a volume of {(offset + size) >> 20} MiB", expected, "crop the scan or take larger voxels"
        )
    return offset + size


def write_nifti(path: str | os.PathLike, image: nib.Nifti1Image, repeats: bool = True) -> None:
    """Write a .nii.gz in one step, gzip-compressed without a time stamp.

    Args:
        path: the file.
        image: the image to write.
        repeats: True gives the same bytes on every machine, and small files if sequences repeat. False is for a deformation
            at 1 mm: zlib takes longer for its 120 MB of floating-point numbers without a pattern than for all other files of
            a scan, whereas ISA-L packs them in a quarter of the time of zlib's fastest level, and smaller.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    kind, level = (gzip.GzipFile, 4) if repeats else (igzip.IGzipFile, 1)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # Compressed as it is written: the bytes of a deformation would take up the memory of its array twice more.
        with kind(filename="", mode="wb", compresslevel=level, fileobj=file, mtime=0) as packed:
            image.to_stream(packed)


def make_image(volume: np.ndarray, header: nib.Nifti1Header) -> nib.Nifti1Image:
    """Return a NIfTI-1 image in the array's own type, in millimetres, with both forms and codes of `header`."""
    image = nib.Nifti1Image(volume, header.get_best_affine())
    copy_forms(header, image.header)
    return image


def write_volume(path: str | os.PathLike, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume [D, H, W] in the array's own type in aligned space (codes 2): same array, same bytes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_nifti(path, make_image(volume, header_of(affine, codes=(2, 2))))


def numbers(values: Iterable[float]) -> str:
    """Return numbers as text, such as "(2, 2, 2.5)"."""
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"

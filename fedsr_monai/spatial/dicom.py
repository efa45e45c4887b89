"""Reading DICOM: finding the series that is the scan, and its voxels in space. Needs pydicom and ITK (the extra `dicom`).

Headers are read with pydicom, so that errors can say what is wrong with a series; voxels and geometry come from ITK's GDCM.
Names of patients are neither kept nor shown.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsr_monai.errors import UserError, one_line
from fedsr_monai.files import check_regular, files_below
from fedsr_monai.spatial.nifti import LARGEST_BYTES, Volume, check_size, read_volume

if TYPE_CHECKING:
    from pydicom import Dataset

MAGIC = b"DICM"  # after a preamble of 128 bytes
MR_IMAGE, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "SeriesNumber", "SeriesDescription", "ProtocolName", "ImageType", "EchoTime", "Rows", "Columns", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "SamplesPerPixel", "PhotometricInterpretation",
]  # fmt: skip
NEEDED = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2, "Rows": 1, "Columns": 1}
T1 = re.compile(r"t1|mp2?[-_ ]?rage|spgr|bravo|3d[-_ ]?tfe|tfl3d", re.IGNORECASE)
NO_SCAN = {"LOCALIZER", "MPR", "PROJECTION IMAGE", "MOSAIC"}  # in ImageType: not a volume as the scanner measured it
NO_IMAGES = {"SEG", "SR", "PR", "KO", "REG", "DOC", "RTSTRUCT"}
AWAY = 0.1  # mm; how far a slice may be from its position at equal steps
SAME_DIRECTION = 1e-4  # tolerance of the direction cosines, which are written with few digits


@dataclass(frozen=True)
class Series:
    """One series of a folder.

    Attributes:
        folder: folder that it was found in.
        uid: its SeriesInstanceUID.
        headers: headers of its images, without voxels; from `read_header`.
    """

    folder: Path
    uid: str
    headers: list[Dataset]

    @property
    def number(self) -> str:
        """Return the number of the series in its study, or "" if it has none."""
        return _text(self.headers[0], "SeriesNumber")

    @property
    def files(self) -> list[Path]:
        """Return the files of its images, in the order of the headers."""
        return [Path(header.filename) for header in self.headers]

    def __str__(self) -> str:
        name = _text(self.headers[0], "SeriesDescription") or _text(self.headers[0], "ProtocolName") or "no description"
        return f"series {self.number or '?'} ({name}, {len(self.headers)} images)"


def require_dicom(seg: bool = False) -> None:
    """Check that the packages that read DICOM are installed and, with `seg`, the one that writes DICOM SEG.

    Raises:
        UserError: a package is not installed.
    """
    for package in ("pydicom", "SimpleITK", *(["highdicom"] if seg else [])):
        if importlib.util.find_spec(package) is None:
            fix = "run `pip install 'fedsr-monai[dicom]'`"
            raise UserError(f"package {package}", "no installation", "one, for DICOM", fix)


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, judging by its first bytes; a pipe or a device, which could block the reader, is not."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            file.seek(128)
            return file.read(4) == MAGIC
    except OSError:
        return False


def find_studies(folder: str | os.PathLike) -> list[Path]:
    """Return the folders that each hold one DICOM study, in order; an empty list if there is no DICOM file.

    This is `folder` itself if images lie in it, or if all images below it are of one study (an export with a folder for
    each series); otherwise, the studies of its subfolders.
    """
    root = Path(folder)
    studies: dict[Path, str] = {}  # the study of the first image in each folder
    for file in files_below(root):
        if file.parent not in studies and file.name != "DICOMDIR" and is_dicom(file) and (study := _study(file)):
            studies[file.parent] = study
    if root in studies or len(set(studies.values())) == 1:
        return [root]
    children = sorted({root / parent.relative_to(root).parts[0] for parent in studies})
    return [study for child in children for study in find_studies(child)]


def _study(file: Path) -> str | None:
    """Return the study of an image, or its folder if the header lacks it or is damaged; None for other objects (reports, SEG)."""
    try:
        header = read_header(file)
    except UserError:
        return str(file.parent)
    return None if _text(header, "Modality") in NO_IMAGES else _text(header, "StudyInstanceUID") or str(file.parent)


def read_header(file: Path) -> Dataset:
    """Return the header of a DICOM file, with the elements by which a series is judged.

    Raises:
        UserError: pydicom is not installed, or the file is damaged.
    """
    require_dicom()
    check_regular(file, "a DICOM file", "export the series again")
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
        header.decode()
    except Exception as error:
        found = f"a damaged DICOM file ({one_line(error)})"
        raise UserError(file, found, "a complete file", "export the series again") from None
    return header


def find_series(folder: str | os.PathLike, wanted: str | None = None) -> Series:
    """Return the series of a folder that is the T1 scan; its images are in the order of their slices.

    A single MR series is taken, whatever it is called. If there are several, the one is taken whose description or protocol
    names a T1 sequence and which is neither a localiser nor a reformatted series; if that is not exactly one, `wanted` has
    to say which.

    Args:
        folder: folder that is searched, with all its subfolders.
        wanted: UID or number of the series.

    Raises:
        UserError: no series, or more than one, can be the scan; or its images are not one volume (see `check_series`).
    """
    folder = Path(folder)
    groups: dict[str, dict[str, Dataset]] = {}
    for file in files_below(folder):
        if file.name != "DICOMDIR" and is_dicom(file):
            header = read_header(file)
            if lacking := [key for key in ("SOPClassUID", "SeriesInstanceUID") if not _text(header, key)]:
                raise UserError(file, f"no {lacking[0]}", "a complete DICOM file", "export the series again")
            images = groups.setdefault(_text(header, "SeriesInstanceUID"), {})
            images.setdefault(_text(header, "SOPInstanceUID") or str(file), header)  # copies of an image count once
    every = [Series(folder, uid, list(images.values())) for uid, images in groups.items()]
    every.sort(key=lambda one: (int(one.number) if one.number.lstrip("-").isdigit() else 0, one.uid))
    return check_series(_choose(folder, every, wanted))


def _choose(folder: Path, every: list[Series], wanted: str | None) -> Series:
    mr = [one for one in every if _text(one.headers[0], "Modality") == "MR"]
    if not mr:
        kinds = Counter(_text(one.headers[0], "Modality") or "unknown modality" for one in every)
        found = ", ".join(f"{count} series of {kind}" for kind, count in kinds.items()) or "no DICOM file"
        raise UserError(folder, found, "a T1-weighted MR series", "give the folder of one")
    if wanted is not None:
        chosen = [one for one in mr if wanted in (one.uid, one.number)]
    elif len(mr) == 1:
        chosen = mr
    else:
        chosen = [one for one in mr if _may_be_the_scan(one)]
    if len(chosen) == 1:
        return chosen[0]
    listed = "; ".join(f"{one} UID {one.uid}" for one in mr)
    if wanted is not None:
        kind = f"{len(chosen)} series of that number" if chosen else "no such MR series"
        raise UserError(f"{folder}: --series {wanted}", f"{kind} among {listed}", "the UID of one of them")
    kind = f"{len(chosen)} that may be the T1 scan" if chosen else "none that is called T1"
    fix = "choose one with --series UID (or its number), or give a folder with that series alone"
    raise UserError(folder, f"{len(mr)} MR series, {kind}: {listed}", "one T1-weighted series", fix)


def _may_be_the_scan(series: Series) -> bool:
    header = series.headers[0]
    kinds = {str(kind).upper() for kind in _values(header, "ImageType")}
    names = f"{_text(header, 'SeriesDescription')} {_text(header, 'ProtocolName')}"
    return bool(T1.search(names)) and not kinds & NO_SCAN and _text(header, "SOPClassUID") == MR_IMAGE


def check_series(series: Series) -> Series:
    """Return a series with its images in the order of their slices, along the normal of the first.

    Raises:
        UserError: the images are not the slices of one volume: they are multi-frame or colour, differ in size or orientation,
            share a position, lack a slice, are sheared, or are not equally spaced.
    """
    where, headers = f"{series.folder}: {series}", series.headers
    kinds = {_text(header, "SOPClassUID") for header in headers}
    if ENHANCED_MR in kinds:
        fix = "convert it with dcm2niix, or export it as classic (single-frame) MR"
        raise UserError(where, "enhanced multi-frame MR", "one file for each slice", fix)
    if kinds != {MR_IMAGE}:
        raise UserError(where, "images that are not MR Image Storage", "MR images", "give another series")
    if "MOSAIC" in _values(headers[0], "ImageType"):
        raise UserError(where, "mosaics of slices", "one file for each slice", "give another series")
    for keyword, length in NEEDED.items():
        if lacking := sum(len(_values(header, keyword)) != length for header in headers):
            found = f"{lacking} images without {keyword}"
            raise UserError(where, found, "it in each image", "export the series again")
    if {_text(h, "PhotometricInterpretation") for h in headers} != {"MONOCHROME2"}:
        fix = "export it as a series of grey images"
        raise UserError(where, "colours or inverted grey values", "grey values (MONOCHROME2)", fix)
    _same(where, {(int(h.Rows), int(h.Columns)) for h in headers}, "sizes of images")
    _same(where, {_text(h, "FrameOfReferenceUID") for h in headers}, "frames of reference")
    orientations = np.array([_values(h, "ImageOrientationPatient") for h in headers], dtype=float)
    directions = len(np.unique(np.round(orientations / SAME_DIRECTION / 10), axis=0))
    if np.abs(orientations - orientations[0]).max() > SAME_DIRECTION:
        _several(where, directions, "orientations of slices")
    across = orientations[0].reshape(2, 3)
    if np.abs(across @ across.T - np.eye(2)).max() > 1e-3:
        raise UserError(where, "an orientation that is no two directions at right angles", "one", "export it again")
    spacings = np.array([_values(h, "PixelSpacing") for h in headers], dtype=float)
    if np.abs(spacings - spacings[0]).max() > 1e-4:
        _several(where, len(np.unique(spacings, axis=0)), "pixel spacings")
    return Series(series.folder, series.uid, _in_order(where, headers, orientations[0]))


def _same(where: str, values: set, what: str) -> None:
    if len(values) > 1:
        _several(where, len(values), what)


def _several(where: str, count: int, what: str) -> None:
    raise UserError(where, f"{count} {what}", "the slices of one volume", "give a series with one volume")


def _in_order(where: str, headers: list[Dataset], orientation: np.ndarray) -> list[Dataset]:
    """Return the headers of parallel slices, sorted along their normal.

    Raises:
        UserError: the positions are not those of a volume.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.array([_values(header, "ImagePositionPatient") for header in headers], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    positions, count = positions[order], len(order)
    if count < 2:
        raise UserError(where, "a single slice", "a 3-D volume", "give the whole series")
    gaps = np.diff(positions @ normal)
    if gaps.min() < 1e-3:
        times = sorted({_text(header, "EchoTime") for header in headers} - {""})
        several = f" (echo times {', '.join(times)} ms)" if len(times) > 1 else ""
        found = f"several images at one position{several}"
        raise UserError(where, found, "one volume", "give a series with one echo, phase and repetition")
    usual = float(np.median(gaps))
    if len(holes := np.flatnonzero(gaps > 1.5 * usual)):
        steps = gaps[holes] / usual
        if np.abs(steps - np.round(steps)).max() < 0.1 and np.abs(np.delete(gaps, holes) - usual).max() < 0.1 * usual:
            missing = int((np.round(steps) - 1).sum())
            found = f"{missing} missing slice{'s' * (missing > 1)}, first behind slice {holes[0] + 1} of {count}"
            raise UserError(where, found, f"one every {usual:.4g} mm", "export the whole series again")
    step = (positions[-1] - positions[0]) / (count - 1)
    away = np.linalg.norm(positions - positions[0] - np.arange(count)[:, None] * step, axis=1).max()
    if away > AWAY:
        found = f"slices {gaps.min():.4g} to {gaps.max():.4g} mm apart, up to {away:.2g} mm from equal steps"
        raise UserError(where, found, "equal distances", "resample the series, for example with dcm2niix")
    shear = np.linalg.norm(step - (step @ normal) * normal) * (count - 1)
    if shear > AWAY:
        found = f"sheared slices (a tilted gantry), by {shear:.3g} mm from the first to the last"
        raise UserError(where, found, "slices at right angles to their stack", "resample it, for example with dcm2niix")
    return [headers[number] for number in order]


def read_series(folder: str | os.PathLike, wanted: str | None = None) -> Volume:
    """Read the T1 scan of a folder of DICOM files as float32, rescaled as each image says; see `find_series`.

    Axes 0, 1 and 2 are columns, rows and slices.

    Raises:
        UserError: see `find_series`; or the images cannot be decoded or are not complete.
    """
    series = find_series(folder, wanted)
    where, header = f"{series.folder}: {series}", series.headers[0]
    first, last = (np.array(_values(series.headers[n], "ImagePositionPatient"), dtype=float) for n in (0, -1))
    rows, columns = map(float, _values(header, "PixelSpacing"))
    shape = int(header.Columns), int(header.Rows), len(series.headers)
    check_size(where, (columns, rows, float(np.linalg.norm(last - first)) / (shape[2] - 1)), shape)
    if (size := 4 * int(np.prod(shape, dtype=object))) > LARGEST_BYTES:
        expected = f"at most {LARGEST_BYTES >> 20} MiB"
        raise UserError(where, f"a volume of {size >> 20} MiB", expected, "give a series with larger voxels")
    try:
        image = _decoded(series.files)
    except RuntimeError:
        raise _undecodable(series) from None
    import SimpleITK as sitk

    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # from LPS+ to RAS+
    if broken := int((~np.isfinite(voxels)).sum()):
        raise UserError(where, f"{broken} voxels that are NaN or infinite", "numbers", "export it again")
    return Volume(voxels, affine)


def _decoded(files: list[Path]) -> Any:
    """Return the slices in these files as an ITK image of floats.

    Raises:
        RuntimeError: GDCM cannot read one of them.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.SetFileNames([str(file) for file in files])
    return reader.Execute()


def _undecodable(series: Series) -> UserError:
    """Return the error that names the first image of a series that ITK cannot read."""
    broken = series.headers[0]
    for broken in series.headers:
        try:
            _decoded([Path(broken.filename)])
        except RuntimeError:
            break
    name = getattr(broken.file_meta.get("TransferSyntaxUID"), "name", "unknown transfer syntax")
    fix = "export the series again, uncompressed, or decompress it, for example with gdcmconv --raw"
    return UserError(
        broken.filename, f"an image that cannot be decoded ({name})", "a complete image that GDCM reads", fix
    )


def read_volume_or_series(path: str | os.PathLike, wanted: str | None = None) -> Volume:
    """Read a volume from its file, or the T1 scan of a folder of DICOM files.

    Raises:
        UserError: see `read_volume` and `read_series`.
    """
    return read_series(path, wanted) if os.path.isdir(path) else read_volume(path)


def series_sha256(series: Series) -> str:
    """Return the SHA-256 checksum of the images of a series, in their order."""
    digest = hashlib.sha256()
    for file in series.files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else " ".join(str(value).split())


def _values(header: Dataset, keyword: str) -> list[Any]:
    value = header.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]

"""The list of scans that `fedsr segment` is given, and the names of the files that it writes for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedsr_monai.errors import UserError
from fedsr_monai.files import sha256
from fedsr_monai.inference.ledger import written_files
from fedsr_monai.prepare.sources import find_sources, say_left_out
from fedsr_monai.spatial.dicom import Series, find_series, find_studies, is_dicom, series_sha256
from fedsr_monai.spatial.nifti import SUFFIXES, volume_stem


@dataclass(frozen=True)
class ResultFiles:
    """Paths of the files of one scan, below the folder of the results.

    Attributes:
        labels: label map of the segmentation head.
        atlas_labels: atlas labels, carried over by the registration.
        warp: the deformation.
        alignment: picture of the affine alignment of a raw scan.
    """

    labels: str
    atlas_labels: str
    warp: str
    alignment: str

    @classmethod
    def of(cls, name: str) -> ResultFiles:
        """Return the usual names: `<name>_dseg.nii.gz` and so on."""
        return cls(f"{name}_dseg.nii.gz", f"{name}_atlas-dseg.nii.gz", f"{name}_warp.nii.gz", f"{name}_alignment.png")

    @property
    def note(self) -> str:
        """Path of the note beside a label map that was rejected but written all the same."""
        return self.labels.removesuffix(".nii.gz") + ".rejected"

    @property
    def dicom_seg(self) -> str:
        """Path of the DICOM SEG with the labels of a DICOM series."""
        return self.labels.removesuffix(".nii.gz") + ".dcm"

    def all(self, register: bool, raw: bool, dicom_seg: bool = False) -> list[str]:
        """Return the files that a run with these options may write, tables of labels and the note included."""
        files = [self.labels, table_of(self.labels), self.note] + [self.dicom_seg] * dicom_seg
        if register:
            files += [self.atlas_labels, table_of(self.atlas_labels), self.warp]
        return [*files, self.alignment] if raw else files


def table_of(label_map: str) -> str:
    """Return the path of the table of labels beside a label map."""
    return str(Path(label_map).with_name(volume_stem(label_map) + ".tsv"))


@dataclass(frozen=True)
class Scan:
    """A scan to label.

    Attributes:
        path: its file, or the folder of its DICOM files.
        name: name of its result in the tables and in the record of the folder.
        files: files that are written for it.
        mask: its brain mask, or None.
        series: UID or number of its DICOM series, if one was given.
    """

    path: Path
    name: str
    files: ResultFiles
    mask: Path | None = None
    series: str | None = None

    @cached_property
    def dicom(self) -> Series:
        """Return the scan's DICOM series, whose headers are read only once.

        Raises:
            UserError: the series cannot be used.
        """
        return find_series(self.path, self.series)

    def sha256(self) -> str:
        """Return the SHA-256 checksum of the file or files that the scan is read from.

        Raises:
            UserError: its DICOM series cannot be used.
        """
        return series_sha256(self.dicom) if self.path.is_dir() else sha256(self.path)


def list_scans(
    scans: Sequence[str | os.PathLike],
    masks: Sequence[str | os.PathLike] = (),
    series: str | None = None,
    only_dicom: bool = False,
) -> tuple[list[Scan], list[UserError]]:
    """Return the scans that can be tried, and one error for each that cannot. No volume is opened.

    Args:
        scans: paths of volumes, or of folders, which stand for the volumes and DICOM studies in them (see `find_sources`).
        masks: a brain mask for each scan, in the same order, or none at all; for folders, masks are found beside the scans.
        series: UID or number of the DICOM series in each study; if it is given, volumes are refused.
        only_dicom: refuse volumes, and ignore those in folders.

    Raises:
        UserError: there is no scan, or the number of masks differs from the number of scans.
    """
    if not scans:
        raise UserError("scans", found="none", expected="at least one NIfTI file", fix="name them")
    if masks and len(masks) != len(scans):
        fix = "give one mask per scan, in the same order"
        raise UserError(
            "--masks", found=f"{len(masks)} masks for {len(scans)} scans", expected="as many masks as scans", fix=fix
        )
    files: list[tuple[Path, str, Path | None]] = []
    errors: list[UserError] = []
    only_dicom = only_dicom or series is not None
    for index, path in enumerate(map(Path, scans)):
        if path.is_dir() and masks and find_studies(path) == [path]:
            files.append((path, path.resolve().name, Path(masks[index])))
        elif path.is_dir():
            try:
                listed, refused = list_folder(path, only_dicom)
                files += listed
                errors += refused
            except UserError as error:
                errors.append(error)
        else:
            files.append((path, volume_stem(path), Path(masks[index]) if masks else None))
    found: dict[str, Scan] = {}
    for path, name, mask in files:
        fault = path_error(path)
        if fault is None and only_dicom and not path.is_dir():
            fix = "give the folder of its DICOM files, or leave out --dicom_seg and --series"
            fault = UserError(
                path, found="a volume that is no DICOM series", expected="a folder of DICOM files", fix=fix
            )
        if fault is None and name in found:
            fault = UserError(
                path,
                found=f"the name of {found[name].path}, whose result it would replace",
                expected="scans of different names",
                fix="rename one, or write them to two folders",
            )
        if fault is None:
            found[name] = Scan(path, name, ResultFiles.of(name), mask, series)
        else:
            errors.append(fault)
    return list(found.values()), errors


def list_folder(folder: Path, only_dicom: bool = False) -> tuple[list[tuple[Path, str, Path | None]], list[UserError]]:
    """Return path, name and mask of each scan in a folder, and an error for each that is refused.

    Files that this program wrote there are not scans. Templates and similar files are left out, with a printed notice.

    Raises:
        UserError: the folder holds no scan.
    """
    own = {folder / file for file in written_files(folder)}
    found = find_sources(folder, "dicom" if only_dicom else None)
    say_left_out(found)
    sources = [(source.image, source.name, source.mask) for source in found.sources]
    scans = [scan for scan in sources if scan[0] not in own]
    if not scans and not found.refused:
        expected = "DICOM files" if only_dicom else f"volumes ({', '.join(SUFFIXES)}) or DICOM files"
        raise UserError(folder, found="no scan", expected=expected, fix="check the path")
    return scans, list(found.refused.values())


def path_error(path: Path) -> UserError | None:
    """Return what is wrong with the path of a scan; None if nothing is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        return UserError(shown, found="a name that is not UTF-8", expected="UTF-8", fix="rename the file")
    if path.is_dir():  # it holds DICOM files, or it would not have been listed
        return None
    if not path.is_file():
        link = path.is_symlink()
        found = f"a link to {os.readlink(path)}, which does not exist" if link else "no such file"
        fix = "fetch what the link stands for, for example with datalad get" if link else "check the path"
        return UserError(path, found=found, expected="a scan", fix=fix)
    if not path.name.endswith(SUFFIXES):
        found = f"a file of type {path.suffix or 'unknown'}"
        fix = "convert it, for example with dcm2niix or nibabel"
        if is_dicom(path):
            found, fix = "a single DICOM file", "give the folder of the series"
        return UserError(path, found=found, expected=f"a volume ({', '.join(SUFFIXES)}) or a folder", fix=fix)
    return None

"""The list of scans that `fedsr segment` is given, and the names of the files that it writes for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsr_monai.errors import UserError
from fedsr_monai.inference.ledger import written_files
from fedsr_monai.prepare.sources import Found, find_sources
from fedsr_monai.spatial.nifti import SUFFIXES, volume_stem

logger = logging.getLogger(__name__)


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
        """Path of the note beside a label map that was rejected and written all the same."""
        return self.labels.removesuffix(".nii.gz") + ".rejected"

    def all(self, register: bool, raw: bool) -> list[str]:
        """Return the files that a run with these options may write, tables of labels and the note included."""
        files = [self.labels, table_of(self.labels), self.note]
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
        path: its file.
        name: of its result, in the tables and in the record of the folder.
        files: what is written for it.
        mask: its brain mask, or None.
    """

    path: Path
    name: str
    files: ResultFiles
    mask: Path | None = None


def list_scans(
    scans: Sequence[str | os.PathLike], masks: Sequence[str | os.PathLike] = ()
) -> tuple[list[Scan], list[UserError]]:
    """Return the scans that can be tried, and one error for each that cannot. No volume is opened.

    Args:
        scans: paths of volumes, or of folders, which stand for the scans in them (see `find_sources`).
        masks: a brain mask for each scan, in the same order, or none at all; those of folders are found beside the scans.

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
    for index, path in enumerate(map(Path, scans)):
        if path.is_dir():
            try:
                listed, refused = list_folder(path)
                files += listed
                errors += refused
            except UserError as error:
                errors.append(error)
        else:
            files.append((path, volume_stem(path), Path(masks[index]) if masks else None))
    found: dict[str, Scan] = {}
    for path, name, mask in files:
        fault = path_error(path)
        if fault is None and name in found:
            fault = UserError(
                path,
                found=f"the name of {found[name].path}, whose result it would replace",
                expected="scans of different names",
                fix="rename one, or write them to two folders",
            )
        if fault is None:
            found[name] = Scan(path, name, ResultFiles.of(name), mask)
        else:
            errors.append(fault)
    return list(found.values()), errors


def list_folder(folder: Path) -> tuple[list[tuple[Path, str, Path | None]], list[UserError]]:
    """Return path, name and mask of the scans in a folder, and an error for each that is refused.

    What this program wrote there itself is not a scan; templates and the like are left out, and the log says so.

    Raises:
        UserError: it holds no scan.
    """
    own = {folder / file for file in written_files(folder)}
    volumes = [(path, volume_stem(path), None) for path in sorted(folder.glob("*.mg[zh]"))]
    try:
        found = find_sources(folder)
    except UserError:
        if not volumes:
            raise
        found = Found()
    for source, reason in found.left_out:
        logger.info("%s: left out, %s", source.image, reason)
    sources = [(source.image, source.name, source.mask) for source in found.sources]
    scans = [scan for scan in [*sources, *volumes] if scan[0] not in own]
    if not scans and not found.refused:
        raise UserError(folder, found="no scan", expected=f"volumes ({', '.join(SUFFIXES)})", fix="check the path")
    return scans, list(found.refused.values())


def path_error(path: Path) -> UserError | None:
    """Return what is wrong with the path of a scan; None if nothing is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        return UserError(shown, found="a name that is not UTF-8", expected="UTF-8", fix="rename the file")
    if not path.is_file():
        link = path.is_symlink()
        found = f"a link to {os.readlink(path)}, which does not exist" if link else "no such file"
        fix = "fetch what the link stands for, for example with datalad get" if link else "check the path"
        return UserError(path, found=found, expected="a scan", fix=fix)
    if not path.name.endswith(SUFFIXES):
        found = f"a file of type {path.suffix or 'unknown'}"
        fix = "convert it, for example with dcm2niix or nibabel"
        return UserError(path, found=found, expected=f"a volume ({', '.join(SUFFIXES)})", fix=fix)
    return None

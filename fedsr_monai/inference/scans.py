"""The list of scans that `fedsr segment` is given, and reading one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.utils.enums import MetaKeys

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.load import read_scan
from fedsr_monai.spatial.header import forms_to_meta
from fedsr_monai.spatial.nifti import SUFFIXES, volume_stem


@dataclass(frozen=True)
class Scan:
    """A scan to label.

    Attributes:
        path: its file.
        name: what the names of its results begin with.
        mask: its brain mask, or None.
    """

    path: Path
    name: str
    mask: Path | None = None


def list_scans(
    scans: Sequence[str | os.PathLike], masks: Sequence[str | os.PathLike] = ()
) -> tuple[list[Scan], list[UserError]]:
    """Return the scans that can be tried, and one error for each that cannot. No file is opened.

    Args:
        scans: paths of volumes.
        masks: a brain mask for each scan, in the same order, or none at all.

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
    found: dict[str, Scan] = {}
    errors = []
    for index, path in enumerate(map(Path, scans)):
        name = volume_stem(path)
        if not path.is_file():
            errors.append(UserError(path, found="no such file", expected="a scan", fix="check the path"))
        elif not path.name.endswith(SUFFIXES):
            errors.append(
                UserError(
                    path,
                    found=f"a file of type {path.suffix or 'unknown'}",
                    expected=f"a volume ({', '.join(SUFFIXES)})",
                    fix="convert it, for example with dcm2niix or nibabel",
                )
            )
        elif name in found:
            errors.append(
                UserError(
                    path,
                    found=f"the name of {found[name].path}, whose result it would replace",
                    expected="scans of different names",
                    fix="rename one, or write them to two folders",
                )
            )
        else:
            found[name] = Scan(path, name, Path(masks[index]) if masks else None)
    return list(found.values()), errors


def load_scan(scan: Scan) -> MetaTensor:
    """Read a skull-stripped scan as float32 [1, D, H, W], 0 or above, with its affine.

    The file is opened once and checked while it is read.

    Raises:
        UserError: the file is damaged, or does not hold one finite 3-D scan (see `read_scan`).
    """
    volume = read_scan(scan.path)
    meta = {
        "filename_or_obj": str(scan.path),
        **forms_to_meta(volume.header),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,  # for the EnsureChannelFirstd of a bundle
    }
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    return MetaTensor(torch.from_numpy(volume.voxels)[None], affine=affine, meta=meta)

"""Label maps as other software reads them: NIfTI in `uint8` and a table of the labels beside it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from fedsr_monai.atomic import atomic_path
from fedsr_monai.data.site import volume_stem
from fedsr_monai.labels import ABBREVIATIONS, COLOURS, LABELS


def write_nifti(path: str | os.PathLike, image: nib.Nifti1Image) -> None:
    """Write a .nii.gz in one step.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def write_label_map(
    path: str | os.PathLike, labels: np.ndarray, affine: np.ndarray, codes: tuple[int, int] = (1, 1)
) -> None:
    """Write labels [D, H, W] to `path` (.nii.gz) and their names and colours to a table of the same name (.tsv).

    Args:
        path: the file, in BIDS `<scan>_dseg.nii.gz`.
        labels: ids.
        affine: voxel to millimetre.
        codes: qform and sform code of the header: those of the scan, so that both are shown in the same space.
    """
    image = nib.Nifti1Image(labels.astype(np.uint8), affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units("mm")
    image.header["cal_max"] = max(LABELS)
    write_label_table(Path(path).with_name(volume_stem(path) + ".tsv"))
    write_nifti(path, image)


def write_label_table(path: str | os.PathLike) -> None:
    """Write the BIDS table of the labels: index, name, abbreviation, colour (tab-separated, #RRGGBB)."""
    rows = ["index\tname\tabbreviation\tcolor"]
    rows += [f"{i}\t{name}\t{ABBREVIATIONS[i]}\t#{bytes(COLOURS[i]).hex().upper()}" for i, name in LABELS.items()]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(rows) + "\n")

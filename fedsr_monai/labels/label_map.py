"""Label maps as other software reads them: NIfTI in `uint8`, with tables of the labels and of volumes in millilitres."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from fedsr_monai.files import write_text
from fedsr_monai.labels import ABBREVIATIONS, COLOURS, LABELS
from fedsr_monai.labels.volumes import record_volumes
from fedsr_monai.spatial.nifti import make_image, volume_stem, write_nifti

SLICER_TABLE, FREESURFER_TABLE = "labels.ctbl", "labels_lut.txt"


def write_label_map(
    path: str | os.PathLike, labels: np.ndarray, header: nib.Nifti1Header, folder_tables: bool = True
) -> None:
    """Write a label map (.nii.gz) and the files that go with it.

    These are a BIDS table of the same name (.tsv), the tables of 3D Slicer and FreeSurfer once per folder, and the
    volumes as a row of the folder's `volumes.csv`. Each file is written in one step, the row last.

    Args:
        path: the file, in BIDS `<scan>_dseg.nii.gz`.
        labels: ids [D, H, W].
        header: header of the scan. The label map gets its sform and qform with their codes, so that any program shows both
            in the same space. If there is none, use `header_of(affine)`.
        folder_tables: False writes no table that belongs to the whole folder.

    Raises:
        UserError: the disk is full, the folder cannot be written, or its `volumes.csv` is another program's.
    """
    path = Path(path)
    image = make_image(labels.astype(np.uint8), header)
    image.header["cal_max"] = max(LABELS)
    write_text(path.with_name(volume_stem(path) + ".tsv"), bids_table())
    if folder_tables:
        write_folder_tables(path.parent)
    write_nifti(path, image)
    if folder_tables:
        record_volumes(path, labels, header.get_best_affine())


def write_folder_tables(folder: Path) -> None:
    """Write the tables of 3D Slicer and FreeSurfer into a folder of label maps."""
    write_text(folder / SLICER_TABLE, slicer_table())
    write_text(folder / FREESURFER_TABLE, freesurfer_table())


def bids_table() -> str:
    """Return the labels as a BIDS table: index, name, abbreviation, colour (tab-separated, #RRGGBB)."""
    rows = ["index\tname\tabbreviation\tcolor"]
    rows += [f"{i}\t{name}\t{ABBREVIATIONS[i]}\t#{bytes(COLOURS[i]).hex().upper()}" for i, name in LABELS.items()]
    return "\n".join(rows) + "\n"


def slicer_table() -> str:
    """Return the labels as a colour table of 3D Slicer (.ctbl).

    A row has the id, the name without spaces, and red, green, blue and opacity, each from 0 to 255. The background is
    transparent.
    """
    rows = ["# Color table file labels.ctbl", f"# {len(LABELS)} values"]
    rows += [f"{_row(i)} {0 if i == 0 else 255}" for i in LABELS]
    return "\n".join(rows) + "\n"


def freesurfer_table() -> str:
    """Return the labels as a FreeSurfer look-up table.

    A row is that of 3D Slicer, except that the last number is the transparency, which is 0 throughout FreeSurfer's own table.
    """
    rows = ["#No. Label Name: R G B A"]
    rows += [f"{_row(i)} 0" for i in LABELS]
    return "\n".join(rows) + "\n"


def _row(label: int) -> str:
    return " ".join([str(label), LABELS[label].replace(" ", "_"), *map(str, COLOURS[label])])

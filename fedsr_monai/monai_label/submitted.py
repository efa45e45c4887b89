"""Read label maps that a person submitted: segments are identified by their names, not by their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedsr_monai.errors import UserError
from fedsr_monai.labels import LABELS

# Names of structures in 3D Slicer's anatomical terms (both sides in one), where they differ from ours: Slicer chooses
# colours by name.
SLICER_NAMES = {5: "cerebellar white matter"}
SERVED = {SLICER_NAMES.get(number, name): number for number, name in LABELS.items() if number}
IDS = {name: number for number, name in LABELS.items()} | SERVED
FIX = "rename, merge or remove the segment in 3D Slicer and submit again"


def label_ids(label_info: Sequence[Mapping[str, Any]], present: Sequence[int], where: object) -> dict[int, int]:
    """Return the project's label ids by the ids in a submitted label map.

    3D Slicer numbers segments in their order when it submits them, and sends their names along.

    Args:
        label_info: `{"name": ..., "idx": ...}` per segment; empty if the client sent no names.
        present: the ids other than 0 in the label map.
        where: the label map, for the message.

    Raises:
        UserError: an id has no name, or a name that is not one of the structures.
    """
    if not label_info:
        for number in present:
            if number not in LABELS:
                raise UserError(where, found=f"the id {number} without a name", expected="ids from 1 to 13", fix=FIX)
        return {number: number for number in present}
    names = {segment.get("idx"): str(segment.get("name")) for segment in label_info}
    ids = {}
    for number in present:
        if number not in names:
            expected = f"names for all ids (label_info has {', '.join(map(str, names))})"
            raise UserError(where, found=f"the id {number} without a name", expected=expected, fix="submit it again")
        name = names[number].strip().lower()
        if name not in IDS:
            expected = f"one of {', '.join(SERVED)}"
            raise UserError(where, found=f"the segment {names[number]!r}", expected=expected, fix=FIX)
        ids[number] = IDS[name]
    return ids


def with_own_ids(path: Path, label_info: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Return a label map with the project's ids: the submitted one if it has them already, else a copy in `out`.

    Args:
        path: the submitted label map, NIfTI.
        label_info: see `label_ids`.
        out: folder for the copy; made if missing.

    Raises:
        UserError: the file cannot be read, holds values that are not whole numbers, or has segments that `label_ids`
            refuses.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        volume = np.asarray(image.dataobj)
    except Exception as error:  # nibabel raises half a dozen types for a file that is not whole
        found = f"a file that cannot be read ({type(error).__name__})"
        raise UserError(path, found=found, expected="a label map in NIfTI", fix="submit it again") from None
    numbers = np.unique(volume)
    if not np.array_equal(numbers, np.round(numbers)):
        raise UserError(path, found="fractions", expected="a label map of whole numbers", fix="submit it again")
    ids = label_ids(label_info, [int(number) for number in numbers if number], path)
    if all(number == own for number, own in ids.items()):
        return path
    mapped = np.zeros(volume.shape, np.uint8)
    for number, own in ids.items():
        mapped[volume == number] = own
    copy = nib.Nifti1Image(mapped, None, image.header)
    copy.set_data_dtype(np.uint8)
    out.mkdir(parents=True, exist_ok=True)
    nib.save(copy, out / path.name)
    return out / path.name

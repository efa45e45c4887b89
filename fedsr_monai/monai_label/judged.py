"""Judge the labels that MONAI Label serves: implausible ones are refused, all others come with their quality."""

from __future__ import annotations

import os
from pathlib import Path

from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.inference.quality import REJECTED, read_quality
from fedsr_monai.inference.segment import segment

JUDGE = "judge"  # an option of the models, which clients show


def label_and_judge(
    image: str | os.PathLike,
    folder: str | os.PathLike,
    bundle: str | os.PathLike,
    site: str | os.PathLike | None = None,
    raw: bool = False,
    judge: bool = True,
) -> tuple[Path, dict[str, str]]:
    """Label one scan as `fedsr segment` does.

    Args:
        image: the scan.
        folder: an empty folder for the results.
        bundle: the served copy of the bundle.
        site: site folder whose grid and atlas are used; None for the bundle's own.
        raw: the scan is a whole head, anywhere in space.
        judge: judge the result; its verdict is logged if it is not "good".

    Returns:
        The label map, and what `quality.csv` says of it; nothing if it was not judged.

    Raises:
        UserError: the scan cannot be labelled, or the result is rejected.
    """
    try:
        (labels,) = segment([image], folder, bundle, site=site, raw=raw, quality=judge, progress=False)
    except UserErrors as error:
        for row in read_quality(Path(folder)):
            if row["verdict"] == REJECTED:
                found = f"an implausible result ({row['reasons']})"
                fix = f"check orientation, contrast and skull-stripping of the scan, or switch off the option '{JUDGE}'"
                raise UserError(image, found=found, expected="the labels of a brain", fix=fix) from error
        raise
    return labels, {key: text for row in read_quality(Path(folder)) for key, text in row.items() if key != "scan"}

"""Quality of a result: measures that need no reference, and the limits beyond which they warn or reject."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fedsr_monai.evaluation.registration import folded_percent, ncc
from fedsr_monai.files import is_there, put_row, read_csv
from fedsr_monai.inference.volume_ranges import implausible_volumes
from fedsr_monai.labels import LABELS
from fedsr_monai.labels.agreement import agreement

QUALITY = "quality.csv"
COLUMNS = (
    "scan", "verdict", "agreement", "correlation", "outside_percent", "folded_percent", "missing", "implausible", "reasons",
)  # fmt: skip
GOOD, DOUBTFUL, REJECTED = "good", "doubtful", "rejected"


@dataclass(frozen=True)
class Limit:
    """Limits of a measure: below `warn` (above it, if `warn` is the smaller number) a result is doubtful, beyond `reject` rejected."""

    warn: float
    reject: float

    def verdict(self, value: float) -> str:
        """Return the verdict on a value; nan, which stands for a measure that cannot be taken, is rejected."""
        sign = 1 if self.warn > self.reject else -1
        if math.isnan(value) or sign * value < sign * self.reject:
            return REJECTED
        return DOUBTFUL if sign * value < sign * self.warn else GOOD


# Chosen between the values of good and of broken scans: agreement of 0.869 or more against 0.748 or less, except with strong noise
# (benchmarks/quality.csv). Measured with the heads of Neuromorphometrics; other label protocols have the same limits.
LIMITS: dict[str, Limit] = {
    "agreement": Limit(0.84, 0.76),
    "correlation": Limit(0.60, 0.30),
    "outside_percent": Limit(5.0, 20.0),
    "folded_percent": Limit(0.5, 5.0),
    "missing": Limit(0, 2),
    "implausible": Limit(0, 3),
}


@dataclass(frozen=True)
class Quality:
    """What was measured on one result.

    Attributes:
        agreement: mean Dice between the labels of the segmentation head and those of the registration head.
        correlation: Pearson's correlation of scan and warped atlas in the brain.
        outside_percent: percentage of the brain outside the box of the network's grid, where nothing is labelled.
        folded_percent: percentage of the brain's voxels where the deformation folds.
        missing: structures without a voxel.
        implausible: structures with a volume that no human head has, with the volume and the plausible range.
        verdict: "good", "doubtful" or "rejected".
        reasons: reasons for the verdict, one text per measure beyond its limit.
    """

    agreement: float
    correlation: float
    outside_percent: float
    folded_percent: float
    missing: tuple[str, ...] = ()
    implausible: tuple[str, ...] = ()
    verdict: str = field(init=False)
    reasons: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        more = len(self.implausible) - 2
        texts = {
            "agreement": f"segmentation and registration agree at a Dice of {self.agreement:.2f}",
            "correlation": f"correlation with the warped atlas {self.correlation:.2f}",
            "outside_percent": f"{self.outside_percent:.0f} % of the brain outside the atlas' box",
            "folded_percent": f"{self.folded_percent:.1f} % of the deformation folded",
            "missing": f"no {', no '.join(self.missing)}",
            "implausible": "; ".join(self.implausible[:2]) + (f" and {more} more" if more > 0 else ""),
        }
        verdicts = {name: limit.verdict(_number(getattr(self, name))) for name, limit in LIMITS.items()}
        worst = next((v for v in (REJECTED, DOUBTFUL) if v in verdicts.values()), GOOD)
        object.__setattr__(self, "verdict", worst)
        reasons = tuple(texts[name] for name, verdict in verdicts.items() if verdict != GOOD)
        object.__setattr__(self, "reasons", reasons)


def _number(value: float | tuple[str, ...]) -> float:
    return float(len(value)) if isinstance(value, tuple) else value


def assess(
    segmentation: np.ndarray,
    registration: np.ndarray,
    image: np.ndarray,
    warped_atlas: np.ndarray,
    ddf: torch.Tensor,
    volumes: Mapping[int, float],
    outside_percent: float = 0.0,
) -> Quality:
    """Measure a result without a reference.

    A scan of another contrast, a head that is turned or cut off, or something other than a head still gives labels. But
    then the two heads of the network, which arrive at their labels in different ways, disagree.

    Args:
        segmentation: labels of the segmentation head on the network's grid, [D, H, W].
        registration: labels of the atlas, warped to the scan, on the same grid.
        image: the scan on the grid, 0 outside the brain.
        warped_atlas: the atlas image, warped to the scan.
        ddf: displacement [3, D, H, W] in voxels of the grid.
        volumes: volumes of the structures in millilitres, by label.
        outside_percent: percentage of the brain outside the grid.
    """
    brain = image > 0
    return Quality(
        agreement=agreement(segmentation, registration),
        correlation=ncc(image, warped_atlas, brain),
        outside_percent=outside_percent,
        folded_percent=folded_percent(ddf, torch.from_numpy(brain).to(ddf.device)) if brain.any() else math.nan,
        missing=tuple(LABELS[label] for label, volume in volumes.items() if not volume),
        implausible=tuple(implausible_volumes(volumes)),
    )


def record_quality(folder: Path, scan: str, quality: Quality) -> None:
    """Put the quality of a result into a folder's `quality.csv`.

    Args:
        folder: folder of the results.
        scan: name of the result.
        quality: quality of the result, which may have been rejected and not written.

    Raises:
        UserError: the table has other columns, the disk is full or the folder cannot be written.
    """
    row: dict[str, object] = {"scan": scan}
    for column in COLUMNS[1:]:
        value = getattr(quality, column)
        row[column] = "; ".join(value) if isinstance(value, tuple) else value
    put_row(folder / QUALITY, COLUMNS, ("scan",), row)


def read_quality(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a folder's `quality.csv`; an empty list if there is no file.

    Raises:
        UserError: the file has other columns.
    """
    return read_csv(folder / QUALITY, COLUMNS, only=True) if is_there(folder / QUALITY) else []

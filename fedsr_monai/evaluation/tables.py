"""Tables of measures: one row per structure, case and task; their means and standard deviations."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedsr_monai.evaluation.structures import structure_metrics
from fedsr_monai.files import read_csv
from fedsr_monai.labels import LABELS

TASKS = ("unregistered", "registration", "segmentation")
MEASURES = ("dice", "jaccard", "avd_ml", "avd_percent", "hd95_mm", "asd_mm")
CASE_MEASURES = ("seconds", "ncc_unregistered", "ncc_registration", "folded_percent", "head_agreement")
METRIC_COLUMNS = ("site", "case", "task", "structure", "label", *MEASURES, "volume_ml", "reference_ml", "missed")
CASE_COLUMNS = ("site", "case", *CASE_MEASURES)
TEXT_COLUMNS = {"arm", "method", "site", "case", "task", "structure"}
WHOLE_COLUMNS = {"label", "missed", "seed"}
LARGEST = 1e12

DEFINITIONS = {
    "mean": "structures are averaged within each case, then cases; sd is over cases (n - 1)",
    "all": "every case counts the same, whichever its site",
    "missed": "in the reference but not predicted: Dice 0, distances the image diagonal; counted in every mean",
    "spurious": "predicted but not in the reference: Dice 0, distances the image diagonal; counted in every mean",
    "absent": "neither predicted nor in the reference: in no mean",
    "avd_ml": "absolute difference of the volumes in mL; avd_percent: in % of the reference",
    "hd95_mm": "greater of the two directed 95th percentiles of the surface distances, in mm",
    "asd_mm": "average symmetric surface distance, in mm",
    "ncc": "correlation of the intensities of scan and (warped) atlas inside the scan's brain",
    "folded_percent": "voxels of the scan's brain whose Jacobian determinant is <= 0",
    "head_agreement": "mean Dice between the labels of segmentation and registration: needs no reference",
}


def structure_rows(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], labels: Mapping[int, str] = LABELS
) -> list[dict[str, Any]]:
    """Measure every structure of one case; the background is left out.

    Args:
        prediction: label map [D, H, W].
        reference: label map [D, H, W].
        spacing: size of a voxel in mm along each axis.
        labels: names by label.

    Returns:
        One row per label, with the keys of `structure_metrics`, `structure` and `label`.
    """
    return [
        {"structure": name, "label": label} | structure_metrics(prediction == label, reference == label, spacing)
        for label, name in labels.items()
        if label != 0
    ]


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1) and number of the values that are not nan; nan where too few are left."""
    kept = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    return {
        "mean": float(kept.mean()) if kept.size else math.nan,
        "sd": float(kept.std(ddof=1)) if kept.size > 1 else math.nan,
        "n": int(kept.size),
    }


def mean_dice_by_case(rows: Sequence[Mapping[str, Any]], task: str) -> dict[tuple[str, str], float]:
    """Return the mean Dice over structures of each case in one task, by site and case; cases whose mean is nan are left out."""
    dice: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["task"] == task:
            dice.setdefault((row["site"], row["case"]), []).append(row["dice"])
    means = {case: spread(of_case)["mean"] for case, of_case in dice.items()}
    return {case: mean for case, mean in means.items() if not math.isnan(mean)}


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count how often a structure was missed, spurious, or absent (`fedsr_monai.evaluation.structures`)."""
    return {
        "missed": sum(row["missed"] for row in rows),
        "spurious": sum(row["reference_ml"] == 0 and row["volume_ml"] > 0 for row in rows),
        "absent": sum(row["reference_ml"] == 0 and row["volume_ml"] == 0 for row in rows),
    }


def summarise_task(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the rows of one task, over the structures of each case and then over the cases, and by structure."""
    cases: dict[tuple[str, str], list] = {}
    structures: dict[str, list] = {}
    for row in rows:
        cases.setdefault((row["site"], row["case"]), []).append(row)
        structures.setdefault(row["structure"], []).append(row)

    def mean_of_structures(measure: str) -> list[float]:
        return [spread(row[measure] for row in case)["mean"] for case in cases.values()]

    return {
        "cases": len(cases),
        **counts(rows),
        "mean": {measure: spread(mean_of_structures(measure)) for measure in MEASURES},
        "structures": {
            name: {
                "label": of_structure[0]["label"],
                **counts(of_structure),
                **{measure: spread(row[measure] for row in of_structure) for measure in MEASURES},
            }
            for name, of_structure in structures.items()
        },
    }


def summarise(rows: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return means, standard deviations and counts by site, task and structure, as `metrics.json` has them.

    Args:
        rows: the rows of `metrics.csv`.
        cases: the rows of `cases.csv`.

    Returns:
        `{"definitions", "sites": {site: {"tasks": {task: summary}, "cases": {measure: spread}}}, "all": the same}`.
    """

    def part(rows: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        by_task = {task: [row for row in rows if row["task"] == task] for task in TASKS}
        return {
            "tasks": {task: summarise_task(of_task) for task, of_task in by_task.items() if of_task},
            "cases": {measure: spread(case[measure] for case in cases) for measure in CASE_MEASURES} if cases else {},
        }

    names = dict.fromkeys(row["site"] for row in rows)
    sites = {
        name: part([r for r in rows if r["site"] == name], [c for c in cases if c["site"] == name]) for name in names
    }
    return {"definitions": DEFINITIONS, "sites": sites, "all": part(rows, cases)}


def read_measures(path: str | os.PathLike, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read rows that `fedsr_monai.files.write_csv` wrote, with numbers as numbers.

    Raises:
        UserError: a column is missing or a cell is not a number.
    """
    return read_csv(path, columns, _value, fix="evaluate again")


def _value(column: str, text: str) -> Any:
    if column in TEXT_COLUMNS:
        return text
    number = int(text) if column in WHOLE_COLUMNS else float(text)
    if abs(number) > LARGEST:  # nan stands for what cannot be measured; infinite values do not occur
        raise ValueError(text)
    return number

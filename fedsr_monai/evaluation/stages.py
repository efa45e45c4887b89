"""Compare what a run's networks reached with what they began with, on the same scans."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsr_monai.evaluation.tables import METRIC_COLUMNS, mean_dice_by_case, read_measures
from fedsr_monai.files import is_there

# The stages of a run. The first two have tables in folders of these names in the evaluation, the last in its root.
BEFORE, ROUNDS, FINAL = "before", "rounds", "final"
COMPARED = ("segmentation", "registration")


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compare two evaluations on the scans that both have.

    Args:
        before: rows of metrics.csv.
        after: rows of metrics.csv.

    Returns:
        By task the mean Dice `before` and `after` (over structures, then scans), the number of `scans`, and on how
        many of them the Dice is `better` afterwards. Empty without common scans.
    """
    compared = {}
    for task in COMPARED:
        old, new = (mean_dice_by_case(rows, task) for rows in (before, after))
        common = [case for case in new if case in old]
        if common:
            compared[task] = {
                "before": sum(old[case] for case in common) / len(common),
                "after": sum(new[case] for case in common) / len(common),
                "scans": len(common),
                "better": sum(new[case] > old[case] for case in common),
            }
    return compared


def comparison_text(task: str, found: Mapping[str, Any]) -> str:
    """Return what training did to one task, in words: better, worse, or the same to three digits."""
    change = round(found["after"], 3) - round(found["before"], 3)
    verdict = "better" if change > 0 else "worse" if change < 0 else "no better"
    return (
        f"{task} is {verdict} than before training: mean Dice {found['after']:.3f}, {found['before']:.3f} before "
        f"({change:+.3f}; better on {found['better']} of {found['scans']} scans)"
    ).replace("-0.", "\N{MINUS SIGN}0.")


def comparison_lines(evaluation: str | os.PathLike) -> list[str]:
    """Return one line per task on what training did, from the tables of an evaluation; none if it lacks `before`."""
    tables = [Path(evaluation) / BEFORE / "metrics.csv", Path(evaluation) / "metrics.csv"]
    if not all(map(is_there, tables)):
        return []
    found = compare(*(read_measures(table, METRIC_COLUMNS) for table in tables))
    return [comparison_text(task, of_task) for task, of_task in found.items()]

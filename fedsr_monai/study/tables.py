"""The tables of a study: one row per measurement, means per arm and site, contrasts and cost."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.sa_variants import effect
from fedsr_monai.evaluation.tables import CASE_COLUMNS, METRIC_COLUMNS, read_measures, spread
from fedsr_monai.files import is_there, read_csv, write_csv
from fedsr_monai.handlers import read_history
from fedsr_monai.study.plan import Plan
from fedsr_monai.study.statistics import contrast, holm

TASKS = ("registration", "segmentation")
SUMMARY_COLUMNS = ("task", "site", "arm", "dice", "sd_over_seeds", "hd95_mm", "missed", "seeds", "cases")
CONTRAST_COLUMNS = ("task", "site", "arm", "reference", "difference", "low", "high", "p", "p_holm", "seeds", "cases")
SA_COLUMNS = ("task", "arm", "sa", "difference", "p", "scans", "seeds")
MECHANISM_COLUMNS = ("arm", "seed", "phi_gradient", "phi_gradient_low", "phi_gradient_high", "sa_entropy", "rounds")
COST_COLUMNS = ("arm", "seed", "rounds", "steps", "seconds", "bytes_down", "bytes_up")
# In addition to the measures of a structure: NCC of its case (nan for segmentation), seconds and bytes of its whole
# run.
RESULT_COLUMNS = ("arm", "seed", *METRIC_COLUMNS, "ncc", "seconds", "bytes")
# Means over the structures of a case, from which all means, contrasts and tables of the report are computed.
CASE_KEYS = ("arm", "seed", "site", "case", "task")
CASE_MEASURES = ("dice", "hd95_mm", "ncc")
MEASURED_COLUMNS = (*CASE_KEYS, *CASE_MEASURES, "missed")


# Subfolders, in an arm's run, of the trainings that come before its own rounds.
START_FOLDER, PRETRAINING_FOLDER = "start", "pretraining"


@dataclass(frozen=True)
class Results:
    """Everything that the report of a study shows, with rows as in the tables of the same names.

    Attributes:
        rows: one per arm, seed, site, case, task and structure, of the runs of this folder.
        cases: one per arm, seed, site, case and task, with those of added tables.
        summary, contrasts, cost: see `write_tables`.
    """

    rows: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    cost: list[dict[str, Any]]


def write_tables(
    out: Path, plan: Plan, finished: Mapping[tuple[str, int], Path], added: Sequence[dict[str, Any]] = ()
) -> Results:
    """Write the tables of a study from the evaluations of finished runs.

    These are results.csv, cases.csv, summary.csv, contrasts.csv, cost.csv, mechanism.csv and, if the plan asks for
    changes of the SA features, sa.csv.

    Args:
        out: folder of the study.
        plan: the study.
        finished: run folder by arm and seed.
        added: rows of cases.csv of runs that were made elsewhere (`read_cases`); cases.csv, summary.csv and
            contrasts.csv include them.
    """
    rows: list[dict[str, Any]] = []
    cost = []
    for (arm, seed), run in sorted(finished.items()):
        spent = _cost(arm, seed, run)
        cost.append(spent)
        cases = read_measures(run / "evaluation" / "cases.csv", CASE_COLUMNS)
        ncc = {("registration", case["site"], case["case"]): case["ncc_registration"] for case in cases}
        ncc |= {("unregistered", case["site"], case["case"]): case["ncc_unregistered"] for case in cases}
        rows += [
            {
                "arm": arm,
                "seed": seed,
                **row,
                "ncc": ncc.get((row["task"], row["site"], row["case"]), math.nan),
                "seconds": spent["seconds"],
                "bytes": spent["bytes_down"] + spent["bytes_up"],
            }
            for row in read_measures(run / "evaluation" / "metrics.csv", METRIC_COLUMNS)
        ]
    cases = sorted([*measured_cases(rows), *added], key=lambda row: [row[key] for key in CASE_KEYS])
    found = Results(rows, cases, summarise(cases), contrast_rows(plan, cases), cost)
    for name, columns, content in (
        ("results", RESULT_COLUMNS, found.rows),
        ("cases", MEASURED_COLUMNS, found.cases),
        ("summary", SUMMARY_COLUMNS, found.summary),
        ("contrasts", CONTRAST_COLUMNS, found.contrasts),
        ("cost", COST_COLUMNS, found.cost),
        ("mechanism", MECHANISM_COLUMNS, [_mechanism(*key, run) for key, run in sorted(finished.items())]),
        *([("sa", SA_COLUMNS, sa_rows(plan, finished))] if plan.sa else []),
    ):
        write_csv(out / f"{name}.csv", columns, content)
    return found


def measured_cases(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per arm, seed, site, case and task: the means over the structures, and how many were missed."""
    cases: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in CASE_KEYS), []).append(row)
    return [
        dict(zip(CASE_KEYS, case))
        | {measure: spread(row[measure] for row in structures)["mean"] for measure in CASE_MEASURES}
        | {"missed": sum(row["missed"] for row in structures)}
        for case, structures in cases.items()
    ]


def read_cases(paths: Sequence[str | os.PathLike], plan: Plan) -> list[dict[str, Any]]:
    """Read cases.csv tables of runs of the same plan that were made elsewhere, such as other seeds on another machine.

    Raises:
        UserError: a table is damaged, has an arm that the plan does not have, repeats a run of another table, or has
            runs that were measured on other cases than those of the same arm.
    """
    rows: list[dict[str, Any]] = []
    runs: dict[tuple[str, int], str] = {}
    measured: dict[str, tuple[set, str]] = {}
    for path in map(str, paths):
        by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in read_measures(path, MEASURED_COLUMNS):
            by_run.setdefault((row["arm"], row["seed"]), []).append(row)
        for (arm, seed), of_run in by_run.items():
            if arm not in plan.arms:
                raise UserError(f"{path}: arm", found=repr(arm), expected=f"some of {', '.join(plan.arms)}")
            if (arm, seed) in runs:
                found = f"arm {arm!r} with seed {seed}, which {runs[arm, seed]} has too"
                raise UserError(path, found=found, expected="each run once", fix="leave one of the tables out")
            cases = {(row["task"], row["site"], row["case"]) for row in of_run}
            others, owner = measured.setdefault(arm, (cases, path))
            if cases != others:
                found = f"{len(cases)} measurements of arm {arm!r} with seed {seed}, {len(cases & others)} of them on cases of {owner}"
                raise UserError(
                    path,
                    found=found,
                    expected="the same cases with every seed",
                    fix="add only tables of the same sites",
                )
            runs[arm, seed] = path
            rows += of_run
    return rows


def case_means(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[tuple, float]:
    """Return the mean over structures by (task, arm, seed, site, case); structures absent from both sides are left out."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        key = (row["task"], row["arm"], row["seed"], row["site"], row["case"])
        groups.setdefault(key, []).append(row[measure])
    return {key: spread(values)["mean"] for key, values in groups.items()}


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per task, site and arm: the mean over seeds of the mean over cases, and its sd over seeds."""
    dice, distance = case_means(rows, "dice"), case_means(rows, "hd95_mm")
    missed: dict[tuple, int] = {}
    for row in rows:
        for site in (row["site"], "all"):
            key = (row["task"], site, row["arm"])
            missed[key] = missed.get(key, 0) + row["missed"]
    cells: dict[tuple, dict[int, list[tuple[float, float]]]] = {}
    for (task, arm, seed, site, case), value in dice.items():
        for place in (site, "all"):
            by_seed = cells.setdefault((task, place, arm), {})
            by_seed.setdefault(seed, []).append((value, distance[task, arm, seed, site, case]))
    result = []
    for (task, site, arm), by_seed in sorted(cells.items()):
        means = [np.mean(values, axis=0) for values in by_seed.values()]
        of_seeds = spread(float(mean[0]) for mean in means)
        result.append(
            {
                "task": task,
                "site": site,
                "arm": arm,
                "dice": of_seeds["mean"],
                "sd_over_seeds": of_seeds["sd"],
                "hd95_mm": float(np.mean([mean[1] for mean in means])),
                "missed": missed[task, site, arm],
                "seeds": len(by_seed),
                "cases": len(next(iter(by_seed.values()))),
            }
        )
    return result


def contrast_rows(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the contrasts of the plan, by task, over all sites and site by site, on the seeds that both arms have finished.

    Holm's adjustment counts the contrasts over all sites; those of single sites are for reading, and are not adjusted.
    """
    dice = case_means(rows, "dice")
    sites = sorted({key[3] for key in dice})
    result = []
    for task in TASKS:
        for arm, reference in plan.contrasts:
            for site in ("all", *sites):
                values = [matrix(dice, task, name, site) for name in (arm, reference)]
                seeds = sorted(set(values[0]) & set(values[1]))
                if not seeds:
                    continue
                cases = sorted(set.intersection(*(set(value[seed]) for value in values for seed in seeds)))
                first, second = (np.array([[value[s][c] for c in cases] for s in seeds]) for value in values)
                found = contrast(first, second)
                result.append(
                    {
                        "task": task, "site": site, "arm": arm, "reference": reference, "difference": found.mean, "low": found.low,
                        "high": found.high, "p": found.p, "p_holm": float("nan"), "seeds": found.seeds, "cases": found.cases,
                    }
                )  # fmt: skip
    whole = [row for row in result if row["site"] == "all"]
    for row, adjusted in zip(whole, holm([row["p"] for row in whole])):
        row["p_holm"] = adjusted
    return result


def matrix(values: Mapping[tuple, float], task: str, arm: str, site: str) -> dict[int, dict[tuple, float]]:
    """Return the values of `case_means` of one task, arm and site ("all" for every site), by seed and case."""
    found: dict[int, dict[tuple, float]] = {}
    for (of_task, of_arm, seed, of_site, case), value in values.items():
        if (of_task, of_arm) == (task, arm) and site in ("all", of_site):
            found.setdefault(seed, {})[of_site, case] = value
    return found


def sa_rows(plan: Plan, finished: Mapping[tuple[str, int], Path]) -> list[dict[str, Any]]:
    """Return what each change of the SA features did to each arm, over its scans, with the mean over its seeds."""
    result = []
    for task in TASKS:
        for arm in plan.arms:
            runs = [run / "evaluation" for (name, _), run in sorted(finished.items()) if name == arm]
            learned = [read_measures(run / "metrics.csv", METRIC_COLUMNS) for run in runs]
            for variant in plan.sa if runs else ():
                changed = [read_measures(run / f"sa-{variant}" / "metrics.csv", METRIC_COLUMNS) for run in runs]
                found = effect(learned, changed, task)
                result.append(
                    {
                        "task": task,
                        "arm": arm,
                        "sa": variant,
                        "difference": found.difference,
                        "p": found.p,
                        "scans": found.scans,
                        "seeds": len(runs),
                    }
                )
    return result


def _mechanism(arm: str, seed: int, run: Path) -> dict[str, Any]:
    """Return how strongly the mutual information acted in the second half of a run's rounds (`JointTrainer`)."""
    rows = read_history(run / "history.csv") if is_there(run / "history.csv") else []
    numbers = sorted({int(row["round"]) for row in rows})
    late = [row for row in rows if int(row["round"]) in numbers[len(numbers) // 2 :]]
    fractions = [float(row["phi_gradient"]) for row in late if row.get("phi_gradient")]
    entropies = [float(row["sa_entropy"]) for row in late if row.get("sa_entropy")]
    low, middle, high = np.quantile(fractions, [0.1, 0.5, 0.9]) if fractions else [float("nan")] * 3
    return {
        "arm": arm,
        "seed": seed,
        "phi_gradient": float(middle),
        "phi_gradient_low": float(low),
        "phi_gradient_high": float(high),
        "sa_entropy": spread(entropies)["mean"],
        "rounds": len(numbers),
    }


def _cost(arm: str, seed: int, run: Path) -> dict[str, Any]:
    """Return the cost of a run, including the trainings before its rounds."""
    folders = [run, *(folder for folder in (run / START_FOLDER, run / PRETRAINING_FOLDER) if folder.is_dir())]
    rounds = [row for folder in folders for row in read_csv(folder / "rounds.csv")]
    rows = [row for folder in folders for row in read_csv(folder / "participation.csv")]
    total = {key: sum(float(row[key]) for row in rounds) for key in ("seconds", "bytes_down", "bytes_up")}
    steps = sum(int(float(row["iterations"] or 0)) for row in rows)
    return {"arm": arm, "seed": seed, "rounds": len(rounds), "steps": steps, **total}

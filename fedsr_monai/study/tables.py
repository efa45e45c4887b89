"""The tables of a study: one row per measurement, means per arm and site, contrasts, and one HTML page of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fedsr_monai.evaluation.tables import METRIC_COLUMNS, read_measures, spread
from fedsr_monai.files import write_csv, write_text
from fedsr_monai.report.page import html_page
from fedsr_monai.study.plan import Plan
from fedsr_monai.study.statistics import contrast, holm

TASKS = ("registration", "segmentation")
SUMMARY_COLUMNS = ("task", "site", "arm", "dice", "sd_over_seeds", "hd95_mm", "missed", "seeds", "cases")
CONTRAST_COLUMNS = ("task", "site", "arm", "reference", "difference", "low", "high", "p", "p_holm", "seeds", "cases")
COST_COLUMNS = ("arm", "seed", "rounds", "seconds", "bytes_down", "bytes_up")


def write_tables(out: Path, plan: Plan, finished: Mapping[tuple[str, int], Path]) -> None:
    """Write results.csv, summary.csv, contrasts.csv, cost.csv and report.html from the evaluations of finished runs.

    Args:
        out: folder of the study.
        plan: the study.
        finished: run folder by arm and seed.
    """
    rows = [
        {"arm": arm, "seed": seed, **row}
        for (arm, seed), run in sorted(finished.items())
        for row in read_measures(run / "evaluation" / "metrics.csv", METRIC_COLUMNS)
    ]
    write_csv(out / "results.csv", ("arm", "seed", *METRIC_COLUMNS), rows)
    summary = summarise(rows)
    write_csv(out / "summary.csv", SUMMARY_COLUMNS, summary)
    contrasts = contrast_rows(plan, rows)
    write_csv(out / "contrasts.csv", CONTRAST_COLUMNS, contrasts)
    cost = [_cost(arm, seed, run) for (arm, seed), run in sorted(finished.items())]
    write_csv(out / "cost.csv", COST_COLUMNS, cost)
    sections = [
        ("contrasts", "Contrasts of the plan", _contrast_table(contrasts)),
        ("means", "Mean Dice", "".join(_dice_table(plan, summary, task) for task in TASKS)),
        ("cost", "Cost", _cost_table(plan, cost)),
    ]
    done = f"{len(finished)} of {len(plan.arms) * len(plan.seeds)} runs"
    facts = f"{done}, {len(plan.seeds)} seeds, {plan.rounds} rounds of {plan.steps} steps per site"
    write_text(
        out / "report.html", html_page(f"Study: {plan.name}", facts, f"<p>{escape(plan.question)}</p>", sections)
    )


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
                values = [_matrix(dice, task, name, site) for name in (arm, reference)]
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


def _matrix(dice: Mapping[tuple, float], task: str, arm: str, site: str) -> dict[int, dict[tuple, float]]:
    found: dict[int, dict[tuple, float]] = {}
    for (of_task, of_arm, seed, of_site, case), value in dice.items():
        if (of_task, of_arm) == (task, arm) and site in ("all", of_site):
            found.setdefault(seed, {})[of_site, case] = value
    return found


def _cost(arm: str, seed: int, run: Path) -> dict[str, Any]:
    with open(run / "rounds.csv", newline="", encoding="utf-8") as file:
        rounds = list(csv.DictReader(file))
    total = {key: sum(float(row[key]) for row in rounds) for key in ("seconds", "bytes_down", "bytes_up")}
    return {"arm": arm, "seed": seed, "rounds": len(rounds), **total}


def _contrast_table(contrasts: Sequence[Mapping[str, Any]]) -> str:
    heads = ("task", "arm", "reference", "Dice difference", "95 % interval", "p (Holm)", "seeds x cases")
    body = []
    for row in (row for row in contrasts if row["site"] == "all"):
        sure = row["p_holm"] < 0.05
        cells = (
            row["task"], row["arm"], row["reference"], f"{'<b>' * sure}{row['difference']:+.4f}{'</b>' * sure}",
            f"{row['low']:+.4f} to {row['high']:+.4f}", f"{row['p_holm']:.3g}", f"{row['seeds']} x {row['cases']}",
        )  # fmt: skip
        body.append("".join(f"<td>{cell}</td>" for cell in cells))
    note = "<p>Paired t-tests with seeds as units, adjusted by Holm; bold where p &lt; 0.05. Intervals: hierarchical bootstrap.</p>"
    return _table(heads, body) + note


def _dice_table(plan: Plan, summary: Sequence[Mapping[str, Any]], task: str) -> str:
    of_task = {(row["site"], row["arm"]): row for row in summary if row["task"] == task}
    sites = sorted({site for site, _ in of_task if site != "all"}) + ["all"]
    body = []
    for arm in plan.arms:
        cells = []
        for site in sites:
            row = of_task.get((site, arm))
            cells.append(f"{row['dice']:.3f} ± {row['sd_over_seeds']:.3f}" if row else "")
        body.append(f"<td>{escape(arm)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells))
    return f"<h3>{task}</h3>" + _table(("arm", *sites), body) + "<p>Mean over seeds ± sd over seeds.</p>"


def _cost_table(plan: Plan, cost: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for arm in plan.arms:
        rows = [row for row in cost if row["arm"] == arm]
        if rows:
            means = [float(np.mean([row[key] for row in rows])) for key in ("seconds", "bytes_down", "bytes_up")]
            body.append(f"<td>{escape(arm)}</td><td>{means[0]:.0f}</td><td>{means[1]:.3g}</td><td>{means[2]:.3g}</td>")
    return _table(("arm", "seconds", "bytes down", "bytes up"), body)


def _table(heads: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table>"

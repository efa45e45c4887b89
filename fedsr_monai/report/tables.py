"""The tables of the report, as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedsr_monai.evaluation.stages import BEFORE, COMPARED, FINAL, ROUNDS
from fedsr_monai.evaluation.tables import TASKS, mean_dice_by_case, spread
from fedsr_monai.labels import ABBREVIATIONS, COLOURS

# by measure: heading, digits, whether more is better
MEASURE_STYLE = {
    "dice": ("Dice", 3, True),
    "hd95_mm": ("HD95 (mm)", 2, False),
    "jaccard": ("Jaccard", 3, True),
    "asd_mm": ("ASD (mm)", 2, False),
    "avd_ml": ("AVD (mL)", 2, False),
    "avd_percent": ("AVD (%)", 1, False),
}
SHORT_TASKS = {"unregistered": "unreg.", "registration": "reg.", "segmentation": "seg."}


def number(value: float, digits: int) -> str:
    """Return a number as text, or a dash for nan."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def mean_cell(
    spread: Mapping[str, Any], digits: int, best: bool = False, first: bool = False, deviation: bool = False
) -> str:
    """Return a cell with a mean and its standard deviation (beside it or as a tooltip), sorted by the exact mean."""
    mean, sd = spread["mean"], number(spread["sd"], digits)
    kind = " ".join(name for name, on in (("best", best), ("first", first)) if on)
    beside = f" <small>± {sd}</small>" if deviation and math.isfinite(spread["sd"]) else ""
    return (
        f'<td class="{kind}" data-sort="{mean if math.isfinite(mean) else -1:.6g}" title="± {sd}, n = {spread["n"]}">'
        f"{number(mean, digits)}{beside}</td>"
    )


def measure_cells(by_task: Mapping[str, Mapping[str, Any]], measure: str, tasks: Sequence[str]) -> str:
    """Return one cell per task with mean and standard deviation, the best of them marked."""
    _, digits, more_is_better = MEASURE_STYLE[measure]
    means = {task: round(by_task[task][measure]["mean"], digits) for task in tasks}
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    best = (max if more_is_better else min)(finite) if len(set(finite)) > 1 else None
    return "".join(
        mean_cell(by_task[task][measure], digits, means[task] == best, task == tasks[0], deviation=True)
        for task in tasks
    )


def count_cells(counts: Sequence[int]) -> str:
    """Return one cell per count; counts above 0 are marked as a warning."""
    kinds = (("first " if n == 0 else "") + ("warn" if count else "") for n, count in enumerate(counts))
    return "".join(f'<td class="{kind}">{count}</td>' for kind, count in zip(kinds, counts, strict=True))


def table(heads: Sequence[str], rows: Sequence[str], caption: str = "", sortable: bool = True) -> str:
    """Return a table from the cells of its header rows and its rows."""
    kind = "sortable" if sortable else ""
    head = "".join(f"<tr>{cells}</tr>" for cells in heads)
    foot = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure class="table"><div class="scroll"><table class="{kind}"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{foot}</figure>"
    )


def group_heads(groups: Mapping[str, Sequence[str]], first: str) -> list[str]:
    """Return two header rows: groups of columns, and the columns of each."""
    top = f'<th rowspan="2" class="left">{first}</th>'
    top += "".join(f'<th colspan="{len(columns)}" class="first">{name}</th>' for name, columns in groups.items())
    bottom = "".join(
        f'<th class="{"first" if n == 0 else ""}">{column}</th>'
        for columns in groups.values()
        for n, column in enumerate(columns)
    )
    return [top, bottom]


def site_table(summary: Mapping[str, Any]) -> str:
    """Return a table with one row per site and one for all: overlap, distance, NCC, folds, missed structures."""
    parts = [(escape(name), part) for name, part in summary["sites"].items()]
    if len(parts) > 1:
        parts.append(("All sites", summary["all"]))
    tasks = [task for task in TASKS if task in summary["all"]["tasks"]]
    columns = [SHORT_TASKS[task] for task in tasks]
    has_cases = bool(summary["all"]["cases"])
    groups: dict[str, list[str]] = {"Scans": ["n"], "Dice": columns, "HD95 (mm)": columns}
    if has_cases:
        groups |= {"NCC": ["unreg.", "reg."], "Folded": ["%"], "Heads agree": ["Dice"]}
    groups["Missed"] = columns
    rows = []
    for name, part in parts:
        by_task = {task: part["tasks"].get(task) for task in tasks}
        if None in by_task.values():
            continue
        means = {task: of_task["mean"] for task, of_task in by_task.items()}
        cells = f'<th class="left">{name}</th><td class="first">{by_task[tasks[0]]["cases"]}</td>'
        cells += "".join(measure_cells(means, measure, tasks) for measure in ("dice", "hd95_mm"))
        if has_cases:
            cases = part["cases"] or {
                key: {"mean": math.nan, "sd": math.nan, "n": 0} for key in summary["all"]["cases"]
            }
            before, after = cases["ncc_unregistered"], cases["ncc_registration"]
            cells += mean_cell(before, 3, first=True) + mean_cell(after, 3, best=after["mean"] > before["mean"])
            cells += mean_cell(cases["folded_percent"], 3, first=True)
            cells += mean_cell(cases["head_agreement"], 3, first=True)
        cells += count_cells([of_task["missed"] for of_task in by_task.values()])
        rows.append(f'<tr class="{"total" if name == "All sites" else ""}">{cells}</tr>')
    return table(
        group_heads(groups, "Site"),
        rows,
        "Mean ± standard deviation over scans; the structures of a scan are averaged first. <b>Marked</b>: the best of "
        "a row. A missed structure counts with Dice 0 and the diagonal of the image as distance.",
    )


def stage_table(by_stage: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a table with one row per site and one for all: the mean Dice of both tasks at each stage of a run.

    A row counts the scans that were measured at all of its stages, so that its columns can be compared. A site that
    joined after the rounds may lack a stage; the row of all sites leaves it out.

    Args:
        by_stage: rows of metrics.csv by stage, in order of time.
    """
    dice = {stage: {task: mean_dice_by_case(rows, task) for task in COMPARED} for stage, rows in by_stage.items()}
    every = list(dict.fromkeys(case for of_stage in dice.values() for case in of_stage[COMPARED[0]]))
    sites = list(dict.fromkeys(site for site, _ in every))
    rows = []
    for name in [*sites, *["All sites"] * (len(sites) > 1)]:
        mine = [case for case in every if name in (case[0], "All sites")]
        present = [stage for stage in dice if any(case in dice[stage][COMPARED[0]] for case in mine)]
        mine = [case for case in mine if all(case in dice[stage][task] for stage in present for task in COMPARED)]
        cells = f'<th class="left">{escape(name)}</th><td class="first">{len(mine)}</td>'
        for task in COMPARED:
            found = {stage: spread(dice[stage][task][case] for case in mine if stage in present) for stage in dice}
            cells += "".join(mean_cell(found[stage], 3, first=n == 0, deviation=True) for n, stage in enumerate(dice))
            change = round(found[present[-1]]["mean"], 3) - round(found[present[0]]["mean"], 3)
            kind = "best" if change > 0 else "warn" if change < 0 else ""
            cells += f'<td class="{kind}" data-sort="{change:.6g}">{signed(change, 3)}</td>'
        rows.append(f'<tr class="{"total" if name == "All sites" else ""}">{cells}</tr>')
    names = {BEFORE: "before", ROUNDS: "after the rounds"}
    names[FINAL] = "personalised" if ROUNDS in by_stage else names[ROUNDS]
    columns = [*(names[stage] for stage in by_stage), "change"]
    groups = {"Scans": ["n"]} | {f"{task.capitalize()} Dice": columns for task in COMPARED}
    return table(
        group_heads(groups, "Site"), rows, "Mean ± standard deviation over the same scans at all stages of a row."
    )


def signed(value: float, digits: int) -> str:
    """Return a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def scan_table(rows: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with one row per scan of a site: Dice, NCC, folds, agreement of the heads, missed structures.

    Args:
        rows: the rows of metrics.csv of the site.
        cases: the rows of cases.csv of the site; may be empty.
    """
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    columns = [SHORT_TASKS[task] for task in tasks]
    by_case = {case["case"]: case for case in cases}
    groups: dict[str, list[str]] = {"Dice": columns}
    if by_case:
        groups |= {"NCC": ["unreg.", "reg."], "Folded": ["%"], "Heads agree": ["Dice"]}
    groups["Missed"] = columns
    lines = []
    for name in dict.fromkeys(row["case"] for row in rows):
        by_task = {task: [row for row in rows if (row["case"], row["task"]) == (name, task)] for task in tasks}
        means = {task: {"dice": spread(row["dice"] for row in of_task)} for task, of_task in by_task.items()}
        cells = f'<th class="left">{escape(name)}</th>' + measure_cells(means, "dice", tasks)
        if by_case:
            case = by_case.get(name, {})
            for measure in ("ncc_unregistered", "ncc_registration", "folded_percent", "head_agreement"):
                cells += mean_cell(spread([case.get(measure, math.nan)]), 3, first=measure != "ncc_registration")
        cells += count_cells([sum(row["missed"] for row in of_task) for of_task in by_task.values()])
        lines.append(f"<tr>{cells}</tr>")
    return table(group_heads(groups, "Scan"), lines)


def structure_table(part: Mapping[str, Any], measures: Sequence[str] = ("dice", "hd95_mm")) -> str:
    """Return a table with one row per structure: measures by task, scans that have it, how often it was missed."""
    tasks = [task for task in TASKS if task in part["tasks"]]
    columns = [SHORT_TASKS[task] for task in tasks]
    groups: dict[str, list[str]] = {MEASURE_STYLE[measure][0]: columns for measure in measures}
    groups |= {"Scans": ["n"], "Missed": columns}
    rows = []
    for name, of_first in part["tasks"][tasks[0]]["structures"].items():
        by_task = {task: part["tasks"][task]["structures"][name] for task in tasks}
        cells = f'<th class="left">{structure_name(name, of_first["label"])}</th>'
        cells += "".join(measure_cells(by_task, measure, tasks) for measure in measures)
        cells += f'<td class="first">{of_first["dice"]["n"]}</td>'
        cells += count_cells([of_task["missed"] for of_task in by_task.values()])
        rows.append(f"<tr>{cells}</tr>")
    means = {task: part["tasks"][task]["mean"] for task in tasks}
    cells = '<th class="left">Mean of structures</th>'
    cells += "".join(measure_cells(means, measure, tasks) for measure in measures)
    cells += f'<td class="first">{part["tasks"][tasks[0]]["cases"]}</td>'
    cells += count_cells([part["tasks"][task]["missed"] for task in tasks])
    rows.append(f'<tr class="total">{cells}</tr>')
    return table(group_heads(groups, "Structure"), rows)


def structure_name(name: str, label: int) -> str:
    """Return a structure's name with its colour and abbreviation, as HTML."""
    return f"{chip(label)}{escape(name)} <small>{escape(ABBREVIATIONS.get(label, ''))}</small>"


def chip(label: int) -> str:
    """Return a small square in the colour of a structure's outlines."""
    red, green, blue = COLOURS.get(label, (128, 128, 128))
    return f'<i class="chip" style="background:rgb({red},{green},{blue})"></i>'


def size_text(count: float) -> str:
    """Return a number of bytes as text, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def facts_table(facts: Mapping[str, Any]) -> str:
    """Return a table of names and values; the items of a nested value are on separate lines."""
    rows = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            text = "<br>".join(f"{escape(str(k))} {escape(str(v))}" for k, v in value.items())
        elif isinstance(value, list):
            text = "<br>".join(escape(str(item)) for item in value)
        else:
            text = escape(str(value))
        rows.append(f'<tr><th class="left">{escape(str(key))}</th><td class="text">{text}</td></tr>')
    return table([], rows, sortable=False)

"""The report of a study: tables in the paper's form, training curves, structures, error maps and cost, on one HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fedsr_monai.evaluation.site import read_volumes
from fedsr_monai.evaluation.tables import spread
from fedsr_monai.files import write_text
from fedsr_monai.handlers import read_history
from fedsr_monai.labels import LABELS
from fedsr_monai.report.charts import SERIES, legend, line_chart, nice_ticks, series_style, short, svg, tick_text
from fedsr_monai.report.figures import ROWS, encode, panels, show, slice_of, voxel_ratio
from fedsr_monai.report.page import html_page
from fedsr_monai.study.plan import Plan
from fedsr_monai.study.statistics import holm, paired_p
from fedsr_monai.study.tables import START_FOLDER, TASKS, Results, case_means, matrix

# by measure: heading, digits, the tasks that have it, 1 if more is better or -1 if less is
SHOWN = {
    "dice": ("Dice", 3, TASKS, 1),
    "hd95_mm": ("HD95 (mm)", 2, TASKS, -1),
    "ncc": ("NCC of scan and warped atlas", 3, ("registration",), 1),
}
UNREGISTERED = "unregistered atlas"
CURVES = ("loss", "registration", "segmentation")

Finished = Mapping[tuple[str, int], Path]


def write_report(out: Path, plan: Plan, results: Results, finished: Finished) -> None:
    """Write report.html from the tables of a study and the files of its runs; arms without results are left out."""
    done = f"{len({(row['arm'], row['seed']) for row in results.cases})} of {len(plan.arms) * len(plan.seeds)} runs"
    measured = {row["arm"] for row in results.cases}
    plan = replace(plan, arms={name: arm for name, arm in plan.arms.items() if name in measured})
    styles = {arm: series_style(number) for number, arm in enumerate(plan.arms)}
    everything = [
        ("contrasts", "Contrasts of the plan", contrast_table(results.contrasts)),
        ("means", "Methods and sites", "".join(paper_tables(plan, results.cases))),
        ("structures", "Structures", "".join(structure_chart(results.rows, task, styles) for task in TASKS)),
        ("curves", "Training", curves(plan, finished, styles)),
        ("errors", "Errors of one scan", error_maps(plan, finished)),
        ("cost", "Cost", cost_table(plan, results.cost)),
    ]
    facts = f"{done}, {len(plan.seeds)} seeds, {plan.rounds} rounds of {plan.steps} steps per site"
    sections = [section for section in everything if section[2]]
    page = html_page(f"Study: {plan.name}", facts, f"<p>{escape(plan.question)}</p>", sections)
    write_text(out / "report.html", page)


def contrast_table(contrasts: Sequence[Mapping[str, Any]]) -> str:
    """Return the contrasts over all sites, bold where they are significant."""
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
    return _table(heads, body) + note if body else ""


def paper_tables(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one table per measure and task: arms in rows, sites in columns, mean ± sd over seeds; an arm that is significantly best is marked."""
    result = []
    for measure, (heading, digits, tasks, sign) in SHOWN.items():
        values = case_means(rows, measure)
        sites = sorted({key[3] for key in values})
        for task in tasks:
            columns = {site: {arm: matrix(values, task, arm, site) for arm in plan.arms} for site in (*sites, "all")}
            best = {site: significantly_best(arms, sign) for site, arms in columns.items()}
            shared = common_cases(columns["all"])
            lines = {arm: {site: arms[arm] for site, arms in columns.items()} for arm in plan.arms}
            if measure != "hd95_mm" and task == "registration" and plan.arms:
                first = next(iter(plan.arms))
                lines = {UNREGISTERED: {site: matrix(values, "unregistered", first, site) for site in columns}} | lines
            body = []
            for arm, by_site in lines.items():
                cells = []
                for site, seeds in by_site.items():
                    kept = [
                        [v for case, v in cases.items() if site != "all" or case in shared] for cases in seeds.values()
                    ]
                    of_seeds = spread(float(np.mean(cases)) for cases in kept if cases)
                    text = f"{of_seeds['mean']:.{digits}f}" if of_seeds["n"] else ""
                    if math.isfinite(of_seeds["sd"]) and arm != UNREGISTERED:
                        text += f" <small>± {of_seeds['sd']:.{digits}f}</small>"
                    cells.append(f'<td class="{"best" if arm == best[site] else ""}">{text}</td>')
                body.append(f'<th class="left">{escape(arm)}</th>' + "".join(cells))
            if any(arms for arms in columns["all"].values()):
                result.append(f"<h3>{heading}, {task}</h3>" + _table(("arm", *columns), body))
    if result:
        result.append(
            "<p>Mean ± sd over seeds; 'all' holds the cases that every arm was measured on. An arm is marked where it is better than every other one at that site: paired t-tests "
            "with seeds as units, adjusted by Holm for the number of the other arms, p &lt; 0.05.</p>"
        )
    return result


def common_cases(arms: Mapping[str, Mapping[int, Mapping[tuple, float]]]) -> set[tuple]:
    """Return the cases that every arm with results has in every seed that it has finished."""
    found = [set(cases) for seeds in arms.values() for cases in seeds.values()]
    return set.intersection(*found) if found else set()


def significantly_best(arms: Mapping[str, Mapping[int, Mapping[tuple, float]]], sign: int) -> str | None:
    """Return the arm that is better than each other one with p < 0.05 after Holm's adjustment, or None.

    Args:
        arms: by arm and seed, a measure by case.
        sign: 1 where more is better, -1 where less is.
    """
    if len(arms) < 2:
        return None
    seeds = sorted(set.intersection(*(set(arm) for arm in arms.values())))
    if len(seeds) < 2:
        return None
    cases = sorted(common_cases(arms))
    values = {name: sign * np.array([[arm[s][c] for c in cases] for s in seeds]) for name, arm in arms.items()}
    if not cases or not all(np.isfinite(value).all() for value in values.values()):
        return None
    first = max(values, key=lambda name: values[name].mean())
    found = [paired_p(values[first] - other) for name, other in values.items() if name != first]
    return first if all(p < 0.05 for p in holm(found)) else None


def structure_chart(rows: Sequence[Mapping[str, Any]], task: str, styles: Mapping[str, str]) -> str:
    """Draw one row per structure: each arm's mean Dice over seeds and cases as a dot, the range of its seeds as a bar."""
    of_task: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        if row["task"] == task and math.isfinite(row["dice"]):
            seeds = of_task.setdefault(row["structure"], {}).setdefault(row["arm"], {})
            seeds.setdefault(row["seed"], []).append(row["dice"])
    if not of_task:
        return ""
    names = [name for name in LABELS.values() if name in of_task]
    width, left, right, top, step = 640, 184, 14, 6, 12 + 6 * len(styles)
    bottom = top + step * len(names)

    def x(dice: float) -> float:
        return left + dice * (width - left - right)

    parts = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    for number, name in enumerate(names):
        y = top + step * (number + 0.5)
        parts.append(f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{short(name, 25)}</text>')
        for offset, (arm, style) in enumerate(styles.items()):
            means = [float(np.mean(values)) for values in of_task[name].get(arm, {}).values()]
            if not means:
                continue
            at = y + 6 * (offset - (len(styles) - 1) / 2)
            ends = f'x1="{x(min(means)):.1f}" x2="{x(max(means)):.1f}"'
            parts.append(f'<line {ends} y1="{at:.1f}" y2="{at:.1f}" stroke-width="2" {style}/>')
            mean = float(np.mean(means))
            colour = f"var(--series-{offset % SERIES + 1})"
            parts.append(
                f'<circle cx="{x(mean):.1f}" cy="{at:.1f}" r="3.2" fill="{colour}"><title>{escape(name)}, {escape(arm)}: '
                f"{mean:.3f} ({len(means)} seeds)</title></circle>"
            )
    chart = svg(parts, width, bottom + 26, f"Dice by structure and arm, {task}")
    return f"<h3>Dice, {task}</h3>{legend(styles)}{chart}"


def curves(plan: Plan, finished: Finished, styles: Mapping[str, str]) -> str:
    """Draw the losses over the rounds: the mean over seeds of each arm, and the band of one standard deviation."""
    drawn = []
    for loss in CURVES:
        lines, bands = {}, {}
        for arm in plan.arms:
            by_round: dict[int, list[float]] = {}
            for seed in plan.seeds:
                run = finished.get((arm, seed))
                for number, value in _arm_losses(plan, arm, run, loss).items() if run else ():
                    by_round.setdefault(number, []).append(value)
            rounds = sorted(by_round)
            means = {number: float(np.mean(by_round[number])) for number in rounds}
            lines[arm] = [(number, means[number]) for number in rounds]
            sd = {number: spread(by_round[number])["sd"] for number in rounds}
            bands[arm] = [
                (number, means[number] - sd[number], means[number] + sd[number])
                for number in rounds
                if math.isfinite(sd[number])
            ]
        if any(lines.values()):
            drawn.append(band_chart(lines, bands, f"{loss} loss" if loss != "loss" else loss, styles))
    if not drawn:
        return ""
    note = "<p>Mean over sites and seeds; bands: one standard deviation over seeds. Arms with other loss terms have other scales.</p>"
    return f'{legend(styles)}<div class="multiples">{"".join(drawn)}</div>{note}'


def band_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    bands: Mapping[str, Sequence[tuple[float, float, float]]],
    title: str,
    styles: Mapping[str, str],
) -> str:
    """Draw `line_chart` over translucent bands (x, low, high); the scale covers both."""
    edges = [(x, y) for band in bands.values() for x, low, high in band for y in (low, high)]
    chart = line_chart({**lines, **({"": edges} if edges else {})}, title, "round", {**styles, "": 'stroke="none"'})
    if not edges:
        return chart
    # the same frame as line_chart's, whose scale now covers the edges
    width, height, left, right, top, bottom = 340, 210, 46, 10, 28, 34
    points = edges + [point for line in lines.values() for point in line if math.isfinite(point[1])]
    ys = nice_ticks(min(y for _, y in points), max(y for _, y in points))
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def at(x: float, y: float) -> str:
        across = left + (x - first) / ((last - first) or 1) * (width - left - right)
        return f"{across:.1f},{height - bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (height - bottom - top):.1f}"

    polygons = []
    for number, (_, band) in enumerate(bands.items()):
        outline = [at(x, high) for x, _, high in band] + [at(x, low) for x, low, _ in reversed(band)]
        fill = f'fill="var(--series-{number % SERIES + 1})" fill-opacity="0.18"'
        polygons.append(f'<polygon points="{" ".join(outline)}" {fill}/>' if outline else "")
    body = chart.index(">") + 1
    return chart[:body] + "".join(polygons) + chart[body:]


def _arm_losses(plan: Plan, arm: str, run: Path, loss: str) -> dict[int, float]:
    """Return the mean of a loss by round, including the first rounds that an arm makes with another policy."""
    start = plan.arms[arm].start
    if start is None:
        return _losses(run, loss)
    later = {number + start["rounds"]: value for number, value in _losses(run, loss).items()}
    return _losses(run / START_FOLDER, loss) | later


def _losses(run: Path, loss: str) -> dict[int, float]:
    """Return the mean of a loss over sites and epochs, by round."""
    rows = [(int(row["round"]), row.get(loss)) for row in read_history(run / "history.csv")]
    found: dict[int, list[float]] = {}
    for number, text in rows:
        if text and math.isfinite(float(text)):
            found.setdefault(number, []).append(float(text))
    return {number: float(np.mean(values)) for number, values in found.items()}


def error_maps(plan: Plan, finished: Finished) -> str:
    """Draw where each arm is wrong in one scan of the first seed: the voxels whose label is not the reference's."""
    stored = {}
    for arm in plan.arms:
        run = finished.get((arm, plan.seeds[0]))
        if run:
            folder = run / "evaluation" / "cases"
            stored[arm] = {file.relative_to(folder): file for file in folder.glob("*/*.npz")}
    scans = sorted(set.intersection(*map(set, stored.values()))) if stored else []
    if not scans:
        return ""
    kept = {arm: files[scans[0]] for arm, files in stored.items()}
    result = []
    for task, key in (("segmentation", "segmentation"), ("registration", "warped_label")):
        volumes: dict[str, np.ndarray] = {}
        wrong = {}
        for arm, file in kept.items():
            volumes = read_volumes(file)
            wrong[arm] = volumes[key] != volumes["label"]
        figure, axes, _, index = panels(volumes, ["Scan", *(f"{arm}: {int(w.sum())}" for arm, w in wrong.items())])
        for row, (plane, axis) in enumerate(ROWS.items()):
            scan = slice_of(volumes["image"], axis, index[plane])
            for column, errors in enumerate([None, *wrong.values()]):
                show(axes[row, column], scan, voxel_ratio(volumes, axis))
                if errors is not None:
                    marked = slice_of(errors, axis, index[plane])
                    show(axes[row, column], np.ma.masked_equal(marked, 0), voxel_ratio(volumes, axis), **_MARKED)
        image = base64.b64encode(encode(figure)).decode("ascii")
        where = f"{scans[0].parent.name}, {scans[0].stem}"
        text = f"{task}, {where}: voxels whose label is not the reference's, and their number in the whole scan"
        result.append(
            f'<figure><div class="scroll"><img alt="{text}" src="data:image/webp;base64,{image}"></div>'
            f"<figcaption>{text.capitalize()}.</figcaption></figure>"
        )
    return "".join(result)


_MARKED = {"cmap": "autumn", "vmin": 0, "vmax": 2, "interpolation": "nearest"}


def cost_table(plan: Plan, cost: Sequence[Mapping[str, Any]]) -> str:
    """Return steps, seconds and bytes of each arm, means over seeds."""
    body = []
    for arm in plan.arms:
        rows = [row for row in cost if row["arm"] == arm]
        if rows:
            keys = ("steps", "seconds", "bytes_down", "bytes_up")
            steps, seconds, down, up = (float(np.mean([row[key] for row in rows])) for key in keys)
            body.append(
                f'<th class="left">{escape(arm)}</th><td>{steps:.0f}</td><td>{seconds:.0f}</td>'
                f"<td>{tick_text(round(down / 1e6, 2))}</td><td>{tick_text(round(up / 1e6, 2))}</td>"
            )
    note = "<p>Steps of all sites in the rounds; seconds of the rounds on the machine that ran them, one run after another or several at once.</p>"
    return _table(("arm", "steps", "seconds", "MB down", "MB up"), body) + note if body else ""


def _table(heads: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table>"

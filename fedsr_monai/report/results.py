"""The sections of the report on accuracy: headline, tables and charts, and the pictures of each site."""

from __future__ import annotations

import base64
import math
from html import escape
from pathlib import Path

import numpy as np

from fedsr_monai.evaluation.site import read_volumes
from fedsr_monai.evaluation.stages import BEFORE, FINAL, compare, comparison_text
from fedsr_monai.evaluation.tables import DEFINITIONS
from fedsr_monai.labels import LABELS
from fedsr_monai.report.charts import dice_chart, task_legend
from fedsr_monai.report.figures import deformation_figure, error_figure, overlay_figure
from fedsr_monai.report.sources import Sources
from fedsr_monai.report.tables import chip, number, scan_table, site_table, stage_table, structure_table

FIGURES = (
    (
        "Outlines",
        overlay_figure,
        "The slices that show the most structures. The patient's right is on the left; in sagittal slices the front is "
        "on the left.",
    ),
    (
        "Error maps",
        error_figure,
        "Difference between the intensities of atlas and scan, before and after registration, on one scale. Smooth "
        "changes of brightness (over about 15 mm: coil profiles, a scanner's scale) are removed first. Contrasts "
        "between tissues differ from scanner to scanner, so that even a perfect registration leaves some difference.",
    ),
    (
        "Deformation",
        deformation_figure,
        "Left: where each point of a regular grid on the scan is found in the atlas. Right: a Jacobian determinant "
        "above 1 means that a part of the scan is larger in the atlas, below 1 smaller; at 0 and below the "
        "deformation folds.",
    ),
)


def tile(what: str, value: str, more: str = "", kind: str = "") -> str:
    """Return one of the tiles with a main number, as HTML."""
    return (
        f'<div class="tile {kind}"><div class="what">{what}</div><div class="value">{value}</div>'
        f'<div class="more">{more}</div></div>'
    )


def headline(sources: Sources) -> str:
    """Return the main numbers, in a sentence and in tiles."""
    if not sources.summary:
        return '<p class="lead">This run has not been evaluated yet.</p>'
    whole, sites = sources.summary["all"], sources.summary["sites"]
    tasks = whole["tasks"]
    dice = {task: of_task["mean"]["dice"] for task, of_task in tasks.items()}
    scans = max(of_task["cases"] for of_task in tasks.values())
    words = {
        "unregistered": "{} with the unregistered atlas",
        "registration": "{} after registration",
        "segmentation": "{} by segmentation",
    }
    told = [words[task].format(f"<b>{number(spread['mean'], 3)}</b>") for task, spread in dice.items()]
    listed = f"{', '.join(told[:-1])} and {told[-1]}" if len(told) > 1 else told[0]
    structures = len(next(iter(tasks.values()))["structures"])
    lead = (
        f'<p class="lead">Mean Dice over {structures} structures, {plural(scans, "scan")} and '
        f"{plural(len(sites), 'site')}: {listed}.</p>"
    )
    tiles = []
    for task, name in (("segmentation", "Segmentation Dice"), ("registration", "Registration Dice")):
        if task in dice:
            mean, sd = dice[task]["mean"], dice[task]["sd"]
            beside = [f"± {sd:.3f}"] if math.isfinite(sd) else []
            beside += [f"unregistered {number(dice['unregistered']['mean'], 3)}"] if "unregistered" in dice else []
            tiles.append(tile(name, number(mean, 3), ", ".join(beside), task))
    if "segmentation" in tasks:
        distance = tasks["segmentation"]["mean"]["hd95_mm"]
        more = (
            f"unregistered {number(tasks['unregistered']['mean']['hd95_mm']['mean'], 2)} mm"
            if "unregistered" in tasks
            else ""
        )
        tiles.append(tile("Segmentation HD95", f"{number(distance['mean'], 2)} <small>mm</small>", more))
    if whole["cases"]:
        ncc = whole["cases"]
        more = f"unregistered {number(ncc['ncc_unregistered']['mean'], 3)}"
        tiles.append(tile("Registration NCC", number(ncc["ncc_registration"]["mean"], 3), more))
        tiles.append(
            tile("Folded voxels", f"{number(ncc['folded_percent']['mean'], 3)} <small>%</small>", "of the brain")
        )
    missed = {task: of_task["missed"] for task, of_task in tasks.items()}
    total = sum(count for task, count in missed.items() if task != "unregistered")
    more = ", ".join(f"{count} {task}" for task, count in missed.items() if task != "unregistered")
    tiles.append(tile("Missed structures", str(total), more, "warn" if total else ""))
    return lead + f'<div class="tiles">{"".join(tiles)}</div>'


def plural(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def simulated_note(sources: Sources) -> str:
    """Return the note for results on simulated subjects; empty if there are none."""
    if not sources.simulated:
        return ""
    return (
        f'<p class="note"><b>Simulated subjects</b> ({escape(", ".join(sources.simulated))}). Their anatomy is the '
        "atlas under a smooth deformation and their labels come from the same deformation, so that every structure "
        "has an exact counterpart. Real brains differ more: Dice on them is lower.</p>"
    )


def results(sources: Sources) -> str:
    """Return tables and charts over all sites."""
    if not sources.summary:
        return ""
    whole, sites = sources.summary["all"], sources.summary["sites"]
    by_structure = {
        name: {task: of_task["structures"][name]["dice"] for task, of_task in whole["tasks"].items()}
        for name in next(iter(whole["tasks"].values()))["structures"]
    }
    by_site = {name: {t: of["mean"]["dice"] for t, of in part["tasks"].items()} for name, part in sites.items()}
    if len(sites) > 1:
        by_site["All sites"] = {task: of_task["mean"]["dice"] for task, of_task in whole["tasks"].items()}
    legend = task_legend(list(whole["tasks"]))
    definitions = "".join(f"<li><b>{escape(key)}</b>: {escape(text)}</li>" for key, text in DEFINITIONS.items())
    charts = "".join(
        f"<div><h3>{name}</h3>{legend}{dice_chart(rows, name)}</div>"
        for name, rows in (("Dice by structure", by_structure), ("Dice by site", by_site))
    )
    return (
        f'{stages(sources)}{site_table(sources.summary)}<div class="pair">{charts}</div>'
        f"<h3>Structures, all sites</h3>{structure_table(whole)}"
        f"<details><summary>Jaccard, ASD and AVD</summary>{structure_table(whole, ('jaccard', 'asd_mm'))}"
        f"{structure_table(whole, ('avd_ml', 'avd_percent'))}</details>"
        f"<details><summary>What the numbers mean</summary><ul>{definitions}</ul></details>"
    )


def stages(sources: Sources) -> str:
    """Return what training changed: a sentence per task, and a table of the Dice of each site at each stage."""
    if not sources.stages:
        return ""
    told = ""
    if BEFORE in sources.stages:
        found = compare(sources.stages[BEFORE], sources.rows)
        told = "".join(f"<li>{sentence(comparison_text(task, of_task))}</li>" for task, of_task in found.items())
        told = f"<ul>{told}</ul>"
    by_stage = {**sources.stages, FINAL: sources.rows}
    return f"<h3>What training changed</h3>{told}{stage_table(by_stage)}<h3>Final networks</h3>"


def sentence(text: str) -> str:
    """Return a text as a sentence, as HTML."""
    return escape(text[:1].upper() + text[1:]) + "."


def site_section(sources: Sources, name: str, opened: bool) -> str:
    """Return the section of one site, which a click opens: pictures of its first scan, and tables of its scans and structures."""
    part = sources.summary["sites"][name]
    files = sources.figures.get(name, [])
    pictures = case_pictures(files[0]) if files else ""
    dice = ", ".join(f"{task} {number(of['mean']['dice']['mean'], 3)}" for task, of in part["tasks"].items())
    what = "Pictures, scans and structures" if files else "Scans and structures"
    rows, cases = ([row for row in of_all if row["site"] == name] for of_all in (sources.rows, sources.cases))
    scans = scan_table(rows, cases)
    return (
        f'<details class="site"{" open" if opened else ""}><summary>{what}'
        f'<span class="soft">Dice: {dice}</span></summary>{pictures}<h3>Scans</h3>{scans}'
        f"<h3>Structures</h3>{structure_table(part)}"
        f"<details><summary>Jaccard, ASD and AVD</summary>{structure_table(part, ('jaccard', 'asd_mm'))}"
        f"{structure_table(part, ('avd_ml', 'avd_percent'))}</details></details>"
    )


def case_pictures(path: Path) -> str:
    """Return the three figures of one scan, drawn from the volumes in the file `path`."""
    volumes = read_volumes(path)
    parts = [f'<p class="soft scan">Scan {escape(path.stem)}</p>']
    for heading, draw, caption in FIGURES:
        image = base64.b64encode(draw(volumes)).decode("ascii")
        key = colour_key(volumes["label"]) if draw is overlay_figure else ""
        about = f"{heading} of scan {escape(path.stem)}"
        parts.append(
            f'<h3>{heading}</h3>{key}<figure><div class="scroll"><img class="film" alt="{about}" '
            f'src="data:image/webp;base64,{image}"></div><figcaption>{caption}</figcaption></figure>'
        )
    return "".join(parts)


def colour_key(label: np.ndarray) -> str:
    """Return the legend of the structures in a label map."""
    present = [int(k) for k in np.unique(label) if k]
    items = (f'<span class="key">{chip(k)}{escape(LABELS.get(k, str(k)))}</span>' for k in present)
    return f'<div class="legend">{"".join(items)}</div>'

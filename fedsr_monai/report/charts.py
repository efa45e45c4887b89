"""The charts of the report: SVG that has the colours of the page, light or dark, and prints sharply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

TASK_NAMES = {"unregistered": "Unregistered atlas", "registration": "Registration", "segmentation": "Segmentation"}
SERIES = 8  # colours of the style sheet; further series repeat them dashed

Points = Sequence[tuple[float, float]]


def svg(parts: Sequence[str], width: float, height: float, label: str, options: str = "") -> str:
    """Return an SVG drawing as wide as its container; `label` is read by screen readers."""
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" {options}>'
    return head + "".join(parts) + "</svg>"


def short(name: str, length: int = 19) -> str:
    """Return a name, cut to `length` characters, as HTML."""
    return escape(name if len(name) <= length else name[: length - 1] + "…")


def series_style(number: int) -> str:
    """Return the stroke of a series: the colours of the style sheet, dashed from the ninth series on."""
    dashed = ' stroke-dasharray="5 3"' if number // SERIES % 2 else ""
    return f'stroke="var(--series-{number % SERIES + 1})"{dashed}'


def legend(styles: Mapping[str, str]) -> str:
    """Return the legend of a line chart as HTML: one line and name per series."""
    items = (
        f'<span class="key"><svg width="22" height="8"><line x1="1" x2="21" y1="4" y2="4" stroke-width="2.5" '
        f"{style}/></svg>{escape(name)}</span>"
        for name, style in styles.items()
    )
    return f'<div class="legend">{"".join(items)}</div>'


def task_legend(tasks: Sequence[str]) -> str:
    """Return the legend of a Dice chart as HTML: one dot and name per task."""
    items = (f'<span class="key"><i class="dot {task}"></i>{TASK_NAMES[task]}</span>' for task in tasks)
    return f'<div class="legend">{"".join(items)}</div>'


def nice_ticks(low: float, high: float, about: int = 4, whole: bool = False) -> list[float]:
    """Return round numbers that cover [low, high]; whole numbers with `whole`."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    step = 10 ** math.floor(math.log10(raw))
    step *= min((m for m in (1, 2, 5, 10) if m * step >= raw), default=10)
    step = max(step, 1) if whole else step
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Return a tick's number as text, with a typographic minus sign."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def line_chart(series: Mapping[str, Points], title: str, x_title: str, styles: Mapping[str, str]) -> str:
    """Draw a small panel with one line per series; points that are not finite are left out, and hovering shows values."""
    width, height, left, right, top, bottom = 340, 210, 46, 10, 28, 34
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    ys, xs = nice_ticks(min(y for _, y in every), max(y for _, y in every)), [x for x, _ in every]
    first, span = min(xs), (max(xs) - min(xs)) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - first) / span * (width - left - right),
            height - bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (height - bottom - top),
        )

    parts = [f'<text class="title" x="{left}" y="14">{escape(title)}</text>']
    for tick in ys:
        y = at(first, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick_text(tick)}</text>')
    for tick in (t for t in nice_ticks(first, first + span, 8, whole=True) if first - 1e-9 <= t <= first + span + 1e-9):
        x = at(tick, ys[0])[0]
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 15}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    middle = (left + width - right) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{height - 4}" text-anchor="middle">{escape(x_title)}</text>')
    for name, points in kept.items():
        positions = [at(x, y) for x, y in points]
        parts.append(
            f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in positions)}" {styles[name]}/>'
        )
        if len(every) <= 600:
            parts += [
                f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="6"><title>{escape(name)}, {escape(x_title)} '
                f"{x:.4g}: {y:.4g}</title></circle>"
                for (px, py), (x, y) in zip(positions, points, strict=True)
            ]
    return svg(parts, width, height, title)


def dice_chart(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], label: str) -> str:
    """Draw one row per structure or site: the mean Dice of each task as a dot, its standard deviation as a bar.

    Args:
        rows: the `spread` of each task's Dice, by name of the row and task.
        label: what the chart shows, for screen readers.
    """
    width, left, right, top, step = 480, 184, 14, 6, 24
    height = top + step * len(rows) + 26

    def x(dice: float) -> float:
        return left + min(max(dice, 0.0), 1.0) * (width - left - right)

    parts = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        bottom = top + step * len(rows)
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    for number, (name, tasks) in enumerate(rows.items()):
        y = top + step * (number + 0.5)
        parts.append(f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{short(name, 25)}</text>')
        found = {task: spread for task, spread in tasks.items() if math.isfinite(spread["mean"])}
        if found:
            means = [x(spread["mean"]) for spread in found.values()]
            parts.append(f'<line class="link" x1="{min(means):.1f}" x2="{max(means):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for offset, (task, spread) in enumerate(found.items()):
            mean, sd = spread["mean"], spread["sd"]
            # the bars of the three tasks are drawn a little apart, so that they can be told apart where they overlap
            if math.isfinite(sd):
                bar = y + 3.5 * (offset - 1)
                ends = f'x1="{x(mean - sd):.1f}" x2="{x(mean + sd):.1f}"'
                parts.append(f'<line class="sd {task}" {ends} y1="{bar:.1f}" y2="{bar:.1f}"/>')
            deviation = f" ± {sd:.3f}" if math.isfinite(sd) else ""
            parts.append(
                f'<circle class="mark {task}" cx="{x(mean):.1f}" cy="{y:.1f}" r="5.5"><title>{escape(name)}, '
                f"{TASK_NAMES[task].lower()}: {mean:.3f}{deviation} (n = {spread['n']})</title></circle>"
            )
    return svg(parts, width, height, label)


def participation_chart(status: Mapping[str, Mapping[int, tuple[str, str]]], rounds: Sequence[int]) -> str:
    """Draw one row per site and one column per round: who took part, and on hovering why not.

    Args:
        status: the status and its reason, by site and round.
        rounds: the rounds, in order.
    """
    cell, top = 20, 18
    left = 16 + 7 * max(len(short(site)) for site in status)
    width, height = left + cell * len(rounds) + 4, top + cell * len(status) + 4
    parts = []
    every = max(1, math.ceil(len(rounds) / 25))
    for column, number in enumerate(rounds):
        if column % every == 0:
            parts.append(
                f'<text class="tick" x="{left + cell * (column + 0.5)}" y="12" text-anchor="middle">{number}</text>'
            )
    for row, (site, of_site) in enumerate(status.items()):
        y = top + cell * row
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 14}" text-anchor="end">{short(site)}</text>')
        for column, number in enumerate(rounds):
            kind, reason = of_site.get(number, ("absent", "no record"))
            text = escape(f"{site}, round {number}: {kind}" + (f" ({reason})" if reason else ""))
            square = f'x="{left + cell * column + 1.5}" y="{y + 1.5}" width="17" height="17" rx="3.5"'
            parts.append(f'<rect class="status {escape(kind)}" {square}><title>{text}</title></rect>')
    drawn = svg(parts, width, height, "participation by site and round", f'style="width:{width}px;max-width:none"')
    return f'<div class="scroll">{drawn}</div>'

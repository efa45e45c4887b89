"""The sections of the report on the run: losses, participation and traffic, configuration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from html import escape

from fedsr_monai.handlers.history import KEYS
from fedsr_monai.report.charts import legend, line_chart, participation_chart, series_style
from fedsr_monai.report.sources import Sources
from fedsr_monai.report.tables import facts_table, size_text, table

STATUSES = {
    "ok": "took part",
    "failed": "failed",
    "timeout": "too late",
    "rejected": "update rejected",
    "absent": "did not take part",
}

MEAN = "mean of the round"


def value(row: Mapping[str, str], key: str) -> float:
    """Return a cell as a number; nan if it is empty or not a number."""
    try:
        return float(row.get(key) or math.nan)
    except ValueError:
        return math.nan


def total(rows: Iterable[Mapping[str, str]], key: str) -> float:
    """Return the sum of a column over the rows that have a finite number in it."""
    return sum(v for v in (value(row, key) for row in rows) if math.isfinite(v))


def training(sources: Sources) -> str:
    """Return one panel per loss, with one line per site and the mean of each round if the run recorded it."""
    if not sources.history:
        return ""
    sites = list(dict.fromkeys(row["site"] for row in sources.history))
    positions = epoch_positions(sources.history)
    losses = [key for key in sources.history[0] if key not in KEYS]
    in_rounds = any(int(row["round"]) > 0 for row in sources.history)
    styles = {site: series_style(number) for number, site in enumerate(sites)}
    if any(loss in row for row in sources.rounds[:1] for loss in losses):
        styles[MEAN] = 'style="stroke:var(--ink);stroke-width:2.6"'
    panels = []
    for loss in losses:
        series = {
            site: [
                (x, value(row, loss)) for x, row in zip(positions, sources.history, strict=True) if row["site"] == site
            ]
            for site in sites
        }
        if MEAN in styles:
            series[MEAN] = [(value(row, "round"), value(row, loss)) for row in sources.rounds]
        title = loss.replace("_", " ")
        panels.append(line_chart(series, title, "round" if in_rounds else "epoch", styles))
    return f'{legend(styles)}<div class="multiples">{"".join(panels)}</div>'


def epoch_positions(history: list[dict[str, str]]) -> list[float]:
    """Return the position of each epoch on the axis of rounds: the last epoch of round r is at r.

    An epoch outside the rounds is at its own number.
    """
    groups: dict[tuple[str, str], int] = {}
    order = []
    for row in history:
        key = row["site"], row["round"]
        groups[key] = groups.get(key, 0) + 1
        order.append(groups[key])
    return [
        int(row["round"]) - 1 + done / groups[row["site"], row["round"]]
        if int(row["round"]) > 0
        else float(row["epoch"])
        for row, done in zip(history, order, strict=True)
    ]


def federation(sources: Sources) -> str:
    """Return the section on participation: who took part, why a site was left out, and the traffic."""
    rows = sources.participation
    if not rows:
        return ""
    rounds = sorted({int(row["round"]) for row in rows})
    sites = list(dict.fromkeys(row["site"] for row in rows))
    status = {
        site: {int(row["round"]): (row["status"], row["reason"]) for row in rows if row["site"] == site}
        for site in sites
    }
    down, up = total(rows, "bytes_down"), total(rows, "bytes_up")
    seconds = [value(row, "seconds") for row in sources.rounds]
    timing = ""
    if seconds and all(math.isfinite(s) for s in seconds):
        timing = f" A round took {statistics.median(seconds):.1f} s (median)"
        if sum(seconds) > 0:
            percent = 100 * total(sources.rounds, "server_seconds") / sum(seconds)
            timing += f", of which the server's own work was {percent:.2f} %"
        timing += "."
    shown = [kind for kind in STATUSES if any(row["status"] == kind for row in rows)]
    keys = "".join(map(status_key, shown))
    return (
        f"<p>{len(rounds)} rounds, {len(sites)} sites. {size_text(down)} went to the sites and {size_text(up)} came "
        f"back, {size_text((down + up) / len(rounds))} per round.{timing}</p>"
        f'<div class="legend">{keys}</div>{participation_chart(status, rounds)}'
        f"{left_out(rows)}<h3>By site</h3>{site_traffic(rows, sites)}"
        f"<details><summary>By round</summary>{round_traffic(rows, rounds, sources)}</details>"
    )


def status_key(status: str) -> str:
    """Return the legend of one status of a site."""
    return f'<span class="key"><i class="square {escape(status)}"></i>{escape(STATUSES.get(status, status))}</span>'


def left_out(rows: list[dict[str, str]]) -> str:
    """Return the table of the sites that were left out of a round, and why."""
    missing = [row for row in rows if row["status"] != "ok"]
    if not missing:
        return '<p class="soft">Every site took part in every round.</p>'
    lines = [
        f'<tr><td>{escape(row["round"])}</td><th class="left">{escape(row["site"])}</th>'
        f'<td class="text">{status_key(row["status"])}</td><td class="text">{escape(row["reason"])}</td></tr>'
        for row in missing
    ]
    head = '<th>Round</th><th class="left">Site</th><th class="left">What</th><th class="left">Why</th>'
    inner = table([head], lines)
    if len(missing) > 12:
        return f"<details><summary>Left out ({len(missing)} times)</summary>{inner}</details>"
    return f"<h3>Left out</h3>{inner}"


def traffic_cells(rows: list[dict[str, str]]) -> str:
    """Return two cells: bytes to the sites and from them."""
    down, up = total(rows, "bytes_down"), total(rows, "bytes_up")
    return f'<td data-sort="{down:.0f}">{size_text(down)}</td><td data-sort="{up:.0f}">{size_text(up)}</td>'


def site_traffic(rows: list[dict[str, str]], sites: list[str]) -> str:
    """Return the table of participation, steps, time and traffic by site."""
    lines = []
    for site in sites:
        of_site = [row for row in rows if row["site"] == site]
        took_part = [row for row in of_site if row["status"] == "ok"]
        images = int(max((v for v in (value(row, "images") for row in of_site) if math.isfinite(v)), default=0))
        spent = total(took_part, "seconds") / len(took_part) if took_part else math.nan
        lines.append(
            f'<tr><th class="left">{escape(site)}</th><td>{images}</td><td>{len(took_part)} of {len(of_site)}</td>'
            f"<td>{total(took_part, 'iterations'):.0f}</td><td>{spent:.1f}</td>{traffic_cells(of_site)}</tr>"
        )
    lines.append(
        f'<tr class="total"><th class="left">All sites</th><td></td><td></td>'
        f"<td>{total(rows, 'iterations'):.0f}</td><td></td>{traffic_cells(rows)}</tr>"
    )
    heads = ["Images", "Rounds", "Steps", "Seconds per round", "To the site", "From the site"]
    return table(['<th class="left">Site</th>' + "".join(f"<th>{head}</th>" for head in heads)], lines)


def round_traffic(rows: list[dict[str, str]], rounds: list[int], sources: Sources) -> str:
    """Return the table of participation, traffic and time by round."""
    seconds = {row["round"]: row for row in sources.rounds}
    lines = []
    for number in rounds:
        of_round = [row for row in rows if int(row["round"]) == number]
        took_part = sum(row["status"] == "ok" for row in of_round)
        times = seconds.get(str(number), {})
        lines.append(
            f"<tr><td>{number}</td><td>{took_part} of {len(of_round)}</td>{traffic_cells(of_round)}"
            f"<td>{value(times, 'seconds'):.1f}</td><td>{value(times, 'server_seconds'):.2f}</td></tr>"
        )
    heads = ["Round", "Sites", "To the sites", "From the sites", "Seconds", "Server seconds"]
    return table(["".join(f"<th>{head}</th>" for head in heads)], lines)


def configuration(sources: Sources) -> str:
    """Return `run.json` as a table, so that the run can be repeated."""
    if not sources.run:
        return ""
    facts = {key: item for key, item in sources.run.items() if key not in ("sites", "versions")}
    sites = sources.run.get("sites", [])
    if sites:
        facts["sites"] = [
            f"{site['name']} ({site.get('images', '?')} images), {site.get('path', '')}" for site in sites
        ]
    if "versions" in sources.run:
        facts["versions"] = sources.run["versions"]
    return facts_table(facts)

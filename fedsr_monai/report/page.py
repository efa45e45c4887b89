"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from html import escape
from pathlib import Path

from fedsr_monai import __version__
from fedsr_monai.files import write_text
from fedsr_monai.progress import Progress
from fedsr_monai.report.results import headline, results, simulated_note, site_section
from fedsr_monai.report.sources import Sources, read_sources
from fedsr_monai.report.style import CSS, SCRIPT
from fedsr_monai.report.training import configuration, federation, training


def write_report(
    run_dir: str | os.PathLike | None,
    evaluation_dir: str | os.PathLike | None,
    out_html: str | os.PathLike,
    title: str = "FedSR: registration and segmentation of brain MRI",
) -> Path:
    """Write the report of a federated run, of an evaluation, or of both as one self-contained HTML file.

    A section whose data do not exist (no run, no evaluation yet, no volumes for figures) is left out.

    Args:
        run_dir: folder that `fedsr federate` wrote, or None.
        evaluation_dir: folder that `fedsr evaluate` wrote, or None.
        out_html: the file to write.
        title: heading of the page.

    Returns:
        The path of the report.

    Raises:
        UserError: there is nothing to report, a file is damaged, or the report cannot be written.

    Examples:
        >>> import fedsr_monai as fm
        >>> report = fm.write_report("run", "evaluation", "run/report.html")
        >>> report.is_file()
        True
    """
    sources = read_sources(run_dir, evaluation_dir)
    page = html_page(title, subtitle(sources), headline(sources) + simulated_note(sources), list(sections(sources)))
    write_text(out_html, page)
    return Path(out_html)


def sections(sources: Sources) -> Iterator[tuple[str, str, str]]:
    """Yield id, heading and content of each section that has content."""
    names = list(sources.summary["sites"]) if sources.summary else []
    drawn = Progress(names, desc="report", unit="site")
    everything = [
        ("results", "Results", results(sources)),
        *(
            (f"site-{n}", escape(name), site_section(sources, name, opened=n == 1))
            for n, name in enumerate(drawn, start=1)
        ),
        ("training", "Training", training(sources)),
        ("federation", "Federation", federation(sources)),
        ("configuration", "Configuration", configuration(sources)),
    ]
    yield from (section for section in everything if section[2])


def subtitle(sources: Sources) -> str:
    """Return the line below the title: baseline, policy, rounds and date."""
    run = sources.run
    parts = [f"baseline {run['baseline']}"] if run.get("baseline") else []
    parts += [f"policy {run['policy']}"] if "policy" in run else []
    if sources.participation:
        parts.append(f"{len({row['round'] for row in sources.participation})} of {run.get('rounds', '?')} rounds")
    parts.append(f"written {datetime.now():%d %B %Y, %H:%M}")
    return " · ".join(parts)


def html_page(title: str, below: str, opening: str, contents: list[tuple[str, str, str]]) -> str:
    """Return the whole page. `title` and `below` are plain text, the rest is HTML."""
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in contents)
    bodies = "".join(f'<section id="{name}"><h2>{heading}</h2>{html}</section>\n' for name, heading, html in contents)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>"
        f'<header><div><h1>{escape(title)}</h1><div class="soft">{escape(below)}</div><nav>{links}</nav></div>'
        f"</header>\n"
        f"<main>{opening}\n{bodies}</main>\n"
        f"<footer>FedSR on MONAI {escape(__version__)}. Research software: not for clinical use.</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )

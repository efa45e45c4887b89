"""What a report is made of: the files of a run and of an evaluation, as far as they are there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.tables import CASE_COLUMNS, METRIC_COLUMNS, read_csv, summarise
from fedsr_monai.handlers.history import read_history
from fedsr_monai.simulation.sites import RECORD


@dataclass
class Sources:
    """The contents of a run folder and an evaluation folder; what is not there is empty.

    Attributes:
        run: ``run.json``.
        summary: `summarise` of the evaluation's tables.
        history, participation, rounds: rows of the run's tables, as text.
        figures: by site the files with volumes for the figures.
        simulated: names of the sites whose scans are simulated.
    """

    run: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, str]] = field(default_factory=list)
    participation: list[dict[str, str]] = field(default_factory=list)
    rounds: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, list[Path]] = field(default_factory=dict)
    simulated: list[str] = field(default_factory=list)


def read_sources(run_dir: str | os.PathLike | None, evaluation_dir: str | os.PathLike | None) -> Sources:
    """Read what there is of a run (may still be going on) and of an evaluation.

    Raises:
        UserError: there is nothing to report in either folder, or a file in them is damaged.
    """
    sources = Sources()
    places: dict[str, Path] = {}
    if run_dir is not None:
        run_dir = Path(run_dir)
        sources.run = read_json(run_dir / "run.json")
        sources.history = read_table(run_dir / "history.csv")
        sources.participation = read_table(run_dir / "participation.csv")
        sources.rounds = read_table(run_dir / "rounds.csv")
        for site in sources.run.get("sites", []):
            places[site["name"]] = Path(site["path"])
    simulated = {name for name, place in places.items() if (place / RECORD).exists()}
    if evaluation_dir is not None and (Path(evaluation_dir) / "metrics.csv").exists():
        evaluation_dir = Path(evaluation_dir)
        rows = read_csv(evaluation_dir / "metrics.csv", METRIC_COLUMNS)
        cases = evaluation_dir / "cases.csv"
        sources.summary = summarise(rows, read_csv(cases, CASE_COLUMNS) if cases.exists() else [])
        data = read_json(evaluation_dir / "metrics.json").get("data", {})
        simulated |= {name for name, of_site in data.items() if of_site.get("simulated")}
        for name in sources.summary["sites"]:
            files = sorted((evaluation_dir / "cases" / name).glob("*.npz"))
            if files:
                sources.figures[name] = files
    sources.simulated = sorted(simulated)
    if not (sources.run or sources.history or sources.participation or sources.summary):
        raise UserError(
            f"{run_dir or evaluation_dir}: nothing to report, expected the folder of a run (run.json) or of an "
            "evaluation (metrics.csv); run `fedsr federate` or `fedsr evaluate` first"
        )
    return sources


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: unreadable ({error}), expected JSON; mend it or run again") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file (a last one that a kill cut short is left out); none where there is no file."""
    return read_history(path) if path.exists() else []

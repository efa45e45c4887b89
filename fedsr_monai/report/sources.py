"""Read the files of a run and of an evaluation that a report is made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.site import read_evaluated
from fedsr_monai.evaluation.stages import BEFORE, ROUNDS
from fedsr_monai.evaluation.tables import CASE_COLUMNS, METRIC_COLUMNS, read_measures, summarise
from fedsr_monai.federation.records import PARTICIPATION
from fedsr_monai.files import is_there, read_csv, read_json
from fedsr_monai.run_record import read_run
from fedsr_monai.simulation.sites import RECORD

FIX = "restore it from a copy, or move it away"
MOST = 10**6  # rounds or epochs


@dataclass
class Sources:
    """The contents of a run folder and an evaluation folder; what does not exist is empty.

    Attributes:
        run: content of `run.json`.
        summary: `summarise` of the evaluation's tables.
        rows, cases: rows of metrics.csv and cases.csv.
        history, participation, rounds: rows of the run's tables, as text.
        figures: files with volumes for the figures, by site.
        stages: rows of metrics.csv of the stages before the final one (`evaluation.stages`), by stage.
        simulated: names of the sites whose scans are simulated.
    """

    run: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, str]] = field(default_factory=list)
    participation: list[dict[str, str]] = field(default_factory=list)
    rounds: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, list[Path]] = field(default_factory=dict)
    stages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    simulated: list[str] = field(default_factory=list)


def read_sources(run_dir: str | os.PathLike | None, evaluation_dir: str | os.PathLike | None) -> Sources:
    """Read what exists of a run, which may not have finished, and of an evaluation.

    Raises:
        UserError: neither folder has anything to report, or a file in them is damaged.
    """
    sources = Sources()
    folders: dict[str, Path] = {}
    if run_dir is not None:
        run_dir = Path(run_dir)
        if is_there(run_dir / "run.json") or is_there(run_dir / "server"):
            read_run(run_dir)  # refuses a run.json that is damaged or lost
            sources.run = read_json(run_dir / "run.json", "the settings of a run", "restore it from a copy")
        sources.history = read_table(run_dir / "history.csv", ("round", "site", "epoch"))
        sources.participation = read_table(run_dir / "participation.csv", PARTICIPATION)
        sources.rounds = read_table(run_dir / "rounds.csv", ("round", "seconds", "server_seconds"))
        for site in sources.run.get("sites", []):
            folders[site["name"]] = Path(site.get("path", ""))
    simulated = {name for name, folder in folders.items() if (folder / RECORD).exists()}
    if evaluation_dir is not None and is_there(Path(evaluation_dir) / "metrics.csv"):
        evaluation_dir = Path(evaluation_dir)
        sources.rows = read_measures(evaluation_dir / "metrics.csv", METRIC_COLUMNS)
        if is_there(evaluation_dir / "cases.csv"):
            sources.cases = read_measures(evaluation_dir / "cases.csv", CASE_COLUMNS)
        sources.summary = summarise(sources.rows, sources.cases)
        for stage in (BEFORE, ROUNDS):
            table = evaluation_dir / stage / "metrics.csv"
            if is_there(table):
                sources.stages[stage] = read_measures(table, METRIC_COLUMNS)
        data = read_evaluated(evaluation_dir / "metrics.json")
        simulated |= {name for name, of_site in data.items() if of_site.get("simulated")}
        for name in sources.summary["sites"]:
            files = sorted((evaluation_dir / "cases" / name).glob("*.npz"))
            if files:
                sources.figures[name] = files
    sources.simulated = sorted(simulated)
    if not (sources.run or sources.history or sources.participation or sources.summary):
        raise UserError(
            run_dir or evaluation_dir or "run_dir",
            found="nothing to report",
            expected="the folder of a run (run.json) or of an evaluation (metrics.csv)",
            fix="run `fedsr federate` or `fedsr evaluate` first",
        )
    return sources


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table of a run as text; none if there is no file.

    Raises:
        UserError: it lacks a column of `needed`, or a round or epoch is not a valid number.
    """
    if not is_there(path):
        return []
    read_csv(path, needed, fix=FIX)
    return read_csv(path, convert=_counted, fix=FIX)


def _counted(column: str, text: str) -> str:
    if column in ("round", "epoch") and not 0 <= int(text) <= MOST:
        raise ValueError(text)
    return text

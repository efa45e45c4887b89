"""`fedsr report`: write a run and its evaluation as one HTML page."""

from __future__ import annotations

from pathlib import Path

from fedsr_monai.files import is_there


def report(run: str, evaluation: str | None = None, out: str | None = None) -> None:
    """Write a run and its evaluation as one HTML file: tables, curves, overlays, participation.

    Args:
        run: folder of a run, or of an evaluation without a run
        evaluation: folder of the evaluation; by default evaluation/ in the run's folder
        out: file to write; by default report.html in the run's folder

    Example:
        fedsr report runs/first
    """
    from fedsr_monai.report import write_report

    folder = Path(run)
    if evaluation is None and not is_there(folder / "run.json") and is_there(folder / "metrics.csv"):
        print(write_report(None, folder, out or folder / "report.html"))
        return
    print(write_report(folder, evaluation or folder / "evaluation", out or folder / "report.html"))

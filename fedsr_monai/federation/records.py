"""What a run folder says about itself: `run.json`, and the tables by round and site."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite
import monai
import torch

import fedsr_monai
from fedsr_monai.errors import UserError
from fedsr_monai.files import atomic_path, write_json
from fedsr_monai.handlers.history import write_history

PARTICIPATION = ["round", "site", "status", "reason", "images", "iterations", "seconds", "bytes_down", "bytes_up"]
ROUNDS = ["round", "seconds", "server_seconds", "bytes_down", "bytes_up"]

# What may differ when a run is taken up again, because it changes nothing that was computed so far.
FREE = ("rounds", "min_sites", "timeout", "processes", "versions")


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Write `run.json`, or check that the run in `out` was begun with the same settings.

    Raises:
        UserError: a setting differs, or `run.json` is damaged.
    """
    path = out / "run.json"
    versions = {
        "fedsr_monai": fedsr_monai.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
    }
    settings = json.loads(json.dumps({**settings, "versions": versions}))
    if path.exists():
        try:
            begun = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: found damaged JSON ({error}), expected the settings of a run; give another --out"
            ) from error
        for key in settings:
            if key not in FREE and _compared(begun.get(key)) != _compared(settings[key]):
                raise UserError(
                    f"{path}: {key}: found {json.dumps(begun.get(key))}, expected {json.dumps(settings[key])}; "
                    "give the settings that the run began with to resume it, or another --out to begin a new one"
                )
        if begun.get("rounds", 0) > settings["rounds"]:
            raise UserError(
                f"{path}: rounds: found {begun['rounds']}, expected at most {settings['rounds']}; "
                "a run can be given more rounds, not fewer: give another --out to begin a new one"
            )
    write_json(path, settings)


def digest(path: str | Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_tables(out: Path, history: Sequence[Mapping[str, Any]], open_round: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write participation.csv, rounds.csv and history.csv from the records of the complete rounds.

    The tables count rounds from 1, as the checkpoints do: round_0001 is the state after round 1. (In a table of losses, round 0 is
    a training outside of any round.)

    Args:
        history: one record a round, with `participation` and `epochs` (rows of the two tables) and the columns of `ROUNDS`.
        open_round: participation rows of a round that could not be completed.
    """
    write_table(
        out / "participation.csv",
        PARTICIPATION,
        _from_one([row for record in history for row in record["participation"]] + [*open_round]),
    )
    losses = sorted({key for record in history for key in record["losses"]})
    rows = [{**{key: record[key] for key in ROUNDS}, **record["losses"]} for record in history]
    write_table(out / "rounds.csv", ROUNDS + losses, _from_one(rows))
    write_history(out / "history.csv", _from_one([row for record in history for row in record["epochs"]]))


def _from_one(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "round": row["round"] + 1} for row in rows]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file in one step; seconds with three digits, losses with six."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(key, value) for key, value in row.items()})


def _text(key: str, value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.3f}" if key.endswith("seconds") else f"{value:.6g}"
    return value


def _compared(value: Any) -> Any:
    """A setting without the paths in it: data and weights may have moved."""
    if isinstance(value, list):
        return [_compared(item) for item in value]
    return {key: item for key, item in value.items() if key != "path"} if isinstance(value, dict) else value

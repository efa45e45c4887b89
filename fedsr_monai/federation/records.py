"""The records in a run folder: `run.json`, and the tables by round and site."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite
import monai
import torch

import fedsr_monai
from fedsr_monai.checks import is_name, is_number, is_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.federation.statistics import parse_epoch, parse_losses
from fedsr_monai.federation.validation import LONGEST_REASON
from fedsr_monai.files import check_settings, is_there, read_csv, write_csv, write_json
from fedsr_monai.handlers.history import write_history

if TYPE_CHECKING:
    from fedsr_monai.federation.server import Participation

Record = dict[str, Any]

STATUSES = ("ok", "rejected", "failed", "timeout", "absent")
COUNTS = ("images", "iterations", "bytes_down", "bytes_up")
PARTICIPATION = ["round", "site", "status", "reason", "images", "iterations", "seconds", "bytes_down", "bytes_up"]
ROUNDS = ["round", "seconds", "server_seconds", "bytes_down", "bytes_up"]

# These change nothing that was computed so far, so they may differ when a run is resumed.
SETTINGS_THAT_MAY_CHANGE = ("rounds", "min_sites", "timeout", "processes", "versions")


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Write `run.json`, or check that the run in `out` was begun with the same settings.

    A run whose server has not yet written a checkpoint has not begun. Its settings are then replaced, and states that its sites wrote
    before their first round are deleted.

    Raises:
        UserError: a setting differs, or `run.json` is damaged.
    """
    versions = {
        "fedsr_monai": fedsr_monai.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
    }
    settings = {**settings, "versions": versions}
    path = out / "run.json"
    if is_there(out / "server" / "state.json"):
        begun = check_settings(path, settings, "run", SETTINGS_THAT_MAY_CHANGE)
        rounds = begun.get("rounds", 0)
        if is_whole_number(rounds) and rounds > settings["rounds"]:
            raise UserError(
                f"{path}: rounds",
                found=str(rounds),
                expected=f"at most {settings['rounds']}",
                fix="give at least as many rounds as before, or another --out to begin a new run",
            )
    else:
        for site in (out / "sites").glob("*"):
            states = [file.name for file in site.glob("state_*.pt")]
            if states == ["state_0000.pt"]:
                (site / "state_0000.pt").unlink()
    write_json(path, settings)


def participation_row(round: int, site: str, result: Participation, bytes_down: int) -> dict[str, Any]:
    """Return the row of one site in one round; cells that do not apply are empty.

    Args:
        round: counted from 0.
        site: name of the site.
        result: the outcome of the round for this site.
        bytes_down: bytes sent to each site that was asked.
    """
    asked = result.status != "absent"
    return {
        "round": round,
        "site": site,
        "status": result.status,
        "reason": result.reason,
        "images": "" if result.images is None else result.images,
        "iterations": "" if result.statistics is None else result.statistics["iterations"],
        "seconds": result.seconds if asked else "",
        "bytes_down": bytes_down if asked else 0,
        "bytes_up": result.bytes_up,
    }


def mean_losses(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each loss over the sites that have it."""
    names = sorted({name for of_site in losses for name in of_site})
    values = {name: [of_site[name] for of_site in losses if name in of_site] for name in names}
    return {name: math.fsum(found) / len(found) for name, found in values.items()}


def read_history(path: Path, history: Any) -> list[Record]:
    """Check the form of the records in a server state and return them; tables are written from them.

    Args:
        path: path of the state, for the error message.
        history: the records as they were read from it.

    Raises:
        UserError: a record does not have the form in which the server writes it.
    """
    fix = "restore it from a copy"
    if not isinstance(history, list):
        raise UserError(f"{path}: history", found=type(history).__name__, expected="a list of records", fix=fix)
    for number, record in enumerate(history):
        if not _is_record(record, number):
            found = "a record of another form"
            raise UserError(f"{path}: history[{number}]", found=found, expected="one that the server wrote", fix=fix)
    return history


def _is_record(record: Any, number: int) -> bool:
    keys = {*ROUNDS, "losses", "participation", "epochs"}
    if not isinstance(record, dict) or set(record) != keys or record["round"] != number:
        return False
    if not all(is_number(record[key]) and abs(record[key]) < 1e18 for key in ROUNDS):
        return False
    if not isinstance(record["participation"], list) or not isinstance(record["epochs"], list):
        return False
    return (
        parse_losses(record["losses"]) == record["losses"]
        and all(_is_participation(row, number) for row in record["participation"])
        and all(_is_epoch(row, number) for row in record["epochs"])
    )


def _is_participation(row: Any, number: int) -> bool:
    if not isinstance(row, dict) or set(row) != set(PARTICIPATION):
        return False
    return (
        row["round"] == number
        and is_name(row["site"])
        and row["status"] in STATUSES
        and isinstance(row["reason"], str)
        and len(row["reason"]) <= LONGEST_REASON
        and all(row[key] == "" or is_whole_number(row[key], 0) and row[key] < 10**18 for key in COUNTS)
        and (row["seconds"] == "" or is_number(row["seconds"]))
    )


def _is_epoch(row: Any, number: int) -> bool:
    if not isinstance(row, dict) or row.get("round") != number or not is_name(row.get("site")):
        return False
    rest = {key: value for key, value in row.items() if key not in ("round", "site")}
    return parse_epoch(rest) == rest


def sites_left_out(out: str | Path) -> list[str]:
    """Return one line for each site that was asked in some round but is not part of its result: the rounds, and the last reason."""
    rounds: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for row in read_csv(Path(out) / "participation.csv", PARTICIPATION):
        if row["status"] not in ("ok", "absent"):
            rounds.setdefault(row["site"], []).append(row["round"])
            reasons[row["site"]] = f"{row['status']}, {row['reason']}"
    return [f"{site} is missing in round {', '.join(rounds[site])} ({reasons[site]})" for site in sorted(rounds)]


def write_tables(out: Path, history: Sequence[Record], open_round: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write participation.csv, rounds.csv and history.csv from the records of the complete rounds.

    The tables count rounds from 1, as the checkpoints do: round_0001 is the state after round 1. (In a table of losses, round 0
    stands for training outside of any round.)

    Args:
        out: run folder.
        history: one record per round, with `participation` and `epochs` (rows of the two tables) and the columns of `ROUNDS`.
        open_round: participation rows of a round that could not be completed.
    """
    rows = [row for record in history for row in record["participation"]] + [*open_round]
    write_csv(out / "participation.csv", PARTICIPATION, _from_one(rows))
    losses = sorted({name for record in history for name in record["losses"]})
    rows = [{**{key: record[key] for key in ROUNDS}, **record["losses"]} for record in history]
    write_csv(out / "rounds.csv", ROUNDS + losses, _from_one(rows))
    write_history(out / "history.csv", _from_one([row for record in history for row in record["epochs"]], digits=True))


def _from_one(rows: Sequence[Mapping[str, Any]], digits: bool = False) -> list[dict[str, Any]]:
    """Return rows with rounds counted from 1 and seconds to three decimals; with `digits`, other floats have six significant digits."""
    return [{**{key: _cell(key, cell, digits) for key, cell in row.items()}, "round": row["round"] + 1} for row in rows]


def _cell(key: str, cell: Any, digits: bool) -> Any:
    if not isinstance(cell, float):
        return cell
    return f"{cell:.3f}" if key in ("seconds", "server_seconds") else f"{cell:.6g}" if digits else cell

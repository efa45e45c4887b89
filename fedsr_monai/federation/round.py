"""One round of an embedded federation: draw the sites, send, receive, aggregate, and record who took part."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fedsr_monai.errors import UserError
from fedsr_monai.federation.exchange import size_in_bytes
from fedsr_monai.federation.executors import ClientResult, SequentialExecutor, SiteJob
from fedsr_monai.federation.process_executor import ProcessExecutor
from fedsr_monai.federation.records import write_tables
from fedsr_monai.federation.server import Server, TooFewAnswers
from fedsr_monai.federation.site_state import stable_seed


def draw_sites(names: Sequence[str], count: int, seed: int, round: int) -> list[str]:
    """The sites asked in `round`: `count` of `names`, sorted; the same draw whenever it is made."""
    return sorted(random.Random(stable_seed(seed, "participation", round)).sample(sorted(names), count))


def play_round(
    server: Server, pool: SequentialExecutor | ProcessExecutor, drawn: Sequence[str], jobs: Sequence[SiteJob], out: Path, bar: tqdm
) -> None:
    """One round: send, train, receive, aggregate, write the checkpoint and the tables.

    Raises:
        UserError: too few acceptable answers. The tables then show the open round too.
    """
    started = time.perf_counter()
    number = server.round
    server.open_round()
    tensors = server.send()
    bytes_down = size_in_bytes(tensors)
    server_seconds = time.perf_counter() - started
    answers: dict[str, ClientResult] = {}
    for answer in pool.train(drawn, number, tensors):
        clock = time.perf_counter()
        answers[answer.site] = answer
        if answer.status == "ok":
            server.receive(answer.site, number, answer.tensors, answer.statistics)
        server_seconds += time.perf_counter() - clock
        losses = answer.statistics.get("losses", {})
        bar.set_postfix_str(
            f"round {number + 1}, {answer.site}: " + (_losses_text(losses) if losses else answer.status), refresh=False
        )
        bar.update()

    close_round(server, answers, [job.name for job in jobs], out, bytes_down, started, server_seconds)


def close_round(
    server: Server,
    answers: Mapping[str, ClientResult],
    sites: Sequence[str],
    out: Path,
    bytes_down: int,
    started: float,
    server_seconds: float,
) -> None:
    """Aggregate what the server has accepted, write the checkpoint and the tables, open the next round.

    Args:
        server: has received the answers that were ok.
        answers: every answer of the round by site, also those that are not ok.
        sites: all sites of the run; one without an answer was not drawn.
        out: run folder.
        bytes_down: sent to each site that was asked.
        started: `time.perf_counter()` at the round's beginning.
        server_seconds: that the server has spent on this round so far.

    Raises:
        UserError: too few acceptable answers. The tables then show the open round too.
    """
    number = server.round
    clock = time.perf_counter()
    server.screen()
    rows = [_participation(number, site, answers.get(site), server, bytes_down) for site in sorted(sites)]
    accepted = [answers[site].statistics for site in sorted(server.answers)]
    keys = sorted({key for statistics in accepted for key in statistics["losses"]})
    record = {
        "round": number,
        # so far: the checkpoint holds this record, the tables below one that counts its writing too
        "seconds": time.perf_counter() - started,
        "server_seconds": server_seconds + time.perf_counter() - clock,
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "losses": {key: _mean([s["losses"][key] for s in accepted if key in s["losses"]]) for key in keys},
        "participation": rows,
        "epochs": [
            {"round": number, "site": site, **row} for site in sorted(answers) for row in _epochs(answers[site])
        ],
    }
    try:
        server.finish_round(record)
    except TooFewAnswers as error:
        write_tables(out, server.history, rows)
        bad = "; ".join(
            f"{row['site']}: {row['status']}: {row['reason']}" for row in rows if row["status"] not in ("ok", "absent")
        )
        raise UserError(f"{error}: {bad}; mend these and run the same command again, or lower min_sites") from None
    now = time.perf_counter()
    server.history[-1].update(seconds=now - started, server_seconds=server_seconds + now - clock)
    write_tables(out, server.history)


def _participation(number: int, site: str, answer: ClientResult | None, server: Server, bytes_down: int) -> dict[str, Any]:
    row = {
        "round": number,
        "site": site,
        "status": "absent",
        "reason": "not drawn for this round",
        "bytes_down": 0,
        "bytes_up": 0,
    }
    if answer is None:
        return row
    statistics = answer.statistics
    row |= {"status": answer.status, "reason": answer.reason}
    if answer.status == "absent":
        return row
    row |= {
        "images": statistics.get("images", ""),
        "iterations": statistics.get("iterations", ""),
        "seconds": answer.seconds,
        "bytes_down": bytes_down,
        "bytes_up": size_in_bytes(answer.tensors) if answer.bytes_up is None else answer.bytes_up,
    }
    if site in server.rejected:
        reasons = server.rejected[site]
        more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
        row |= {"status": "rejected", "reason": reasons[0] + more}
    return row


def _epochs(answer: ClientResult) -> list[dict[str, Any]]:
    counters = ("epoch", "iteration")
    rows = answer.statistics.get("epochs", [])
    return [{key: int(value) if key in counters else f"{value:.6g}" for key, value in row.items()} for row in rows]


def _losses_text(losses: Mapping[str, float]) -> str:
    return " ".join(f"{key} {losses[key]:.3f}" for key in ("loss", "registration", "segmentation") if key in losses)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

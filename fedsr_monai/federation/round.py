"""One round of a federation on one machine: draw the sites, send, train, receive, close."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from fedsr_monai.federation.executors import Executor
from fedsr_monai.federation.records import write_tables
from fedsr_monai.federation.server import Server, TooFewResults
from fedsr_monai.federation.site_state import stable_seed


def draw_sites(names: Sequence[str], count: int, seed: int, round: int) -> list[str]:
    """Return the sites asked in `round`: `count` of `names`, sorted. The same arguments always give the same draw."""
    return sorted(random.Random(stable_seed(seed, "participation", round)).sample(sorted(names), count))


def play_round(
    server: Server, executor: Executor, asked: Sequence[str], sites: Sequence[str], out: Path, bar: tqdm
) -> None:
    """Run one round.

    Args:
        server: holds the global tensors.
        executor: runs the sites.
        asked: the sites that train in this round.
        sites: all sites of the run.
        out: run folder, for the tables.
        bar: progress, one step per site.

    Raises:
        UserError: too few acceptable results. The tables then show the open round too.
    """
    number = server.round
    server.open_round(asked, {site: "not drawn for this round" for site in sites if site not in asked})
    for result in executor.train(asked, number, server.send()):
        if result.status == "ok":
            server.receive(result.site, number, result.tensors, result.statistics, seconds=result.seconds)
        else:
            server.report(result.site, result.status, result.reason, seconds=result.seconds)
        losses = result.statistics.get("losses", {})
        bar.set_postfix_str(
            f"round {number + 1}, {result.site}: {_losses_text(losses) or result.status}", refresh=False
        )
        bar.update()
    close_round(server, out)


def close_round(server: Server, out: Path) -> None:
    """Close the server's open round, and write the tables of the run.

    Raises:
        UserError: too few acceptable results. The tables then show the open round too.
    """
    try:
        server.close_round()
    except TooFewResults:
        write_tables(out, server.history, server.participation())
        raise
    write_tables(out, server.history)


def _losses_text(losses: Mapping[str, float]) -> str:
    return " ".join(f"{key} {losses[key]:.3f}" for key in ("loss", "registration", "segmentation") if key in losses)

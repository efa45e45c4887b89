"""What differential privacy of each site costs a short federation: `benchmarks/privacy.csv`.

Four simulated sites on grids of 32^3 voxels of 6 mm train for five rounds of one step, from the weights that ship after
150 pooled steps at this size (the sites of `attacks.py`, all honest). Each site clips what it sends and adds noise to
the SA vectors, to the encoder, or to both: as much as `fedsr privacy` says that epsilon needs over the five rounds
(with noise on both, epsilon is that of both together). The clip norm is the median change in honest rounds from the
first weights, which a hospital could measure on its own data; one row takes a thousandth of it. For comparison there
are runs without clipping, with clipping but no noise, and one in which nothing is sent, so that only the heads learn.
Dice is measured on each site's labelled validation scans, with the last global tensors and the site's own heads. The
noise is drawn from the seed in the table instead of the operating system's random numbers.

    python benchmarks/privacy.py [--seeds 3] [--out benchmarks/privacy.csv] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cached_sites import ROUNDS, TRAINING, CachedSite, Tensors, prepare

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.federation.initial_weights import estimator
from fedsr_monai.federation.privacy import Privacy, noise_for, protect
from fedsr_monai.federation.server import Server, TooFewResults
from fedsr_monai.federation.site_state import stable_seed
from fedsr_monai.files import write_csv, write_json

EPSILONS = {"both": (8, 1, 50, 1e3, 1e6), "SA": (8,), "encoder": (8,)}
COLUMNS = ["protected", "epsilon", "noise", "noise_sa", "clip", "clip_sa", "seed", "rejected", "encoder_moved"]
COLUMNS += ["dice_segmentation", "dice_registration", "change_segmentation", "change_registration"]


@dataclass(frozen=True)
class Row:
    """One run: the part that gets noise, its epsilon, the clip norms as multiples of the honest ones, and the seed of the noise."""

    protected: str
    epsilon: float | None = None
    clip: float | None = None
    seed: int | None = None

    def privacy(self, norms: tuple[float, float]) -> Privacy | None:
        """Return clip norms and noise; None where nothing is clipped."""
        if self.clip is None:
            return None
        parts = 2 if self.protected == "both" else 1
        noise = 0.0 if self.epsilon is None else noise_for(self.epsilon, ROUNDS, parts=parts)
        in_encoder, in_sa = self.protected in ("encoder", "both"), self.protected in ("SA", "both")
        return Privacy(self.clip * norms[0], noise * in_encoder, self.clip * norms[1], noise * in_sa)


def rows(seeds: int) -> list[Row]:
    """Return all runs, seed by seed, so that a call that is stopped has measured all runs of the first seeds."""
    found = [Row("nothing is sent"), Row("none"), Row("clip only", clip=1.0)]
    for seed in range(seeds):
        runs = [Row(part, epsilon, 1.0, seed) for part, of_part in EPSILONS.items() for epsilon in of_part]
        runs.append(Row("both", 8, 1e-3, seed))
        found += sorted(runs, key=lambda row: row.epsilon != 8)  # the grid's middle first
    return found


def norms_of(moved: Tensors, sent: Tensors) -> tuple[float, float]:
    """Return the norms of the difference in the encoder and in the SA vectors."""
    squares = {key: float((moved[key].double() - sent[key].double()).square().sum()) for key in sent}
    sa = sum(value for key, value in squares.items() if key.startswith("sa."))
    return math.sqrt(sum(squares.values()) - sa), math.sqrt(sa)


def play(row: Row, norms: tuple[float, float], sites: list[CachedSite], work: Path, phi: Callable) -> dict:
    """Run the rounds of one row."""
    privacy = row.privacy(norms)
    server = Server(work / "server", sites[0].initial, mutual_information=phi)
    begun = server.send()
    chains = dict.fromkeys(sites, "")
    rejected = 0
    for number in range(ROUNDS):
        sent = begun if row.protected == "nothing is sent" else server.send()
        for site in sites:
            try:
                chains[site], update = site.train(chains[site], sent, number)
            except RuntimeError as error:  # a training that ends in NaN; the site goes on from its last state
                server.report(site.site.name, "failed", str(error))
                continue
            if privacy is not None:
                generator = np.random.default_rng(stable_seed("noise", row.seed, site.site.name, number))
                update = protect(update, sent, privacy, generator)
            server.receive(site.site.name, number, update, {"images": TRAINING})
        try:
            server.close_round()
            participation = server.history[-1]["participation"]
        except TooFewResults:  # the last global tensors stand; the sites are asked again
            participation = server.participation()
            server.round += 1
            server.open_round()
        rejected += sum(of_site["status"] != "ok" for of_site in participation)
    final = begun if row.protected == "nothing is sent" else server.send()
    dice = {site.site.name: site.dice(chains[site], final) for site in sites}
    shutil.rmtree(work / "server", ignore_errors=True)
    zero = {key: torch.zeros_like(value) for key, value in begun.items()}
    moved = norms_of(final, begun)[0] / norms_of(begun, zero)[0]
    return {"rejected": rejected, "moved": moved, "dice": dice}


def table_row(row: Row, norms: tuple[float, float], found: dict, plain: dict) -> dict:
    """Return a row of the table; changes are against the federation without clip and noise."""
    privacy = row.privacy(norms)
    dice, before = (np.mean(list(run["dice"].values()), axis=0) for run in (found, plain))
    cells = {"protected": row.protected, "epsilon": "" if row.epsilon is None else f"{row.epsilon:g}"}
    for name in ("noise", "noise_sa", "clip", "clip_sa"):
        cells[name] = "" if privacy is None else f"{getattr(privacy, name):.4g}"
    cells |= {
        "seed": "" if row.seed is None else row.seed,
        "rejected": f"{found['rejected']} of {ROUNDS * len(found['dice'])}",
    }
    cells["encoder_moved"] = f"{found['moved']:.3g}"
    for name, after, without in zip(("segmentation", "registration"), dice, before, strict=True):
        cells |= {f"dice_{name}": f"{after:.4f}", f"change_{name}": f"{after - without:+.4f}"}
    return cells


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/privacy.csv")
    parser.add_argument("--work", default=None, help="folder for sites and states; by default a temporary one")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    work = Path(options.work or tempfile.mkdtemp())
    started = time.perf_counter()
    folders, weights, settings = prepare(work)
    sites = [CachedSite(folder, work / "states", settings, weights) for folder in folders]
    phi = estimator(bundle_path("fedsr_encoder"), settings.site_overrides())
    begun = sites[0].initial
    # Norms of all rounds without exchange; a round whose only step is on a drawn image does not move the SA vectors.
    honest = []
    for site in sites:
        chain = ""
        for number in range(ROUNDS):
            chain, update = site.train(chain, begun, number)
            honest.append(norms_of(update, begun))
    encoder, sa = ([norm for norm in part if norm] for part in zip(*honest))
    norms = (float(np.median(encoder)), float(np.median(sa)))
    print(
        f"{time.perf_counter() - started:6.0f} s  clip norms {norms[0]:.4g} (encoder), {norms[1]:.4g} (SA)", flush=True
    )
    results = work / "results.json"
    found: dict = json.loads(results.read_text()) if results.exists() else {}
    for row in rows(options.seeds):
        if str(row) not in found:
            found[str(row)] = play(row, norms, sites, work, phi)
            write_json(results, found)
            print(f"{time.perf_counter() - started:6.0f} s  {row} {found[str(row)]}", flush=True)
            for site in sites:
                site.forget()
        measured = [row for row in rows(options.seeds) if str(row) in found]
        if str(Row("none")) in found:
            plain = found[str(Row("none"))]
            write_csv(options.out, COLUMNS, [table_row(row, norms, found[str(row)], plain) for row in measured])
    if options.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

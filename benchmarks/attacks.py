"""Attacks by one hostile site (or two) among three honest ones, under every aggregation rule: `benchmarks/attacks.csv`.

Four simulated sites on grids of 32^3 voxels of 6 mm train for five rounds of one step. They start from the weights that
ship, after 150 pooled steps at this size. The hostile site starts from honest tensors of its own, and claims as many
images as the others unless that claim is the attack. Each row is one attack under one rule: how many of the hostile
results the server rejected, and the Dice on each honest site's labelled validation scans, with the final global encoder
and SA vectors and the site's own heads. Training is deterministic, so what a site computes from the same tensors is
computed once and used in all rows that share it: the first round in all of them, and every round in which the hostile
results were rejected.

    python benchmarks/attacks.py [--out benchmarks/attacks.csv] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cached_sites import ROUNDS, TRAINING, CachedSite, Tensors, prepare

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.federation.aggregation import RULES, aggregate, site_weights
from fedsr_monai.federation.initial_weights import estimator
from fedsr_monai.federation.server import Server
from fedsr_monai.files import write_csv, write_json
from fedsr_monai.spatial.nifti import read_volume, write_volume

UNSCREENED = "mean_unscreened"  # for comparison: what the screening prevents
AGAINST_UNSCREENED = ("none", "zeros", "dead first layer", "image-count lie", "sign flip x30")
COLUMNS = ["attack", "rule", "rejected", "dice_segmentation", "dice_registration", "worst_change"]


def scaled(factor: float) -> Callable:
    """Return the attack that sends its honest update times `factor`."""
    return lambda sent, own, _: {key: sent[key] + factor * (own[key] - sent[key]) for key in sent}


def zeros(sent: Tensors, own: Tensors, rng: torch.Generator) -> Tensors:
    """Send zeros."""
    return {key: torch.zeros_like(value) for key, value in sent.items()}


def random_direction(sent: Tensors, own: Tensors, rng: torch.Generator) -> Tensors:
    """Send an update in a random direction, of the honest norm in every tensor."""
    noise = {key: torch.randn(value.shape, generator=rng) for key, value in sent.items()}
    return {key: sent[key] + noise[key] / noise[key].norm() * (own[key] - sent[key]).norm() for key in sent}


def dead_first_layer(sent: Tensors, own: Tensors, rng: torch.Generator) -> Tensors:
    """Send the honest update with a first layer of zeros."""
    return {key: value * (not key.startswith("encoder.stages.0.")) for key, value in own.items()}


def sa_zeroed(sent: Tensors, own: Tensors, rng: torch.Generator) -> Tensors:
    """Send the honest update with SA vectors of zeros."""
    return {key: value * (not key.startswith("sa.")) for key, value in own.items()}


def sa_permuted(sent: Tensors, own: Tensors, rng: torch.Generator) -> Tensors:
    """Send the honest update with SA vectors whose channels are shuffled."""
    order = {key: torch.randperm(len(value), generator=rng) for key, value in own.items() if key.startswith("sa.")}
    return {key: value[order[key]] if key in order else value for key, value in own.items()}


# name: what is sent, how many hostile sites send it, how many images they claim
ATTACKS: dict[str, tuple[Callable, int, int]] = {
    "none": (scaled(1), 1, TRAINING),
    "zeros": (zeros, 1, TRAINING),
    "x3": (scaled(3), 1, TRAINING),
    "x10": (scaled(10), 1, TRAINING),
    "x30": (scaled(30), 1, TRAINING),
    "sign flip": (scaled(-1), 1, TRAINING),
    "sign flip x30": (scaled(-30), 1, TRAINING),
    "random direction": (random_direction, 1, TRAINING),
    "dead first layer": (dead_first_layer, 1, TRAINING),
    "image-count lie": (scaled(-3), 1, 100_000),
    "SA zeroed": (sa_zeroed, 1, TRAINING),
    "SA permuted": (sa_permuted, 1, TRAINING),
    "two colluders": (scaled(-3), 2, TRAINING),
    "label-flip training": (scaled(1), 1, TRAINING),
}


def flip_labels(folder: Path, out: Path) -> Path:
    """Copy a site, with every structure of its atlas labelled as the next one."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    spec = json.loads((out / "site.json").read_text())
    path = out / spec["atlas"]["label"]
    volume = read_volume(path)
    label = np.asarray(volume.voxels).astype(np.uint8)
    write_volume(path, np.where(label > 0, label % 13 + 1, 0).astype(np.uint8), volume.affine)
    (out / "site.json").write_text(json.dumps(spec | {"name": out.name}))
    return out


def play(attack: str, rule: str, honest: list[CachedSite], hostile: CachedSite, work: Path, phi: Callable) -> dict:
    """Run the rounds of one row."""
    change, count, images = ATTACKS[attack]
    rng = torch.Generator().manual_seed(0)
    server = Server(
        work / "server", honest[0].initial, aggregation="mean" if rule == UNSCREENED else rule, mutual_information=phi
    )
    chains = dict.fromkeys([*honest, hostile], "")
    passed = 0
    for number in range(ROUNDS):
        sent = server.send()
        updates = {}
        for site in chains:
            chains[site], updates[site] = site.train(chains[site], sent, number)
        results = {site.site.name: (updates[site], TRAINING) for site in honest}
        sent_by_hostile = change(sent, updates[hostile], rng)
        results |= {f"hostile-{n}": (sent_by_hostile, images) for n in range(count)}
        if rule == UNSCREENED:
            weights = site_weights({name: claimed for name, (_, claimed) in results.items()})
            server.tensors = aggregate({name: tensors for name, (tensors, _) in results.items()}, weights, sent, phi)
            passed += count
            continue
        for name, (tensors, claimed) in results.items():
            server.receive(name, number, tensors, {"images": claimed})
        server.close_round()
        rows = server.history[-1]["participation"]
        passed += sum(row["site"].startswith("hostile") and row["status"] == "ok" for row in rows)
        assert all(row["status"] == "ok" for row in rows if not row["site"].startswith("hostile")), rows
    dice = {site.site.name: site.dice(chains[site], server.send()) for site in honest}
    shutil.rmtree(work / "server", ignore_errors=True)
    rejected = f"{ROUNDS * count - passed} of {ROUNDS * count}"
    return {"attack": attack, "rule": rule, "rejected": rejected, "passed": passed, "dice": dice}


def row_of(found: dict, clean: dict) -> dict:
    """Return a row of the table; the worst change is the lowest over sites and tasks, relative to the screened mean without an attack."""
    changes = [after - before for site in clean for after, before in zip(found["dice"][site], clean[site], strict=True)]
    segmentation, registration = np.mean(list(found["dice"].values()), axis=0)
    row = {key: found[key] for key in ("attack", "rule", "rejected")}
    row |= {"dice_segmentation": f"{segmentation:.4f}", "dice_registration": f"{registration:.4f}"}
    return row | {"worst_change": f"{min(changes):+.4f}"}


def main() -> None:
    """Write the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/attacks.csv")
    parser.add_argument("--work", default=None, help="folder for sites and states; by default a temporary one")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--rules", nargs="*", default=[*RULES, UNSCREENED])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    work = Path(options.work or tempfile.mkdtemp())
    started = time.perf_counter()
    folders, weights, settings = prepare(work)
    flipped = flip_labels(folders[-1], work / "flipped" / "label-flip")
    sites = [CachedSite(folder, work / "states", settings, weights) for folder in (*folders, flipped)]
    honest, hostile, flipping = sites[:3], sites[3], sites[4]
    phi = estimator(bundle_path("fedsr_encoder"), settings.site_overrides())
    results = work / "results.json"
    found: dict = json.loads(results.read_text()) if results.exists() else {}
    for attack in ["none", *(name for name in options.attacks if name != "none")]:
        none_passed = False
        for rule in options.rules:
            unasked = rule == UNSCREENED and attack not in AGAINST_UNSCREENED
            if unasked or f"{rule}/{attack}" in found:
                continue
            other = flipping if attack == "label-flip training" else hostile
            of_row = play(attack, rule, honest, other, work, phi)
            none_passed |= of_row["passed"] == 0
            found[f"{rule}/{attack}"] = of_row
            write_json(results, found)
            print(f"{time.perf_counter() - started:6.0f} s  {of_row}", flush=True)
        for site in sites:
            site.forget(keep_all=none_passed)  # rounds without a hostile result are shared by many rows
    if "mean/none" not in found:
        return  # nothing to compare with yet: a later call with the same --work adds the rule
    clean = found["mean/none"]["dice"]
    order = [f"{rule}/{attack}" for attack in ATTACKS for rule in [*RULES, UNSCREENED]]
    write_csv(options.out, COLUMNS, [row_of(found[name], clean) for name in order if name in found])
    if options.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

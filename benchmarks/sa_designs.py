"""Designs of SCIE and schedules of the losses from one common start: accuracy, and whether the SA features matter.

The common start is a federation without SCIE over all sites; each arm then goes on from it with its own design, so that few
steps are enough to compare arms that are the identity (or an exact conversion) at their beginning. Every arm takes the same
steps, the last round of them with the encoder frozen. On every test scan the Dice of both tasks is measured with the SA
features as learned and changed (`fedsr_monai.evaluation.sa_variants`).

    fedsr simulate sites --sites 4 --training 4 --validation 0 --test 5 --spacing 4 --shape 48 48 48 --seed 11 \\
        --anatomies DIR --test_anatomies 13-20
    python benchmarks/sa_designs.py sites --work work --out benchmarks/sa_designs.csv

What was finished is kept in the folder of `--work`; `--seconds` ends a call early, and the next one goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImage
from scipy import stats

from fedsr_monai.engines import JointTrainer, head_optimizers
from fedsr_monai.evaluation.sa_variants import change_sa
from fedsr_monai.federation.aggregation import aggregate
from fedsr_monai.federation.site_state import seed_everything, stable_seed
from fedsr_monai.files import read_json, write_csv, write_json
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.losses import mutual_information_estimator
from fedsr_monai.networks import FedSRNet
from fedsr_monai.sites.site import Site, load_atlas, load_sites
from fedsr_monai.spatial.reader import VolumeReader
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation

PLAN = Path(__file__).with_suffix(".json")
SHARED = ("encoder.", "sa.")
TASKS = ("segmentation", "registration")
COLUMNS = (
    "arm", "seed", "task", "dice", "scans", *(f"{name}_{what}" for name in ("permuted", "zero", "atlas") for what in ("delta", "p")),
    "phi_gradient", "sa_entropy", "steps", "seconds",
)  # fmt: skip


class Federation:
    """The sites of one arm: their networks, optimisers and scans, and rounds of local training and aggregation."""

    def __init__(
        self, sites: list[Site], start: dict[str, dict[str, torch.Tensor]], arm: dict[str, Any], seed: int, rate: float
    ) -> None:
        self.sites, self.arm, self.seed, self.rate = sites, arm, seed, rate
        self.networks, self.scans, self.optimizers, self.estimators = {}, {}, {}, {}
        load = LoadImage(VolumeReader(), ensure_channel_first=True)
        for site in sites:
            torch.manual_seed(stable_seed(seed, "network"))  # the same at all sites
            network = FedSRNet("small", **arm.get("network", {})).set_atlas(*load_atlas(site))
            if start:
                take_over(network, start[site.name])
            self.networks[site.name] = network
            self.scans[site.name] = [load(item["image"]).as_tensor().float()[None] for item in site.training]
            self.optimizers[site.name] = head_optimizers(network, rate)
            phi = arm.get("phi")
            self.estimators[site.name] = mutual_information_estimator(*phi) if phi else None
        self.log: list[dict[str, float]] = []
        self.share(
            {key: value for key, value in self.networks[sites[0].name].state_dict().items() if key.startswith(SHARED)}
        )

    def share(self, tensors: dict[str, torch.Tensor]) -> None:
        """Give every site the same shared tensors."""
        self.shared = {key: value.clone() for key, value in tensors.items()}
        for network in self.networks.values():
            network.load_state_dict(self.shared, strict=False)

    def round(self, number: int, steps: int, heads_only: bool = False) -> None:
        """Train all sites for some steps and aggregate; with `heads_only` encoder and SA features stay."""
        updates = {}
        for site in self.sites:
            network, estimator = self.networks[site.name], self.estimators[site.name]
            network.encoder.requires_grad_(not heads_only)
            seed_everything(stable_seed(self.seed, site.name, number))
            order = torch.randperm(max(steps, len(self.scans[site.name]))) % len(self.scans[site.name])
            options = {"sa_alpha": 0.05, **self.arm.get("trainer", {})} | ({"sa_alpha": 0.0} if heads_only else {})
            spacing = float(site.spacing[0])
            trainer = JointTrainer(
                "cpu",
                1,
                [{"image": self.scans[site.name][i]} for i in order[:steps]],
                network,
                self.optimizers[site.name],
                random_atlas=RandomAtlas(RandomDeformation(spacing), RandomAppearance(14, spacing)),
                mutual_information=estimator,
                **options,
            )
            trainer.state.iteration = 0
            rows: list[dict[str, float]] = []
            trainer.add_event_handler("ITERATION_COMPLETED", lambda engine, rows=rows: rows.append(engine.state.output))
            trainer.run()
            self.log += [row | {"round": number} for row in rows if "phi_gradient" in row]
            updates[site.name] = {key: network.state_dict()[key].clone() for key in self.shared}
        if not heads_only:
            weights = {site.name: 1 / len(self.sites) for site in self.sites}
            phi = self.estimators[self.sites[0].name]
            self.share(aggregate(updates, weights, self.shared, phi))


def take_over(network: FedSRNet, start: dict[str, torch.Tensor]) -> None:
    """Load what the common start, which has no SCIE, shares with a network; convert the normalisation where it has another."""
    own = network.state_dict()
    network.load_state_dict(
        {key: value for key, value in start.items() if key in own and own[key].shape == value.shape}, strict=False
    )
    for head in (network.registration, network.segmentation):
        name = "registration" if head is network.registration else "segmentation"
        for scale, level in enumerate(head.levels):
            if level.replaces_norm:
                # gain (x s + m) + shift = g x + b for the normalised x: the same function with the start's SA vector.
                mean, log_spread = getattr(network.sa, name)[scale][0].chunk(2)
                prefix = f"{name}.levels.{scale}.conv.adn.N."
                with torch.no_grad():
                    level.scie.gain.copy_(start[prefix + "weight"] / log_spread.exp())
                    level.scie.shift.copy_(start[prefix + "bias"] - level.scie.gain * mean)
    if network.sa.segmentation[0].ndim == 1:
        network.initialise_sa()


def dice(prediction: np.ndarray, label: np.ndarray) -> float:
    """Return the mean Dice over the structures that either has."""
    sizes = [
        np.bincount(x.ravel(), minlength=14)[1:] for x in (prediction, label, np.where(prediction == label, label, 0))
    ]
    present = sizes[0] + sizes[1] > 0
    return float((2 * sizes[2][present] / (sizes[0] + sizes[1])[present]).mean())


@torch.no_grad()
def measure(federation: Federation, variants: tuple[str, ...], tests: int) -> dict[str, dict[str, list[float]]]:
    """Return the Dice of the test scans by variant of the SA features and task."""
    load, found = LoadImage(VolumeReader(), ensure_channel_first=True), {}
    for site in federation.sites:
        network = federation.networks[site.name].eval()
        learned = {key: value.clone() for key, value in network.sa.state_dict().items()}
        scans = [
            (load(i["image"]).as_tensor().float()[None], load(i["label"]).as_tensor().numpy()[0].astype(int))
            for i in site.test[:tests]
        ]
        for variant in variants:
            change_sa(network, variant, site)
            for image, label in scans:
                prediction = network.predict(image)
                maps = (prediction.logits.argmax(dim=1), network.warp_labels(prediction.ddf)[:, 0])
                for task, labels in zip(TASKS, maps):
                    found.setdefault(variant, {}).setdefault(task, []).append(
                        dice(labels[0].numpy().astype(int), label)
                    )
            network.sa.load_state_dict(learned)
        network.train()
    return found


def common_start(
    sites: list[Site], plan: dict[str, Any], work: Path, seed: int, until: float
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Return the sites' networks after the rounds that all arms have in common; None if the time is over before."""
    file = work / f"start-{seed}.pt"
    state = torch.load(file, weights_only=True) if file.is_file() else {"round": 0, "sites": {}}
    arm = {"network": {"scie": False, "sa_statistics": "convolution"}}
    federation = Federation(sites, state["sites"], arm, seed, plan["rate"])
    for site in state["sites"]:
        for head, optimizer in federation.optimizers[site].items():
            optimizer.load_state_dict(state["optimizers"][site][head])
    for number in range(state["round"], plan["start_rounds"]):
        if time.time() > until:
            return None
        federation.round(number, plan["steps"])
        optimizers = {s: {h: o.state_dict() for h, o in of.items()} for s, of in federation.optimizers.items()}
        sites_now = {name: network.state_dict() for name, network in federation.networks.items()}
        save_checkpoint({"round": number + 1, "sites": sites_now, "optimizers": optimizers}, file)
    return {name: network.state_dict() for name, network in federation.networks.items()}


def run_arm(sites: list[Site], start: dict, plan: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """Train and measure one arm with one seed."""
    clock, arm = time.time(), plan["arms"][name]
    federation = Federation(sites, start, arm, seed, plan["rate"])
    for number in range(plan["rounds"]):
        federation.round(1000 + number, plan["steps"], heads_only=number == plan["rounds"] - 1)
    found = measure(federation, ("learned", *arm.get("sa", ())), plan["tests"])
    late = [row for row in federation.log if row["round"] >= 1000 + plan["rounds"] // 2]
    steps = plan["rounds"] * plan["steps"]
    return {
        "dice": found, "phi_gradient": [row["phi_gradient"] for row in late], "sa_entropy": [row["sa_entropy"] for row in late],
        "steps": steps, "seconds": time.time() - clock,
    }  # fmt: skip


def write_table(results: dict[tuple[str, str], dict[str, Any]], out: Path) -> None:
    """Write one row per arm, seed and task, and one over the seeds of each arm."""
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in results):
        of_arm = {seed: result for (name, seed), result in results.items() if name == arm}
        for task in TASKS:
            for seed, runs in [*((seed, [result]) for seed, result in of_arm.items()), ("all", list(of_arm.values()))]:
                learned = np.mean([run["dice"]["learned"][task] for run in runs], axis=0)
                row = {"arm": arm, "seed": seed, "task": task, "dice": learned.mean(), "scans": len(learned)}
                for variant in (name for name in runs[0]["dice"] if name != "learned"):
                    changed = np.mean([run["dice"][variant][task] for run in runs], axis=0) - learned
                    p = 1.0 if np.ptp(changed) == 0 else stats.ttest_1samp(changed, 0).pvalue
                    row |= {f"{variant}_delta": changed.mean(), f"{variant}_p": float(p)}
                for key in ("phi_gradient", "sa_entropy"):
                    values = [value for run in runs for value in run[key]]
                    row[key] = float(np.median(values)) if values else ""
                rows.append(row | {"steps": runs[0]["steps"], "seconds": np.mean([run["seconds"] for run in runs])})
    write_csv(out, COLUMNS, [{key: row.get(key, "") for key in COLUMNS} for row in rows])


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="+", help="site folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--out", type=Path, default=PLAN.with_suffix(".csv"), help="the table")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so many seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until, plan = time.time() + options.seconds, read_json(PLAN, "a plan", "restore it from a copy")
    sites = [site for folder in options.sites for site in load_sites(folder)]
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for seed in plan["seeds"]:
        for name in plan["arms"]:
            file = options.work / f"{name}-{seed}.json"
            if not file.is_file():
                start = common_start(sites, plan, options.work, plan["seeds"][0], until)
                if start is None or time.time() > until:
                    continue
                write_json(file, run_arm(sites, start, plan, name, seed))
                print(file, flush=True)
            results[name, str(seed)] = read_json(file, "a result", "delete it")
    if results:
        write_table(results, options.out)


if __name__ == "__main__":
    main()

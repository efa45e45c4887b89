"""Sites for measuring short federations: what a site computes from the same tensors is computed once.

Training is deterministic, so the sequence of tensors that a site was sent (a chain) also identifies its state.
`attacks.py` and `privacy.py` make many runs that share their first rounds.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.evaluation.site import run_case
from fedsr_monai.federation.algo import ROUND
from fedsr_monai.federation.executors import SiteJob
from fedsr_monai.federation.runner import federate
from fedsr_monai.federation.settings import RunSettings
from fedsr_monai.simulation.sites import simulate_sites
from fedsr_monai.sites.site import load_site

Tensors = dict[str, torch.Tensor]

ROUNDS, STEPS, LEARNING_RATE = 5, 1, 6e-4
WARMING = 150
TRAINING, VALIDATION = 4, 3


def prepare(work: Path) -> tuple[list[Path], Path, RunSettings]:
    """Return four simulated sites, the weights that they begin with, and the settings of a run; sites and weights that
    `work` already holds are reused.

    The weights that ship were trained on voxels of 2 mm, so they first get pooled steps on three of the sites at this
    size.
    """
    shutil.rmtree(work / "states", ignore_errors=True)  # of an earlier call: only its results are kept
    folders = simulate_sites(work / "sites", 4, TRAINING, VALIDATION, 0, 6.0, (32, 32, 32), seed=5, processes=1)
    shipped = bundle_path("fedsr_encoder") / "models" / "model.pt"
    warming = {"epoch_length": WARMING, "val_interval": 1000}
    federate(folders[:3], work / "warm", 1, policy="pooled", overrides=warming, from_weights=shipped)
    overrides = {"epoch_length": STEPS, "val_interval": 1000, "learning_rate": LEARNING_RATE}
    return folders, work / "warm" / "sites" / "pooled" / "model.pt", RunSettings(ROUNDS, overrides=overrides)


class CachedSite:
    """A site whose rounds are computed once for each sequence of tensors that it was sent."""

    def __init__(self, folder: Path, work: Path, settings: RunSettings, weights: Path) -> None:
        self.site = load_site(folder)
        self.work = work / folder.name
        self.rounds = settings.rounds
        job = SiteJob(
            folder.name,
            str(folder),
            str(self.work / "now"),
            str(bundle_path("fedsr_encoder")),
            settings,
            weights=str(weights),
        )
        self.algo = job.make_algo()
        self.updates: dict[str, Tensors] = {}
        self.first: set[str] = set()
        self.shared: set[str] = set()
        self.measured: dict[str, tuple[float, float]] = {}
        self.keep("", 0)
        self.initial = self.algo.get_weights().weights

    def state(self, chain: str) -> Path:
        """Return the file of the state after a sequence of rounds."""
        return self.work / f"{chain or 'initial'}.pt"

    def keep(self, chain: str, round: int) -> None:
        """Keep the state in which `round` can begin."""
        shutil.copy(self.work / "now" / f"state_{round:04d}.pt", self.state(chain))

    def load(self, chain: str, round: int) -> None:
        """Return to a state."""
        shutil.rmtree(self.work / "now")
        (self.work / "now").mkdir()
        shutil.copy(self.state(chain), self.work / "now" / f"state_{round:04d}.pt")

    def train(self, chain: str, sent: Tensors, round: int) -> tuple[str, Tensors]:
        """Return the name of the sequence one round later, and what the site then sends."""
        following = name_of(chain, sent)
        if following not in self.updates:
            self.load(chain, round)
            self.algo.train(ExchangeObject(weights=sent), {ROUND: round})
            self.updates[following] = self.algo.get_weights().weights
            self.keep(following, round + 1)
            if not chain:
                self.first.add(following)
        return following, self.updates[following]

    def forget(self, keep_all: bool = False) -> None:
        """Keep the states after the first round, and with `keep_all` all that are new; delete the other new ones."""
        self.shared |= {chain for chain in self.updates if keep_all or chain in self.first}
        for chain in set(self.updates) - self.shared:
            self.state(chain).unlink()
            del self.updates[chain]

    def dice(self, chain: str, tensors: Tensors) -> tuple[float, float]:
        """Return the mean Dice of segmentation and registration with global tensors and the site's own heads."""
        name = name_of(chain, tensors)
        if name in self.measured:
            return self.measured[name]
        self.load(chain, self.rounds)
        self.algo.restore()
        self.algo.load_shared(tensors)
        network = self.algo.trainer.network.eval()
        found = []
        for item in self.site.validation:
            volumes, _ = run_case(network, item, "cpu")
            found.append([overlap(volumes[name], volumes["label"]) for name in ("segmentation", "warped_label")])
        segmentation, registration = np.mean(found, axis=0)
        self.measured[name] = float(segmentation), float(registration)
        return self.measured[name]


def name_of(chain: str, tensors: Tensors) -> str:
    """Return the name of the chain that continues `chain` with `tensors`."""
    content = b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))
    return hashlib.sha256(chain.encode() + content).hexdigest()[:24]


def overlap(prediction: np.ndarray, label: np.ndarray) -> float:
    """Return the mean Dice over the structures of a label map."""
    both = [(prediction == value, label == value) for value in range(1, 14)]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in both]))

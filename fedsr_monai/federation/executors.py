"""The sites of an embedded federation: what each needs to know, what it answers, and how to run them one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from fedsr_monai.errors import one_line
from fedsr_monai.federation.algo import ROUND, FedSRAlgo

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SiteJob:
    """All that one site needs to take part; plain values, so that another process can be given it as JSON.

    Attributes:
        name: of the site.
        dataset_dir: its site folder, or several, separated by commas (the pooled baseline).
        folder: private to the site, below the run folder.
        images: training scans.
        bundle_root, policy, local_epochs, seed, overrides, weights: see `FedSRAlgo`.
    """

    name: str
    dataset_dir: str
    folder: str
    images: int
    bundle_root: str
    policy: str = "fedsr"
    local_epochs: int = 1
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def make_algo(self) -> FedSRAlgo:
        """The initialised `FedSRAlgo` of this site."""
        for name in ("monai.fl.client.monai_algo", "monai.bundle.workflows"):
            logging.getLogger(name).setLevel(logging.ERROR)  # three lines a site that say nothing to a user
        algo = FedSRAlgo(
            self.bundle_root,
            self.folder,
            policy=self.policy,
            local_epochs=self.local_epochs,
            seed=self.seed,
            overrides={**self.overrides, "dataset_dir": self.dataset_dir, "output_dir": self.folder},
            weights=self.weights,
        )
        algo.initialize({ExtraItems.CLIENT_NAME: self.name})
        return algo


@dataclass
class ClientResult:
    """What came back from a site in a round; `status` is ok, failed, timeout or absent, and `reason` says why it is not ok.

    `bytes_up` is the size on the way where it is not that of `tensors`.
    """

    site: str
    status: str
    reason: str = ""
    tensors: Tensors = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_up: int | None = None


class SequentialExecutor:
    """Runs the sites one after the other in this process; each is built when it is first asked."""

    def __init__(self, jobs: Sequence[SiteJob]) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.algos: dict[str, FedSRAlgo] = {}

    def algo(self, site: str) -> FedSRAlgo:
        if site not in self.algos:
            self.algos[site] = self.jobs[site].make_algo()
        return self.algos[site]

    def initial(self) -> Tensors:
        """The tensors to begin with: those of the first site's network. All sites build the same one from the same seed."""
        return self.algo(min(self.jobs)).get_weights().weights

    def train(self, sites: Sequence[str], round: int, tensors: Tensors) -> Iterator[ClientResult]:
        """One round at each of `sites`; an exception costs that site this round, not the others theirs."""
        for site in sites:
            started = time.perf_counter()
            try:
                algo = self.algo(site)
                algo.train(ExchangeObject(weights=dict(tensors)), {ROUND: round})
                result = algo.get_weights()
                answer = ClientResult(site, "ok", tensors=result.weights, statistics=result.statistics)
            except Exception as error:
                logging.getLogger(__name__).debug("site %s", site, exc_info=True)
                answer = ClientResult(site, "failed", one_line(error))
            answer.seconds = time.perf_counter() - started
            yield answer

    def save_models(self, tensors: Tensors) -> None:
        """Write every site's full network to its `model.pt`."""
        for site, job in self.jobs.items():
            self.algo(site).save_model(tensors, Path(job.folder) / "model.pt")

    def close(self) -> None:
        for algo in self.algos.values():
            algo.finalize()

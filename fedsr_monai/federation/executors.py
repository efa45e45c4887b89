"""The sites of a federation on one machine: what each needs to know, what it returns, and how to run them one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from fedsr_monai.bundle_path import training_files
from fedsr_monai.errors import one_line
from fedsr_monai.federation.algo import ROUND, FedSRAlgo
from fedsr_monai.federation.privacy import Privacy, read_privacy
from fedsr_monai.federation.settings import RunSettings

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SiteJob:
    """Hold everything that one site needs to take part, in plain values that can be passed to another process as JSON.

    Attributes:
        name: name of the site.
        dataset_dir: its site folder, or several, separated by commas (with a policy that pools images).
        folder: private folder of the site, below the run folder.
        bundle_root: folder of the bundle.
        settings: settings of the run.
        images: number of training scans.
        weights: checkpoint to start from; None for random weights.
        overrides: values for ids of the bundle's configuration at this site only; they take precedence over the run's.
        privacy: clip norms and noise for what the site sends; None for neither.
    """

    name: str
    dataset_dir: str
    folder: str
    bundle_root: str
    settings: RunSettings
    images: int = 0
    weights: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    privacy: Privacy | None = None

    def make_algo(self) -> FedSRAlgo:
        """Return the initialised `FedSRAlgo` of this site.

        Raises:
            UserError: the bundle, the weights to start from or the site's state do not fit.
        """
        for name in ("monai.fl.client.monai_algo", "monai.bundle.workflows"):
            logging.getLogger(name).setLevel(logging.ERROR)  # else three lines per site of no use to a user
        root = Path(self.bundle_root)
        files = [str(path.relative_to(root)) for path in training_files(root, self.settings.baseline)]
        own = {"dataset_dir": self.dataset_dir, "output_dir": self.folder}
        algo = FedSRAlgo(
            self.bundle_root,
            self.folder,
            policy=self.settings.policy,
            local_epochs=self.settings.local_epochs,
            seed=self.settings.seed,
            overrides={**self.settings.site_overrides(), **self.overrides, **own},
            weights=self.weights,
            privacy=self.privacy,
            config_train_filename=files,
        )
        algo.initialize({ExtraItems.CLIENT_NAME: self.name})
        return algo


def site_job(content: Mapping[str, Any]) -> SiteJob:
    """Return a `SiteJob` from its `dataclasses.asdict`."""
    settings, privacy = RunSettings(**content["settings"]), read_privacy(content.get("privacy"))
    return SiteJob(**{**content, "settings": settings, "privacy": privacy})


@dataclass
class ClientResult:
    """Hold what came back from a site in a round; `status` is ok, failed or timeout, and `reason` says why it is not ok."""

    site: str
    status: str
    reason: str = ""
    tensors: Tensors = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Executor(Protocol):
    """Run the sites of a federation; each implementation decides how and where."""

    def initial(self) -> Tensors:
        """Return the tensors to begin with: those of the first site's network, because all sites build the same one."""
        ...

    def train(self, sites: Sequence[str], round: int, tensors: Tensors) -> Iterator[ClientResult]:
        """Yield the result of one round at each of `sites` as soon as it is ready; a site's failure is a result, not an exception."""
        ...

    def save_models(self, tensors: Tensors) -> None:
        """Write every site's whole network to its `model.pt`."""
        ...

    def close(self) -> None:
        """Release what the sites hold."""
        ...


class SequentialExecutor:
    """Run the sites one after the other in this process; each is built when it is first needed.

    Args:
        jobs: the sites.
    """

    def __init__(self, jobs: Sequence[SiteJob]) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.algos: dict[str, FedSRAlgo] = {}

    def algo(self, site: str) -> FedSRAlgo:
        """Return the algorithm of a site."""
        if site not in self.algos:
            self.algos[site] = self.jobs[site].make_algo()
        return self.algos[site]

    def initial(self) -> Tensors:
        """Return the tensors to begin with; see `Executor`."""
        return dict(self.algo(min(self.jobs)).get_weights().weights or {})

    def train(self, sites: Sequence[str], round: int, tensors: Tensors) -> Iterator[ClientResult]:
        """Yield the result of one round at each of `sites`; see `Executor`."""
        for site in sites:
            started = time.perf_counter()
            try:
                algo = self.algo(site)
                algo.train(ExchangeObject(weights=dict(tensors)), {ROUND: round})
                exchanged = algo.get_weights()
                result = ClientResult(
                    site, "ok", tensors=dict(exchanged.weights or {}), statistics=exchanged.statistics
                )
            except Exception as error:
                logging.getLogger(__name__).debug("site %s", site, exc_info=True)
                result = ClientResult(site, "failed", one_line(error))
            result.seconds = time.perf_counter() - started
            yield result

    def save_models(self, tensors: Tensors) -> None:
        """Write every site's whole network to its `model.pt`.

        Raises:
            UserError: a site's state or folder is damaged, or the disk is full.
        """
        for site, job in self.jobs.items():
            self.algo(site).save_model(tensors, Path(job.folder) / "model.pt")

    def close(self) -> None:
        """End the sites' algorithms."""
        for algo in self.algos.values():
            algo.finalize()

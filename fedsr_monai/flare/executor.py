"""Execute FLARE's tasks at a site with `FedSRAlgo`."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.fl.utils.exchange_object import ExchangeObject
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fedsr_monai.errors import UserError, one_line, root_cause
from fedsr_monai.federation.algo import ROUND, FedSRAlgo
from fedsr_monai.federation.executors import SiteJob
from fedsr_monai.flare.exchange import global_tensors, initial_dxo, update_dxo
from fedsr_monai.flare.installed import Installed
from fedsr_monai.flare.privacy import check_privacy_policy
from fedsr_monai.flare.settings import Settings, settings_from_job
from fedsr_monai.flare.site_config import FILE, SiteConfig, read_site_config
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.site import load_sites

INITIAL, TRAIN, SAVE = TASKS = ["initial_features", "train", "save_model"]
ERROR = "fedsr_error"  # header of a reply that is an error: the error's type


class FedSRExecutor(Installed, Executor):
    """Execute `initial_features` (SA vectors of the atlas), `train` (one round) and `save_model` with the site's own data.

    Everything that a round needs from earlier rounds is on disk, in `<state>/<run>/sites/<name>`. So it makes no difference if each
    round runs in a new process, and a site that missed rounds continues with its own heads.

    Args:
        settings: settings of the run, see `fedsr_monai.flare.settings.Settings`. Data and paths are in the site's `local/fedsr.json`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.algo: FedSRAlgo | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Execute a task; never raises. The server learns only the type of an error, because its text may contain a file name."""
        try:
            if task_name not in (INITIAL, TRAIN, SAVE):
                return make_reply(ReturnCode.TASK_UNKNOWN)
            self.algo = self.algo or self.make_algo(fl_ctx)
            if task_name == INITIAL:
                return initial_dxo(self.algo.get_weights().weights).to_shareable()
            if task_name == SAVE:
                self.algo.save_model(global_tensors(shareable), Path(self.algo.folder) / "model.pt")
                return make_reply(ReturnCode.OK)
            return self.train(shareable, abort_signal)
        except Exception as error:
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            self.log_exception(fl_ctx, f"{task_name}: {one_line(error)}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={ERROR: type(root_cause(error)).__name__})
        finally:
            forget_seed()

    def train(self, shareable: Shareable, abort_signal: Signal) -> Shareable:
        """Train one round."""
        sent = global_tensors(shareable)
        round = shareable.get_header(AppConstants.CURRENT_ROUND)
        with interrupted_by(abort_signal, self.algo):
            self.algo.train(ExchangeObject(weights=sent), {ROUND: round})
        result = self.algo.get_weights()
        return update_dxo(result.weights, sent, result.statistics).to_shareable()

    def make_algo(self, fl_ctx: FLContext) -> FedSRAlgo:
        """Make the site's algorithm from the job's settings and the site's configuration.

        Raises:
            UserError: see `check_privacy_policy`, `read_site_config`, `site_job` and `ensure_fit`.
        """
        settings = settings_from_job(self.settings)
        name = fl_ctx.get_identity_name()
        check_privacy_policy(fl_ctx.get_workspace())
        config = read_site_config(fl_ctx.get_workspace().get_root_dir(), name)
        job = site_job(settings, config, name)
        ensure_fit(load_sites(job.dataset_dir))
        return job.make_algo()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Release the algorithm at the end of the job."""
        if event_type == EventType.END_RUN and self.algo is not None:
            self.algo.finalize()
            self.algo = None


def site_job(settings: Settings, config: SiteConfig, name: str) -> SiteJob:
    """Return what `FedSRAlgo` needs, from the job's settings and the site's own configuration.

    Raises:
        UserError: the site does not name its data, does not allow the policy, or has a bundle other than the run's.
    """
    if config.site is None:
        expected = f"the site folder of {name!r}"
        raise UserError(
            f"local/{FILE}: site", found="nothing", expected=expected, fix="write it with `fedsr flare-site`"
        )
    if settings.policy not in config.policies:
        raise UserError(
            f"local/{FILE}: policies",
            found=", ".join(config.policies) or "none",
            expected=f"{settings.policy} (job) among them",
            fix="add it if this site agrees to what it sends",
        )
    root = config.bundle(settings.bundle)
    settings.check_bundle(root)
    weights = settings.weights(root)
    return SiteJob(
        name=name,
        dataset_dir=config.site,
        folder=str(config.state / settings.run / "sites" / name),
        bundle_root=str(root),
        settings=settings,
        weights=None if weights is None else str(weights),
        overrides=config.overrides,
        privacy=config.privacy,
    )


@contextmanager
def interrupted_by(signal: Signal, algo: FedSRAlgo) -> Iterator[None]:
    """Stop the training if FLARE aborts the task while the block runs."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if signal.triggered:
                algo.abort()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def forget_seed() -> None:
    """Reseed the random generators from the operating system.

    A round seeds them with (seed, site, round), which the server knows too. FLARE's privacy filters draw their noise from numpy's
    generator after the round, so anyone who knows that seed could subtract the noise.
    """
    random.seed()
    np.random.seed(np.frombuffer(os.urandom(64), np.uint32))
    torch.seed()

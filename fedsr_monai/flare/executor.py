"""The site's side under FLARE: tasks in, `FedSRAlgo`, answers out."""

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

from fedsr_monai.errors import UserError, one_line
from fedsr_monai.federation.algo import ROUND, FedSRAlgo
from fedsr_monai.federation.executors import SiteJob
from fedsr_monai.flare.exchange import global_tensors, start_dxo, update_dxo
from fedsr_monai.flare.settings import Settings, settings_from_job
from fedsr_monai.flare.site_config import FILE, SiteConfig, read_site_config

START, TRAIN, SAVE = "start", "train", "save"
ERROR = "fedsr_error"  # header of an answer that is an error: the error's type


class FedSRExecutor(Executor):
    """Carries out `start` (SA vectors of the atlas), `train` (one round) and `save` (write the site's model) with the site's own data.

    What a round needs from the rounds before lies on the disk, in `<state>/<run>/sites/<name>`, so a new process each round changes
    nothing, and a site that was away goes on with its own heads.

    Args:
        settings: of the run, see `fedsr_monai.flare.settings.Settings`. Data and paths come from the site's `local/fedsr.json`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.content = settings
        self.algo: FedSRAlgo | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Never raises: an error costs this site the task. The server learns its type only, as its text may hold a file's name."""
        try:
            if task_name not in (START, TRAIN, SAVE):
                return make_reply(ReturnCode.TASK_UNKNOWN)
            self.algo = self.algo or self.make_algo(fl_ctx)
            if task_name == START:
                return start_dxo(self.algo.get_weights().weights).to_shareable()
            if task_name == SAVE:
                self.algo.save_model(global_tensors(shareable), Path(self.algo.folder) / "model.pt")
                return make_reply(ReturnCode.OK)
            return self.train(shareable, abort_signal)
        except Exception as error:
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            self.log_exception(fl_ctx, f"{task_name}: {one_line(error)}")
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={ERROR: type(_cause(error)).__name__})
        finally:
            forget_seed()

    def train(self, shareable: Shareable, abort_signal: Signal) -> Shareable:
        sent = global_tensors(shareable)
        round = shareable.get_header(AppConstants.CURRENT_ROUND)
        with interrupted_by(abort_signal, self.algo):
            self.algo.train(ExchangeObject(weights=sent), {ROUND: round})
        result = self.algo.get_weights()
        return update_dxo(result.weights, sent, result.statistics).to_shareable()

    def make_algo(self, fl_ctx: FLContext) -> FedSRAlgo:
        settings = settings_from_job(self.content)
        name = fl_ctx.get_identity_name()
        place = read_site_config(fl_ctx.get_workspace().get_root_dir(), name)
        return site_job(settings, place, name).make_algo()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.END_RUN and self.algo is not None:
            self.algo.finalize()
            self.algo = None


def site_job(settings: Settings, place: SiteConfig, name: str) -> SiteJob:
    """What `FedSRAlgo` needs, from the job's settings and the site's own.

    Raises:
        UserError: the site does not name its data, does not allow the policy, or has another bundle than the run's.
    """
    if place.site is None:
        raise UserError(
            f"local/{FILE}: site: found nothing, expected the site folder of {name!r}; write it with `fedsr flare-site`"
        )
    if settings.policy not in place.policies:
        raise UserError(
            f"local/{FILE}: policies: found {', '.join(place.policies)}, expected {settings.policy} (job) among them; "
            "add it if this site agrees to what it sends"
        )
    root = place.bundle(settings.bundle)
    settings.check_bundle(root)
    weights = settings.weights(root)
    return SiteJob(
        name=name,
        dataset_dir=place.site,
        folder=str(place.state / settings.run / "sites" / name),
        images=0,  # FedSRAlgo counts them
        bundle_root=str(root),
        policy=settings.policy,
        local_epochs=settings.local_epochs,
        seed=settings.seed,
        overrides={**settings.all_overrides(), **place.overrides},
        weights=None if weights is None else str(weights),
    )


@contextmanager
def interrupted_by(signal: Signal, algo: FedSRAlgo) -> Iterator[None]:
    """While the block runs, stop the training when FLARE aborts the task."""
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
    """Take the random generators' state from the machine again.

    A round seeds them with (seed, site, round), which the server knows too. FLARE's privacy filters draw their noise from numpy's
    generator after the round: with that seed, whoever knows it could subtract the noise.
    """
    random.seed()
    np.random.seed(np.frombuffer(os.urandom(64), np.uint32))
    torch.seed()


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error

"""Keep the run's state at the server: encoder and SA features as safetensors, tables as CSV; no pickle, no heads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.learnable_persistor import LearnablePersistor
from nvflare.app_common.abstract.model import ModelLearnable, make_model_learnable

from fedsr_monai.federation.initial_weights import estimator, initial_tensors, missing_sa
from fedsr_monai.federation.records import begin, write_tables
from fedsr_monai.federation.server import Server
from fedsr_monai.federation.settings import run_settings
from fedsr_monai.flare.exchange import global_dxo
from fedsr_monai.flare.installed import Installed
from fedsr_monai.flare.privacy import check_privacy_policy
from fedsr_monai.flare.settings import Settings, settings_from_job
from fedsr_monai.flare.site_config import SiteConfig, read_site_config

RESULT = "fedsr"  # folder in the job's result


class FedSRPersistor(Installed, LearnablePersistor):
    """Make the `Server` of a run, or resume it where an earlier job of the same run ended.

    The run folder, `<state>/<run>`, has the form of one of `fedsr federate`: run.json, server/, participation.csv, rounds.csv,
    history.csv. At the end of the job it is copied into the job's result, which FLARE keeps and hands out.

    Args:
        settings: settings of the run, see `fedsr_monai.flare.settings.Settings`.
        images: number of training scans by site, as agreed beforehand; any other count is rejected.
    """

    def __init__(self, settings: Mapping[str, Any], images: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.images = dict(images or {})
        self.server: Server | None = None
        self.begun = False

    def load(self, fl_ctx: FLContext) -> ModelLearnable:
        """Return the global tensors to begin or resume with.

        Raises:
            UserError: the settings, the installed bundle or an earlier state do not fit. FLARE then ends the job with this message.
        """
        settings = settings_from_job(self.settings)
        check_privacy_policy(fl_ctx.get_workspace())
        config = read_site_config(fl_ctx.get_workspace().get_root_dir(), fl_ctx.get_identity_name())
        self.out = config.state / settings.run
        self.server = self.make_server(settings, config)
        self.begun = self.server.resume()
        write_tables(self.out, self.server.history)
        if not self.begun and not self.missing():
            self.begin({})
        return self.learnable()

    def missing(self) -> dict[str, torch.Tensor]:
        """Return the SA vectors that a site's labelled atlas has to provide first (they are zeros); empty if none are missing."""
        return missing_sa(self.server.tensors)

    def begin(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the checkpoint of round 0, with these tensors in it."""
        self.server.tensors |= tensors
        self.server.begin()
        self.begun = True

    def learnable(self) -> ModelLearnable:
        """Return the global tensors as FLARE's model."""
        return make_model_learnable(global_dxo(self.server.send()).data, {})

    def make_server(self, settings: Settings, config: SiteConfig) -> Server:
        """Make the server, and write or check the run's `run.json`.

        Raises:
            UserError: the settings or the installed bundle are not those that the run began with.
        """
        root = config.bundle(settings.bundle)
        settings.check_bundle(root)
        record = {
            **run_settings(settings),
            "bundle": {"name": settings.bundle, "train.json": settings.bundle_digest},
            "from_weights": settings.weights_digest and {"digest": settings.weights_digest},
            "declared_images": self.images,
        }
        begin(self.out, record)
        overrides = settings.site_overrides()
        return Server(
            self.out / "server",
            initial_tensors(root, settings.policy, settings.seed, overrides, settings.weights(root)),
            policy=settings.policy,
            weighting=settings.weighting,
            aggregation=settings.aggregation,
            min_sites=settings.min_sites,
            mutual_information=estimator(root, overrides),
            declared_images=self.images,
        )

    def save(self, learnable: ModelLearnable, fl_ctx: FLContext) -> None:
        """Do nothing, because checkpoint and records are written when the round is aggregated."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Copy the run folder into the job's result at the end of the job, however it ended."""
        if event_type == EventType.END_RUN and self.server is not None:
            target = Path(fl_ctx.get_workspace().get_run_dir(fl_ctx.get_job_id())) / RESULT
            shutil.copytree(self.out, target, ignore=shutil.ignore_patterns("sites", ".*"), dirs_exist_ok=True)

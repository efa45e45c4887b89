"""The site's side of the federation: MONAI's `ClientAlgo` with an allow-list of what may leave the site.

`fedsr federate` and NVIDIA FLARE run it, and so can anything else that drives a `ClientAlgo`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.engines import Trainer
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlPhase, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from fedsr_monai.errors import UserError, user_error
from fedsr_monai.federation.policies import find_policy
from fedsr_monai.federation.privacy import SENT, GaussianPrivacy, Privacy
from fedsr_monai.federation.site_state import (
    load_state,
    restore_state,
    save_state,
    seed_everything,
    stable_seed,
    stateful,
)
from fedsr_monai.federation.validation import check_tensors
from fedsr_monai.files import is_there, make_folder
from fedsr_monai.handlers import HistoryWriter, save_checkpoint
from fedsr_monai.networks.weights import load_weights

ROUND = "round"  # key of `extra`; MONAI's ExtraItems has none for the round
# Handlers of the bundle that the federation replaces: loading a checkpoint would undo each round's weights, saving one would replace the
# bundle's own, and the progress bars and histories of all sites and rounds would be mixed up.
REPLACED_HANDLERS = ("Checkpoint", "HistoryWriter", "TrainingProgress")


class EpochLosses(HistoryWriter):
    """Keep the rows of `HistoryWriter` (epoch, iteration, mean losses) in memory, because they are sent to the server."""

    def __init__(self) -> None:
        super().__init__(path="", site="")
        self.rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Keep the numbers of a row."""
        self.rows.append({key: float(value) for key, value in row.items() if key not in ("round", "site")})


class FedSRAlgo(MonaiAlgo):
    """Train a bundle at one site, and let out only what the exchange policy names.

    `MonaiAlgo` returns every local key, decoders included, and evaluates a network other than the one it trains. Here one bundle
    workflow does both. What arrives must have exactly the shared keys, and only the keys on the allow-list leave. At the start
    of a round, everything that it needs from earlier rounds is read from `folder`, so a restart of the site, or a new process
    for each round, changes nothing. Random numbers are seeded anew by (seed, site, round).

    Args:
        bundle_root: folder of the bundle.
        folder: folder for this site's states. It is private and never sent.
        policy: a key of `fedsr_monai.federation.policies.POLICIES`.
        local_epochs: epochs of the bundle's trainer in each round.
        seed: seed of the run, the same at all sites, so that they start from the same network.
        overrides: values for ids of the bundle's configuration, at least `dataset_dir`.
        weights: checkpoint to start from, a state dict or safetensors; its atlas is left out.
        config_train_filename: configuration file(s) relative to `bundle_root`.
        config_filters_filename: MONAI's exchange filters, applied after the allow-list.
        privacy: clip norms and noise for what leaves the site (see `fedsr_monai.federation.privacy`), applied last; None for neither.
    """

    def __init__(
        self,
        bundle_root: str,
        folder: str | Path,
        policy: str = "fedsr",
        local_epochs: int = 1,
        seed: int = 0,
        overrides: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        config_train_filename: str | list[str] = "configs/train.json",
        config_filters_filename: str | list[str] | None = None,
        privacy: Privacy | None = None,
    ) -> None:
        # No files for the base class: it would build two workflows, and refuse any trainer that is not a SupervisedTrainer.
        super().__init__(
            bundle_root=bundle_root,
            local_epochs=local_epochs,
            send_weight_diff=False,
            config_train_filename=None,
            config_evaluate_filename=None,
            config_filters_filename=config_filters_filename,
        )
        self.policy = find_policy(policy)
        self.folder = Path(folder)
        self.seed = seed
        self.overrides = dict(overrides or {})
        self.weights = weights
        self.config_files = config_train_filename
        self.privacy = privacy
        self.sent: dict[str, torch.Tensor] | None = None  # what the last complete round began with
        self.round = 0
        self.statistics: dict[str, Any] = {}
        self.stale = False

    def initialize(self, extra: dict | None = None) -> None:
        """Build the bundle's workflow and load the site's last state.

        Args:
            extra: `ExtraItems.CLIENT_NAME` is the site's name; `ExtraItems.APP_ROOT` may hold the bundle.

        Raises:
            UserError: the bundle, the weights to start from or the site's state do not fit.
        """
        make_folder(self.folder, "move what is there away")
        extra = dict(extra or {})
        stats_sender = extra.pop(
            ExtraItems.STATS_SENDER, None
        )  # the base class would attach it to engines not built yet
        with warnings.catch_warnings():
            # MONAI warns about bundles that come from a server; this one comes from this machine.
            warnings.filterwarnings("ignore", message=".*bundle.*", category=UserWarning)
            super().initialize(extra)
        self.build()
        if stats_sender is not None:
            stats_sender.attach(self.trainer)
        if load_state(self.folder) is None:
            if is_there(self.folder / "model.pt"):
                found, expected = "model.pt and no state_*.pt", "the state of the site after its last round"
                fix = "restore it from a copy; or move model.pt away, and the site begins with new heads"
                raise UserError(self.folder, found=found, expected=expected, fix=fix)
            if self.weights is not None:
                load_weights(self.trainer.network, self.weights)
            save_state(self.folder, 0, self.trainer, self.handlers)
        self.restore()

    def build(self) -> None:
        """Build workflow, trainer and network from scratch; the same seed gives the same network at every site.

        Raises:
            UserError: the bundle or the site folder is wrong.
        """
        seed_everything(stable_seed(self.seed, "network"))
        self.train_workflow = ConfigWorkflow(
            config_file=self._add_config_files(self.config_files),
            logging_file=False,
            workflow_type="train",
            bundle_root=self.bundle_root,
            **self.overrides,
        )
        parser = self.train_workflow.parser
        for key in ("train#handlers", "validate#handlers"):
            for handler in parser.get(key, None) or []:
                if any(name in handler.get("_target_", "") for name in REPLACED_HANDLERS):
                    handler["_disabled_"] = True
        try:
            self.train_workflow.initialize()
            self.trainer = self.train_workflow.trainer
            self.handlers = stateful(parser.get_parsed_content("train#handlers") if "train#handlers" in parser else [])
        except Exception as error:
            raise user_error(error) or error
        if not isinstance(self.trainer, Trainer):
            raise UserError(
                f"{self.bundle_root}: train#trainer",
                found=type(self.trainer).__name__,
                expected="a monai.engines.Trainer",
                fix="correct the bundle's train configuration",
            )
        if self.policy.heads_first:
            if not hasattr(self.trainer, "heads_first"):
                raise UserError(
                    f"{self.bundle_root}: train#trainer",
                    found=f"{type(self.trainer).__name__}, which trains heads and encoder together",
                    expected=f"one with 'heads_first' for the policy {self.policy.name}",
                    fix="choose the policy fedper",
                )
            self.trainer.heads_first = self.policy.heads_first
        self.evaluator = None
        self.losses = EpochLosses()
        self.losses.attach(self.trainer)
        self.stale = False

    def restore(self, round: int | None = None) -> None:
        """Restore the state from which `round` can begin; by default the newest.

        Raises:
            UserError: the site is ahead of `round`, or its state is damaged or belongs to another network.
        """
        if self.stale:
            self.build()
        found = load_state(self.folder, round, self.trainer.state.device)
        assert found is not None  # `initialize` has written one
        file, state = found
        restore_state(self.trainer, self.handlers, state, file)
        self.round = state["round"] if round is None else round

    def load_shared(self, tensors: Mapping[str, Any]) -> None:
        """Copy global tensors into the network.

        Args:
            tensors: torch tensors or numpy arrays by key.

        Raises:
            UserError: a key is missing or foreign, or its tensor has another shape or type or is not finite. Nothing is loaded then.
        """
        network = self.trainer.network
        shared = self.policy.shared_tensors(network.state_dict())
        reasons = check_tensors(tensors, shared, f"server to site {self.client_name!r}")
        if reasons:
            more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise UserError(f"{reasons[0]}{more}; give server and site the same bundle and policy")
        with torch.no_grad():
            own = network.state_dict()
            for key, value in tensors.items():
                own[key].copy_(torch.as_tensor(value))

    def train(self, data: ExchangeObject, extra: dict | None = None) -> None:
        """Run one round: load the global tensors, train for `local_epochs` epochs, and write the site's state.

        Args:
            data: the global tensors.
            extra: `{"round": number}`; by default the round after the last one trained.

        Raises:
            UserError: the tensors do not fit this network and policy.
            RuntimeError: the training ended early (it was aborted), or gave NaN or Inf. The saved state is still that of the round's beginning.
        """
        extra = extra or {}
        started = time.perf_counter()
        self._set_cuda_device()
        filters: list[Any] = list(self.pre_filters or [])
        for filter_ in filters:
            data = filter_(data, extra)
        self.phase = FlPhase.TRAIN
        self.restore(extra.get(ROUND, self.round))
        self.load_shared(data.weights or {})
        self.sent, sent = None, self.policy.shared_tensors(self.trainer.network.state_dict())

        trainer, state = self.trainer, self.trainer.state
        dataset = self.train_workflow.train_dataset
        seed_everything(stable_seed(self.seed, self.client_name, self.round), dataset)
        self.losses.rows = []
        begin = state.iteration
        state.max_epochs = state.epoch + self.local_epochs  # without it Ignite would count from zero again
        self.stale = True  # until the round is complete: an exception leaves the engine in the middle of an epoch
        trainer.run()
        if state.iteration < state.max_epochs * state.epoch_length:
            raise RuntimeError(
                f"round {self.round + 1}: training ended at iteration {state.iteration - begin}, before the epoch's end"
            )
        bad = [key for key, value in trainer.network.state_dict().items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise RuntimeError(
                f"round {self.round + 1}: training gave NaN or Inf in {bad[0]} ({len(bad)} tensors); the site goes back to its last state"
            )
        self.stale = False

        rows = self.losses.rows
        self.statistics = {
            "round": self.round,
            "images": len(dataset),
            "iterations": state.iteration - begin,
            FlStatistics.NUM_EXECUTED_ITERATIONS.value: state.iteration - begin,
            "losses": {key: value for key, value in rows[-1].items() if key not in ("epoch", "iteration")},
            "epochs": rows,
            "seconds": time.perf_counter() - started,
        }
        self.round += 1
        self.sent = sent
        save_state(self.folder, self.round, trainer, self.handlers)

    def get_weights(self, extra: dict | None = None) -> ExchangeObject:
        """Return the allow-listed tensors of the current network, with the statistics of the last round; nothing else leaves.

        A request for a checkpoint (`ExtraItems.MODEL_TYPE`) gets the same answer, whereas `MonaiAlgo` would send the whole file.

        Raises:
            UserError: `privacy` allows no result, or no further one.
        """
        self.phase = FlPhase.GET_WEIGHTS
        result = ExchangeObject(
            weights=self.policy.shared_tensors(self.trainer.network.state_dict()),
            weight_type=WeightType.WEIGHTS,
            statistics=dict(self.statistics),
        )
        filters: list[Any] = list(self.post_weight_filters or [])
        if self.privacy is not None:
            filters.append(GaussianPrivacy(self.privacy, self.folder))
        for filter_ in filters:
            result = filter_(result, {**(extra or {}), SENT: self.sent})
        return result

    def evaluate(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Return the metrics of the global tensors with the site's own heads on its validation scans; only scalar metrics are sent.

        Raises:
            UserError: the tensors do not fit, the bundle has no evaluator, or `privacy` is set, because metrics get no noise.
        """
        extra = extra or {}
        if self.privacy is not None:
            raise UserError("privacy", found="a request for metrics", expected="rounds only, as metrics have no noise")
        self._set_cuda_device()
        filters: list[Any] = list(self.pre_filters or [])
        for filter_ in filters:
            data = filter_(data, extra)
        self.phase = FlPhase.EVALUATE
        self.restore()  # may rebuild the workflow
        self.load_shared(data.weights or {})
        if self.evaluator is None:
            self.evaluator = self.train_workflow.evaluator
        if self.evaluator is None:
            raise UserError(
                f"{self.bundle_root}: validate#evaluator",
                found="nothing",
                expected="an evaluator",
                fix="add one to the bundle",
            )
        self.evaluator.run(self.trainer.state.epoch + 1)
        metrics = self.evaluator.state.metrics
        scalars = {key: float(value) for key, value in metrics.items() if torch.as_tensor(value).numel() == 1}
        result = ExchangeObject(metrics=scalars)
        filters = list(self.post_evaluate_filters or [])
        for filter_ in filters:
            result = filter_(result, extra)
        return result

    def save_model(self, tensors: Mapping[str, Any], path: str | Path) -> None:
        """Write the site's whole network for its own use, as a plain state dict: the global tensors, its heads and its atlas.

        Raises:
            UserError: the tensors do not fit, or the file cannot be written.
        """
        self.restore()
        self.load_shared(tensors)
        save_checkpoint(self.trainer.network, path)

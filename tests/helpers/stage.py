"""FLARE's parts around ours, without its processes: contexts, workspaces and an engine, and every message through FLARE's serialiser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

from fedsr_monai.flare.aggregator import FedSRAggregator
from fedsr_monai.flare.controller import FedSRController
from fedsr_monai.flare.exchange import global_dxo
from fedsr_monai.flare.executor import FedSRExecutor
from fedsr_monai.flare.job import export_job
from fedsr_monai.flare.persistor import FedSRPersistor

nvflare_fobs_initialize()


class Engine:
    """Of FLARE's engine what our components call."""

    def __init__(self, root: Path, names: list[str], components: dict | None = None) -> None:
        (root / "startup").mkdir(parents=True, exist_ok=True)
        (root / "local").mkdir(exist_ok=True)
        self.workspace = Workspace(str(root), site_name=root.name)
        self.clients = [SimpleNamespace(name=name) for name in names]
        self.components = components or {}

    def get_workspace(self):
        return self.workspace

    def get_clients(self):
        return self.clients

    def get_component(self, name):
        return self.components[name]

    def fire_event(self, event_type, fl_ctx):
        pass


def context(engine: Engine, name: str) -> FLContext:
    fl_ctx = FLContext()
    for key, value in ((ReservedKey.ENGINE, engine), (ReservedKey.IDENTITY_NAME, name), (ReservedKey.RUN_NUM, "job")):
        fl_ctx.set_prop(key, value, private=True, sticky=False)
    return fl_ctx


class Stage:
    """A server and sites below `root`, from the JSON of an exported job.

    Args:
        root: FLARE folders go here.
        data: folder of the site folders.
        sites: names and image counts as declared; None declares none.
        bundle: folder of a bundle that is not part of the package.
        own: more for each site's fedsr.json.
        options: of `export_job`.
    """

    def __init__(
        self, root: Path, data: Path, sites: dict, bundle: Path | None = None, own: dict | None = None, **options
    ) -> None:
        self.root, self.names = root, sorted(sites)
        job = export_job(root / "job", sites, run="run", bundle=bundle or "fedsr_encoder", **options)
        config = {
            side: json.loads((job / f"app/config/config_fed_{side}.json").read_text()) for side in ("server", "client")
        }
        components = {item["id"]: item["args"] for item in config["server"]["components"]}
        bundles = {} if bundle is None else {bundle.name: str(bundle)}
        self.engines = {name: Engine(root / name, []) for name in self.names}
        for name, engine in self.engines.items():
            own_config = {"site": str(data / name), "bundles": bundles, **(own or {})}
            (Path(engine.workspace.get_site_config_dir()) / "fedsr.json").write_text(json.dumps(own_config))
        self.engine = Engine(root / "server", self.names)
        (root / "server" / "local" / "fedsr.json").write_text(json.dumps({"bundles": bundles}))
        self.persistor = FedSRPersistor(**components["persistor"])
        self.aggregator = FedSRAggregator(**components["aggregator"])
        self.controller = FedSRController(**config["server"]["workflows"][0]["args"])
        self.engine.components |= {"persistor": self.persistor, "aggregator": self.aggregator}
        self.controller.aggregator, self.controller.persistor = self.aggregator, self.persistor
        self.controller._engine = self.engine
        self.settings = config["client"]["executors"][0]["executor"]["args"]
        self.executors: dict[str, FedSRExecutor] = {}
        self.wire: list[bytes] = []

    @property
    def out(self) -> Path:
        return self.root / "server" / "fedsr" / "run"

    def context(self, name: str = "server") -> FLContext:
        return context(self.engines.get(name, self.engine), name)

    def restart(self, name: str) -> None:
        """A new process of that site."""
        self.executors.pop(name, None)

    def begin(self) -> None:
        """What the controller does before the first round."""
        self.persistor.load(self.context())
        for name in self.names:
            if not self.persistor.begun:
                self.aggregator.begin_run(name, self.ask(name, "initial_features", Shareable()), self.context())

    def task(self) -> Shareable:
        task = self.send(global_dxo(self.persistor.server.send()).to_shareable())
        task.set_header(AppConstants.CURRENT_ROUND, self.persistor.server.round)
        task.add_cookie(AppConstants.CONTRIBUTION_ROUND, self.persistor.server.round)
        return task

    def ask(self, name: str, task_name: str, task: Shareable, filters: list | None = None) -> Shareable:
        """The answer of one site as it arrives at the server."""
        executor = self.executors.setdefault(name, FedSRExecutor(**self.settings))
        reply = executor.execute(task_name, task, self.context(name), Signal())
        for filter_ in filters or []:
            reply = filter_.process(reply, self.context(name))
        reply.set_cookie_jar(task.get_cookie_jar())  # as FLARE's client does
        return self.send(reply)

    def send(self, message: Shareable) -> Shareable:
        self.wire.append(fobs.dumps(message))
        return fobs.loads(self.wire[-1])

    def accept(self, name: str, reply: Shareable) -> bool:
        return self.controller._accept_train_result(name, reply, self.context(), is_unknown_task=True)

    def round(
        self, change: Callable[[str, Shareable], Shareable | None] = lambda name, reply: reply, sites=None
    ) -> dict[str, bool]:
        """One round; `change` stands between a site and the server, None for an answer that never arrives."""
        self.aggregator.open_round(self.names, {}, self.context())
        accepted = {}
        for name in sites or self.names:
            reply = change(name, self.ask(name, "train", self.task()))
            if reply is not None:
                accepted[name] = self.accept(name, reply)
        self.aggregator.aggregate(self.context())
        return accepted

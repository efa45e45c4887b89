"""A run as a FLARE recipe, which can be executed in a simulator or a deployment, or exported as a job.

The job consists of three JSON files without code or paths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import FullModelShareableGenerator
from nvflare.job_config.api import FedJob
from nvflare.recipe.poc_env import PocEnv
from nvflare.recipe.sim_env import SimEnv
from nvflare.recipe.spec import ExecEnv, Recipe

from fedsr_monai import __version__
from fedsr_monai.bundle_path import installed_bundle
from fedsr_monai.checks import check_whole_number, is_name
from fedsr_monai.errors import UserError
from fedsr_monai.flare.aggregator import FedSRAggregator
from fedsr_monai.flare.controller import FedSRController
from fedsr_monai.flare.executor import TASKS, FedSRExecutor
from fedsr_monai.flare.persistor import FedSRPersistor
from fedsr_monai.flare.privacy import ignored_policy
from fedsr_monai.flare.settings import Settings, file_digest
from fedsr_monai.flare.startup_kit import prepare_startup_kit

APP = "app"  # FLARE's name for an app that server and sites share
SITE = re.compile(r"[A-Za-z0-9_-]{1,100}")  # the names of sites that FLARE's provisioning accepts
SERVER = "server"
BUILDER = "fedsr_monai.flare.provision.FedSRBuilder"


class CodelessJob(FedJob):
    """A job without code. FLARE recognises it as such only if it has no folder for code either."""

    def export_job(self, job_root: str) -> None:
        """Write the job below a folder, without the empty folder for code that FLARE 2.7 leaves in it."""
        super().export_job(job_root)
        custom = Path(job_root) / self.name / APP / "custom"
        if custom.is_dir():
            custom.rmdir()


class FedSRRecipe(Recipe):
    """A run of FedSR across sites, as a recipe, which is FLARE's current way to define jobs.

    Args:
        name: name of the job.
        rounds: communication rounds in total; a later job of the same run resumes after those that are complete.
        sites: the sites' FLARE names, as a list, or as a mapping to the numbers of training scans agreed on beforehand (None if
            none was agreed on). If empty, every connected site takes part.
        run: name of the run, under which server and sites keep its state; by default the name of the job.
        bundle: name of an installed bundle, or the folder of one that all sites have configured under that folder's name.
        policy, local_epochs, seed: see `Settings`.
        weighting: weights of the sites in the average, by number of `images` or `uniform`.
        min_sites: the fewest acceptable results that complete a round; by default half of `sites`.
        wait: seconds that the other sites have once `min_sites` have answered.
        timeout: seconds that a round may take in total; 0 for no limit.
        start_from_bundle: begin with the weights that come with the bundle, instead of random ones.
        overrides: numbers and words for ids of the bundle's train.json.
        aggregation: the server's rule: mean, median, trimmed_mean, clipped_mean or krum.

    Raises:
        UserError: an argument is wrong.

    Example::

        recipe = FedSRRecipe("first", rounds=20, sites=["hospital-a", "hospital-b"])
        recipe.export("jobs")                                # jobs/first, as `fedsr export-job jobs/first` writes it
        recipe.execute(SimEnv(clients=recipe.sites, extra={"site": "/data/{SITE_NAME}"}))
        recipe.execute(ProdEnv("KIT", username="coordinator@example.org"))   # at sites set up by `fedsr flare-site`
    """

    def __init__(
        self,
        name: str,
        rounds: int,
        sites: Sequence[str] | Mapping[str, int | None] = (),
        run: str | None = None,
        bundle: str | Path = "fedsr_encoder",
        policy: str = "fedsr",
        local_epochs: int = 1,
        weighting: str = "images",
        min_sites: int | None = None,
        wait: int = 600,
        timeout: int = 0,
        start_from_bundle: bool = False,
        overrides: Mapping[str, Any] | None = None,
        seed: int = 0,
        aggregation: str = "mean",
    ) -> None:
        if not is_name(name):
            raise UserError("job", found=f"the name {name!r}", expected="letters, digits, '.', '_' and '-'")
        images = check_sites(sites)
        self.sites = list(images)
        root = (
            Path(bundle).absolute() if (Path(bundle) / "configs" / "train.json").is_file() else installed_bundle(bundle)
        )
        weights = root / "models" / "model.pt"
        if start_from_bundle and not weights.is_file():
            fix = "leave --start_from_bundle out"
            raise UserError(weights, found="no such file", expected="the weights of the bundle", fix=fix)
        min_sites = check_min_sites(min_sites, len(self.sites))
        self.settings = Settings(
            run=name if run is None else run,
            rounds=rounds,
            version=__version__,
            bundle=root.name,
            bundle_digest=file_digest(root / "configs" / "train.json"),
            policy=policy,
            local_epochs=local_epochs,
            seed=seed,
            weighting=weighting,
            aggregation=aggregation,
            min_sites=min_sites,
            overrides=dict(overrides or {}),
            weights_digest=file_digest(weights) if start_from_bundle else None,
        )
        self.settings.check_bundle(root)
        for argument, value in (("wait", wait), ("timeout", timeout)):
            check_whole_number(f"{argument} (seconds)", value, 0)

        self.job_name = name
        # One app for all sites, whether they are named or not; FLARE's own way to name sites would make a copy for each.
        deploy_map = {APP: [SERVER, *self.sites]} if self.sites else {APP: ["@ALL"]}
        job = CodelessJob(name, min_clients=min_sites, meta_props={"deploy_map": deploy_map})
        settings = asdict(self.settings)
        declared = {site: count for site, count in images.items() if count is not None}
        job.to_server(FedSRPersistor(settings, declared), id="persistor")
        job.to_server(FullModelShareableGenerator(), id="shareable_generator")
        job.to_server(FedSRAggregator(), id="aggregator")
        controller = FedSRController(
            rounds,
            self.sites,
            min_clients=min_sites,
            wait_time_after_min_received=wait,
            train_timeout=timeout,
        )
        job.to_server(controller, id="rounds")
        job.to_clients(FedSRExecutor(settings), tasks=TASKS)
        super().__init__(job)

    def process_env(self, env: ExecEnv) -> None:
        """Prepare the simulator's workspace; FLARE calls this before it runs the job.

        `SimEnv(extra={"site": ..., "state": ...})` names the site folders and the folder for states as `fedsr flare-site` does.

        Raises:
            UserError: a site folder is missing or wrong; the workspace has a privacy policy, which the simulator would ignore; or
                `env` is a `PocEnv` whose project file lacks this package's builder, so that no site would have named its data.
        """
        if isinstance(env, PocEnv) and not has_builder(env.project_conf_path):
            raise UserError(
                "PocEnv: project_conf_path",
                found=repr(env.project_conf_path),
                expected=f"a project file with the builder {BUILDER}",
                fix="add the builder, which names the sites' data in the startup kits that PocEnv makes",
            )
        if isinstance(env, SimEnv):
            workspace = Path(env.workspace_root) / self.job_name
            policy = workspace / WorkspaceConstants.SITE_FOLDER_NAME / WorkspaceConstants.PRIVACY_CONFIG
            if policy.exists():
                raise ignored_policy(policy)
            workspace.mkdir(parents=True, exist_ok=True)
            prepare_startup_kit(workspace, env.get_extra_prop("site"), env.get_extra_prop("state"))


def has_builder(project: str) -> bool:
    """Return whether a project file of FLARE's provisioning names this package's builder."""
    return Path(project).is_file() and BUILDER in Path(project).read_text(encoding="utf-8")


def check_sites(sites: Sequence[str] | Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the number of training scans by site name, None if it is not known.

    Raises:
        UserError: a name is given twice or is not a valid site name, or a number is not a whole number of at least 1.
    """
    images = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites)
    if len(images) < len(sites):
        raise UserError("sites", found=", ".join(sites), expected="each name once")
    for site, count in images.items():
        if not SITE.fullmatch(site) or site == SERVER:
            expected = f"letters, digits, '_' and '-', and not {SERVER!r}: FLARE gives no site another name"
            raise UserError("sites", found=f"the name {site[:100]!r}", expected=expected)
        if count is not None:
            check_whole_number(f"sites: {site} (training scans)", count)
    return images


def check_min_sites(min_sites: int | None, sites: int) -> int:
    """Return the fewest results that complete a round; by default half of the named sites.

    Raises:
        UserError: `min_sites` is missing although no sites are named, is not a whole number of at least 1, or exceeds the number of sites.
    """
    if min_sites is None:
        if not sites:
            expected = "a number where no sites are named"
            raise UserError("min_sites", found="nothing", expected=expected, fix="give --min_sites")
        return math.ceil(sites / 2)
    check_whole_number("min_sites", min_sites)
    if sites and min_sites > sites:
        raise UserError("min_sites", found=str(min_sites), expected=f"at most {sites}, the number of sites")
    return min_sites

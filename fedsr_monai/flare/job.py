"""Write the job that a coordinator submits: three JSON files without code or paths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsr_monai import __version__
from fedsr_monai.bundle_path import installed_bundle
from fedsr_monai.checks import check_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.federation.records import digest
from fedsr_monai.files import write_json
from fedsr_monai.flare.settings import Settings

APP = "fedsr"
COMPONENT = "fedsr_monai.flare."
TASKS = ["initial_features", "train", "save_model"]


def export_job(
    out: str | Path,
    sites: Mapping[str, int | None],
    rounds: int,
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
) -> Path:
    """Write a FLARE job for a run.

    Args:
        out: folder of the job; its name is the job's.
        sites: the sites' FLARE names, each with its number of training scans if that is agreed beforehand, else None.
            Empty: every connected site takes part.
        rounds: communication rounds in total; a later job of the same run resumes after those that are complete.
        run: name of the run; by default that of `out`.
        bundle: name of an installed bundle, or the folder of one that all sites have configured under that folder's name.
        policy, local_epochs, seed: see `Settings`.
        weighting: of the average, by number of `images` or `uniform`.
        min_sites: fewest acceptable results that complete a round; by default half of `sites`.
        wait: seconds that the other sites have once `min_sites` have answered.
        timeout: seconds that a round may take in total; 0 for no limit.
        start_from_bundle: begin with the weights that come with the bundle, instead of random ones.
        overrides: numbers and words for ids of the bundle's train.json.
        aggregation: the server's rule: mean, median, trimmed_mean, clipped_mean or krum.

    Returns:
        `out`.

    Raises:
        UserError: an argument is wrong.
    """
    out = Path(out)
    root = Path(bundle).absolute() if (Path(bundle) / "configs" / "train.json").is_file() else installed_bundle(bundle)
    weights = root / "models" / "model.pt"
    if start_from_bundle and not weights.is_file():
        fix = "leave --start_from_bundle out"
        raise UserError(weights, found="no such file", expected="the weights of the bundle", fix=fix)
    if min_sites is None and not sites:
        expected = "a number where no sites are named"
        raise UserError("min_sites", found="nothing", expected=expected, fix="give --min_sites")
    min_sites = math.ceil(len(sites) / 2) if min_sites is None else min_sites
    check_whole_number("min_sites", min_sites)
    if sites and min_sites > len(sites):
        raise UserError("min_sites", found=str(min_sites), expected=f"at most {len(sites)}, the number of sites")
    settings = Settings(
        run=out.name if run is None else run,
        rounds=rounds,
        version=__version__,
        bundle=root.name,
        bundle_sha256=digest(root / "configs" / "train.json"),
        policy=policy,
        local_epochs=local_epochs,
        seed=seed,
        weighting=weighting,
        aggregation=aggregation,
        min_sites=min_sites,
        overrides=dict(overrides or {}),
        weights_sha256=digest(weights) if start_from_bundle else None,
    )
    settings.check_bundle(root)
    for name, value in (("wait", wait), ("timeout", timeout)):
        check_whole_number(f"{name} (seconds)", value, 0)
    for site, images in sites.items():
        if images is not None:
            check_whole_number(f"sites: {site} (training scans)", images)

    write_json(out / "meta.json", meta(out.name, list(sites), min_sites))
    write_json(out / APP / "config" / "config_fed_client.json", client_config(settings))
    server = server_config(settings, sites, wait, timeout)
    write_json(out / APP / "config" / "config_fed_server.json", server)
    return out


def meta(name: str, sites: list[str], min_sites: int) -> dict[str, Any]:
    """Return meta.json: who gets what. `min_clients` below the number of sites lets a job continue without a lost site."""
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": min_sites,
        "deploy_map": {APP: ["server", *sites] if sites else ["@ALL"]},
    }


def client_config(settings: Settings) -> dict[str, Any]:
    """Return config_fed_client.json: one executor for all tasks."""
    executor = {"path": COMPONENT + "executor.FedSRExecutor", "args": {"settings": asdict(settings)}}
    return {"format_version": 2, "executors": [{"tasks": TASKS, "executor": executor}]}


def server_config(settings: Settings, sites: Mapping[str, int | None], wait: int, timeout: int) -> dict[str, Any]:
    """Return config_fed_server.json: persistor, aggregator and controller."""
    images = {site: count for site, count in sites.items() if count is not None}
    persistor = {"settings": asdict(settings), "images": images}
    controller = {
        "rounds": settings.rounds,
        "sites": list(sites),
        "min_clients": settings.min_sites,
        "wait_time_after_min_received": wait,
        "train_timeout": timeout,
    }
    generator = "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
    return {
        "format_version": 2,
        "components": [
            {"id": "persistor", "path": COMPONENT + "persistor.FedSRPersistor", "args": persistor},
            {"id": "shareable_generator", "path": generator, "args": {}},
            {"id": "aggregator", "path": COMPONENT + "aggregator.FedSRAggregator", "args": {}},
        ],
        "workflows": [{"id": "rounds", "path": COMPONENT + "controller.FedSRController", "args": controller}],
    }

"""The job that a coordinator submits: three JSON files, no code, no path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsr_monai import __version__
from fedsr_monai.bundle_path import installed_bundle
from fedsr_monai.errors import UserError
from fedsr_monai.federation.records import digest
from fedsr_monai.files import write_json
from fedsr_monai.flare.settings import Settings

APP = "fedsr"
COMPONENT = "fedsr_monai.flare."


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
) -> Path:
    """Write a FLARE job for a run.

    Args:
        out: folder of the job; its name is the job's.
        sites: the sites' FLARE names, each with its number of training scans where that is agreed on beforehand, else None.
            Empty: every site that is connected takes part.
        rounds: communication rounds in all; a later job of the same run goes on from those that are done.
        run: name of the run; by default that of `out`.
        bundle: name of an installed bundle, or the folder of one that all sites have under that folder's name.
        policy, local_epochs, seed: see `Settings`.
        weighting: of the average, by number of `images` or `uniform`.
        min_sites: fewest acceptable answers that make a round; by default half of `sites`.
        wait: seconds that the others have once `min_sites` have answered.
        timeout: seconds that a round may take in all; 0 for no limit.
        start_from_bundle: start from the weights that come with the bundle, instead of random ones.
        overrides: numbers and words for ids of the bundle's train.json.

    Returns:
        `out`.

    Raises:
        UserError: an argument is wrong.
    """
    out = Path(out)
    root = Path(bundle).absolute() if (Path(bundle) / "configs" / "train.json").is_file() else installed_bundle(bundle)
    weights = root / "models" / "model.pt"
    if start_from_bundle and not weights.is_file():
        raise UserError(f"{weights}: not found, expected the weights of the bundle; leave --start_from_bundle out")
    settings = Settings(
        run=out.name if run is None else run,
        rounds=rounds,
        version=__version__,
        bundle=root.name,
        bundle_sha256=digest(root / "configs" / "train.json"),
        policy=policy,
        local_epochs=local_epochs,
        seed=seed,
        overrides=dict(overrides or {}),
        weights_sha256=digest(weights) if start_from_bundle else None,
    )
    settings.check_bundle(root)
    if weighting not in ("images", "uniform"):
        raise UserError(f"weighting: found {weighting!r}, expected images or uniform; choose one of them")
    most = len(sites) or None
    min_sites = math.ceil(most / 2) if min_sites is None and most else min_sites
    if min_sites is None:
        raise UserError("min_sites: found none, expected a number where no sites are named; give --min_sites")
    if isinstance(min_sites, bool) or not isinstance(min_sites, int) or min_sites < 1 or (most and min_sites > most):
        raise UserError(f"min_sites: found {min_sites!r}, expected 1 to {most or 'the number of sites'}; correct it")
    for name, value in (("wait", wait), ("timeout", timeout)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"{name}: found {value!r}, expected whole seconds of at least 0; correct it")
    for site, images in sites.items():
        if images is not None and (isinstance(images, bool) or not isinstance(images, int) or images < 1):
            raise UserError(f"sites: {site}: found {images!r} scans, expected a whole number of at least 1; correct it")

    write_json(out / "meta.json", meta(out.name, list(sites), min_sites))
    write_json(out / APP / "config" / "config_fed_client.json", client_config(settings))
    server = server_config(settings, sites, weighting, min_sites, wait, timeout)
    write_json(out / APP / "config" / "config_fed_server.json", server)
    return out


def meta(name: str, sites: list[str], min_sites: int) -> dict[str, Any]:
    """Who gets what. `min_clients` below the number of sites lets a job go on without one that is lost."""
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": min_sites,
        "deploy_map": {APP: ["server", *sites] if sites else ["@ALL"]},
    }


def client_config(settings: Settings) -> dict[str, Any]:
    executor = {"path": COMPONENT + "executor.FedSRExecutor", "args": {"settings": asdict(settings)}}
    return {"format_version": 2, "executors": [{"tasks": ["start", "train", "save"], "executor": executor}]}


def server_config(
    settings: Settings, sites: Mapping[str, int | None], weighting: str, min_sites: int, wait: int, timeout: int
) -> dict[str, Any]:
    images = {site: count for site, count in sites.items() if count is not None}
    persistor = {"settings": asdict(settings), "weighting": weighting, "min_sites": min_sites, "images": images}
    controller = {
        "rounds": settings.rounds,
        "sites": list(sites),
        "min_clients": min_sites,
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

"""The folder that MONAI Label serves: its own app for bundles, and a copy of `fedsr_site` in it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path

from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.handlers.checkpoint import save_checkpoint
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.sites.site import load_atlas, load_site

BUNDLE = "fedsr_site"


def bundle_app() -> Path:
    """The folder of MONAI Label's app for bundles, as it is installed.

    Raises:
        UserError: MONAI Label is not installed in this environment.
    """
    try:
        files = importlib.metadata.files("monailabel") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "MONAI Label: found none in this environment, expected the one that it has for itself; "
            "make it with `make label-env` and use its fedsr (.venv-label/bin/fedsr)"
        ) from None
    for file in files:
        if file.match("sample-apps/monaibundle/main.py"):
            return Path(file.locate()).resolve().parent
    raise UserError("MONAI Label: found no sample-apps/monaibundle in it, expected version 0.8.5; install it again")


def make_app(
    app: Path, weights: str | os.PathLike | None = None, site: str | os.PathLike | None = None
) -> Path:
    """Make the app folder, in one step; one that is there is kept as it is, with what was trained in it.

    Args:
        app: folder to make.
        weights: checkpoint to serve; by default the one that comes with the bundle.
        site: site folder whose grid and atlas are used.

    Returns:
        The folder of the bundle in it.

    Raises:
        UserError: the folder is something else, or holds another site or weights than are asked for; or weights or
            site cannot be used.
    """
    bundle = app / "model" / BUNDLE
    wanted = {"weights": weights and str(Path(weights).absolute()), "site": site and str(Path(site).absolute())}
    if (app / "fedsr.json").is_file():
        made = json.loads((app / "fedsr.json").read_text())
        for name, value in wanted.items():
            if value is not None and value != made[name]:
                raise UserError(
                    f"{app}: was made with {name} {made[name] or 'of the bundle'}, expected {value}; leave --{name} out to go on with "
                    "what was trained there, or choose another --out"
                )
        return bundle
    if app.exists() and (not app.is_dir() or any(app.iterdir())):
        raise UserError(f"{app}: is something else, expected an app of `fedsr label` or nothing; choose another --out")
    partial = app.with_name(f".{app.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(bundle_app(), partial, ignore=shutil.ignore_patterns("__pycache__"))
    copy_bundle(partial / "model" / BUNDLE, weights, site)
    (partial / "fedsr.json").write_text(json.dumps(wanted, indent=1) + "\n")
    partial.replace(app)
    return bundle


def copy_bundle(folder: Path, weights: str | os.PathLike | None, site: str | os.PathLike | None) -> None:
    """Copy the bundle, set up for labels that a person corrects: training moves the segmentation head alone.

    Raises:
        UserError: weights or site cannot be used.
    """
    source = bundle_path(BUNDLE)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("eval", "models", "__pycache__"))
    values = {"dataset_dir": None if site is None else str(load_site(site).root)}
    for name, more in (("inference", {}), ("evaluate", {}), ("train", {"heads": ["segmentation"]})):
        file = folder / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        config |= {key: value for key, value in (values | more).items() if key in config}
        file.write_text(json.dumps(config, indent=4) + "\n")
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    load_weights(network, source / "models" / "model.pt" if weights is None else weights)
    if site is not None:
        network.set_atlas(*load_atlas(site))
    save_checkpoint(network, folder / "models" / "model.pt")

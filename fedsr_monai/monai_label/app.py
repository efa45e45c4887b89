"""Make the folder that MONAI Label serves: its own app for bundles, and a copy of `fedsr_site` in it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.files import read_json, write_json
from fedsr_monai.handlers.checkpoint import save_checkpoint
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.sites.site import load_atlas, load_site

BUNDLE = "fedsr_site"
RECORD = "fedsr.json"  # in the app folder: what it was made with


def bundle_app() -> Path:
    """Return the folder of MONAI Label's app for bundles, as installed.

    Raises:
        UserError: MONAI Label is not installed in this environment.
    """
    try:
        files = importlib.metadata.files("monailabel") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "MONAI Label",
            found="none in this environment",
            expected="an environment of its own",
            fix="make it with `make label-env` and use its fedsr (.venv-label/bin/fedsr)",
        ) from None
    for file in files:
        if file.match("sample-apps/monaibundle/main.py"):
            return Path(file.locate()).resolve().parent
    raise UserError("MONAI Label", found="no sample-apps/monaibundle", expected="version 0.8.5", fix="install it again")


def make_app(app: Path, weights: str | os.PathLike | None = None, site: str | os.PathLike | None = None) -> Path:
    """Make the app folder in one step; an existing one is kept, with what was trained in it.

    Args:
        app: folder to make.
        weights: checkpoint to serve; by default the one that comes with the bundle.
        site: site folder whose grid and atlas are used.

    Returns:
        The folder of the bundle in the app.

    Raises:
        UserError: the folder holds something else, or an app made with another site or other weights; or weights or site
            cannot be used.
    """
    bundle = app / "model" / BUNDLE
    wanted = {"weights": weights and str(Path(weights).absolute()), "site": site and str(Path(site).absolute())}
    if (app / RECORD).is_file():
        made = read_json(app / RECORD, "what `fedsr label` made the app with", "choose another --out")
        for name, value in wanted.items():
            if value is not None and value != made.get(name):
                raise UserError(
                    app,
                    found=f"an app made with {name} {made.get(name) or 'of the bundle'}",
                    expected=value,
                    fix=f"leave --{name} out to continue with what was trained there, or choose another --out",
                )
        return bundle
    if app.exists() and (not app.is_dir() or any(app.iterdir())):
        expected = "an app of `fedsr label` or an empty folder"
        raise UserError(app, found="something else", expected=expected, fix="choose another --out")
    partial = app.with_name(f".{app.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(bundle_app(), partial, ignore=shutil.ignore_patterns("__pycache__"))
    copy_bundle(partial / "model" / BUNDLE, weights, site)
    write_json(partial / RECORD, wanted)
    partial.replace(app)
    return bundle


def copy_bundle(folder: Path, weights: str | os.PathLike | None, site: str | os.PathLike | None) -> None:
    """Copy the bundle, set up for labels that a person corrects: training changes the segmentation head alone.

    Raises:
        UserError: weights or site cannot be used.
    """
    source = bundle_path(BUNDLE)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("eval", "models", "__pycache__"))
    values = {"dataset_dir": None if site is None else str(load_site(site).root)}
    for name, more in (("inference", {}), ("evaluate", {}), ("train", {"heads": ["segmentation"]})):
        file = folder / "configs" / f"{name}.json"
        config = read_json(file, "a configuration of the bundle", "install the package again")
        config |= {key: value for key, value in (values | more).items() if key in config}
        write_json(file, config)
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    load_weights(network, source / "models" / "model.pt" if weights is None else weights)
    if site is not None:
        network.set_atlas(*load_atlas(site))
    save_checkpoint(network, folder / "models" / "model.pt")

"""Make the folder that MONAI Label serves: a copy of `fedsr_site`, and a `main.py` that names the app."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.files import read_json, write_json, write_text
from fedsr_monai.handlers.checkpoint import save_checkpoint
from fedsr_monai.networks.protocols import NEUROMORPHOMETRICS, protocol_head
from fedsr_monai.networks.weights import load_head, load_weights
from fedsr_monai.sites.site import load_atlas, load_site

BUNDLE = "fedsr_site"
RECORD = "fedsr.json"  # in the app folder: what it was made with
STATS = "models/train_stats.json"  # in the bundle
MAIN = '"""What MONAI Label loads."""\n\nfrom fedsr_monai.monai_label.label_app import LabelApp  # noqa: F401\n'
HANDLER = {"_target_": "fedsr_monai.monai_label.stats.TrainStats", "path": f"$@bundle_root + '/{STATS}'"}


def require_monai_label() -> None:
    """Check that MONAI Label is installed.

    Raises:
        UserError: it is not installed in this environment.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise UserError(
            "MONAI Label",
            found="none in this environment",
            expected="an environment of its own",
            fix="make it with `make label-env` and use its fedsr (.venv-label/bin/fedsr)",
        )


def served_site(app: Path) -> str | None:
    """Return the site folder that an app was made with; None for the bundle's own grid and atlas.

    Raises:
        UserError: the record of the app is missing or damaged.
    """
    return read_json(app / RECORD, "what `fedsr label` made the app with", "choose another --out").get("site")


def make_app(
    app: Path,
    weights: str | os.PathLike | None = None,
    site: str | os.PathLike | None = None,
    protocol: str | None = None,
) -> Path:
    """Make the app folder atomically; an existing one is kept, with what was trained in it.

    Args:
        app: folder to make.
        weights: checkpoint to serve; by default the one that comes with the bundle.
        site: site folder whose grid and atlas are used.
        protocol: label protocol (see `protocol_head`); by default the bundle's.

    Returns:
        The folder of the bundle in the app.

    Raises:
        UserError: the folder holds something else, or an app made with another site, protocol or other weights; or weights, site or
            protocol cannot be used.
    """
    bundle = app / "model" / BUNDLE
    wanted = {
        "weights": weights and str(Path(weights).absolute()),
        "site": site and str(Path(site).absolute()),
        "protocol": protocol,
    }
    if (app / RECORD).is_file():
        made = read_json(app / RECORD, "what `fedsr label` made the app with", "choose another --out")
        for name, value in wanted.items():
            if value is not None and value != made.get(name):
                raise UserError(
                    app,
                    found=f"an app made with {name} {made.get(name) or 'of the bundle'}",
                    expected=str(value),
                    fix=f"leave --{name} out to continue with what was trained there, or choose another --out",
                )
        write_text(app / "main.py", MAIN)  # the app may have been made by an earlier version
        return bundle
    if app.exists() and (not app.is_dir() or any(app.iterdir())):
        expected = "an app of `fedsr label` or an empty folder"
        raise UserError(app, found="something else", expected=expected, fix="choose another --out")
    partial = app.with_name(f".{app.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy_bundle(partial / "model" / BUNDLE, weights, site, protocol or NEUROMORPHOMETRICS)
    write_text(partial / "main.py", MAIN)
    write_json(partial / RECORD, wanted)
    partial.replace(app)
    return bundle


def copy_bundle(
    folder: Path,
    weights: str | os.PathLike | None,
    site: str | os.PathLike | None,
    protocol: str = NEUROMORPHOMETRICS,
) -> None:
    """Copy the bundle and set it up for labels that a person corrects: training changes the segmentation head only.

    The copy has one head, that of the protocol, in its `model.pt`. The atlas has exact labels in the Neuromorphometrics
    protocol only, so a head of another protocol is trained without them, on the corrected labels alone.

    Raises:
        UserError: weights, site or protocol cannot be used.
    """
    source = bundle_path(BUNDLE)
    checkpoint = source / "models" / "model.pt" if weights is None else weights
    head = protocol_head(protocol, source, checkpoint, site)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("eval", "models", "__pycache__"))
    values = {"dataset_dir": None if site is None else str(load_site(site).root)}
    # A short training is validated too; the score reaches MONAI Label's clients through the handler.
    training: dict[str, Any] = {"heads": ["segmentation"], "val_interval": 1}
    inference: dict[str, Any] = {}
    if head is not None:
        training["random_atlas"] = None
        inference = {"protocol": protocol, "head_path": None}
    for name, more in (("inference", inference), ("evaluate", {}), ("train", training)):
        file = folder / "configs" / f"{name}.json"
        config = read_json(file, "a configuration of the bundle", "install the package again")
        config |= {key: value for key, value in (values | more).items() if key in config}
        if name == "train":
            config["train"]["handlers"].append(HANDLER)
            config["validate"]["handlers"].append(HANDLER)
        write_json(file, config)
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    load_head(load_weights(network, checkpoint), head)
    if site is not None:
        network.set_atlas(*load_atlas(site))
    save_checkpoint(network, folder / "models" / "model.pt")

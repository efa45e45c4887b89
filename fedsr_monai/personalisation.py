"""The personalised phase: a site fits its own heads to the encoder and SA features of a federation, which stay as they are."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from fedsr_monai.bundle_overrides import check_overrides
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError, user_error
from fedsr_monai.federation.storage import read_tensors, write_tensors
from fedsr_monai.files import write_json
from fedsr_monai.networks.weights import HEAD_PREFIXES, read_weights
from fedsr_monai.sites.site import load_site

SHARED = ("encoder.", "sa.")
NETWORK_IDS = ("preset", "scie")  # what a run's networks differ by
GIVEN = ("dataset_dir", "output_dir", "ckpt_path", "global_weights", "resume", "epochs", "epoch_length", "seed")


def personalise(
    site: str | os.PathLike,
    global_weights: str | os.PathLike | None,
    out: str | os.PathLike,
    epochs: int = 20,
    search: bool = False,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    epoch_length: int | None = None,
    bundle: str | os.PathLike = "fedsr_site",
) -> Path:
    """Fine-tune the heads on a site's unlabelled scans with encoder and SA features frozen.

    Runs the workflow of `configs/train.json` of the bundle, with `configs/search.json` over it if the lambdas are to be searched for. It
    may be stopped at any moment: the same call goes on after the last complete epoch, and ends in the same numbers.

    The heads start from the site's own if it took part in the run; a site that joins here starts from those that the run's sites started
    from (`federate`'s `from_weights`), and anew if that was nothing. A checkpoint of a whole network brings its heads along.

    Args:
        site: site folder.
        global_weights: folder of a federated run (its last complete round), a `server/round_NNNN.safetensors` of one, or a `model.pt`;
            None takes the weights that ship with the bundle.
        out: folder for model.pt (a state dict, with the site's atlas), history.csv, TensorBoard events, training_state.pt,
            start.safetensors (what the training started from) and personalised.json (its settings).
        epochs: in all; the learning rate falls to 0 over them.
        search: whether the weights of the loss terms are searched for (needs two training scans or more).
        overrides: values for ids of the bundle's configuration.
        seed: of everything random.
        epoch_length: steps an epoch; by default one a scan.
        bundle: name or folder of the bundle.

    Returns:
        `out/model.pt`.

    Raises:
        UserError: a path or setting is wrong, the weights do not fit, or `out` holds a training with other settings.

    Examples:
        >>> import fedsr_monai as fm
        >>> model = fm.personalise("sites/adult-3t", "run", "run/personalised/adult-3t", epochs=1, epoch_length=1)
        >>> model.name
        'model.pt'
    """
    for name, value in (("epochs", epochs), ("epoch_length", epoch_length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name}: found {value!r}, expected a whole number of at least 1; correct it")
    loaded, root, out = load_site(site), bundle_path(bundle), Path(out)
    files = [str(root / "configs" / name) for name in ("train.json", *(["search.json"] if search else []))]
    overrides = dict(overrides or {})
    check_overrides(files, overrides)
    taken = sorted(set(overrides) & set(GIVEN))
    if taken:
        raise UserError(
            f"overrides: {taken[0]}: found a value, expected none; it is an argument of its own or follows from one"
        )

    weights, run = find_weights(global_weights, root)
    record = read_run(run)
    overrides = {key: value for key, value in record.get("overrides", {}).items() if key in NETWORK_IDS} | overrides
    start = starting_tensors(weights, run, record, loaded.name)
    settings = {
        "site": str(loaded.root),
        "name": loaded.name,
        "bundle": str(root),
        "overrides": overrides,
        "global_weights": str(weights.absolute()),
        "epochs": epochs,
        "epoch_length": epoch_length,
        "search": search,
        "seed": seed,
    }
    begin(out / "personalised.json", settings)
    write_tensors(out / "start.safetensors", start)
    run_workflow(
        files,
        bundle_root=str(root),
        dataset_dir=str(loaded.root),
        output_dir=str(out),
        ckpt_path=str(out / "model.pt"),
        global_weights=str(out / "start.safetensors"),
        epochs=epochs,
        epoch_length=epoch_length,
        seed=seed,
        resume=True,
        **overrides,
    )
    return out / "model.pt"


def find_weights(given: str | os.PathLike | None, bundle: Path) -> tuple[Path, Path | None]:
    """The file that `global_weights` stands for, and the folder of the run that it is of, if any.

    Raises:
        UserError: there is no such file, or the run has no complete round.
    """
    if given is None:
        path = bundle / "models" / "model.pt"
        if not path.is_file():
            raise UserError(
                f"{path}: not found, expected the weights that come with the bundle; name a run or a file of weights"
            )
        return path, None
    path = Path(given)
    if path.is_dir():
        state = path / "server" / "state.json"
        try:
            file = path / "server" / json.loads(state.read_bytes())["file"]
        except FileNotFoundError:
            raise UserError(
                f"{path}: found no server/state.json, expected a run folder of fedsr federate; name one, or a file of weights"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{state}: found damaged JSON ({error}), expected a server state; restore it from a copy"
            ) from error
        return file, path
    if not path.is_file():
        raise UserError(
            f"{path}: not found, expected a run folder of fedsr federate or a file of weights; correct the path"
        )
    of_run = path.parent.name == "server" and (path.parents[1] / "run.json").is_file()
    return path, path.parents[1] if of_run else None


def read_run(run: Path | None) -> dict[str, Any]:
    """`run.json` of a run, or nothing."""
    path = None if run is None else run / "run.json"
    if path is None or not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: found damaged JSON ({error}), expected the settings of a run; restore it from a copy"
        ) from error


def starting_tensors(weights: Path, run: Path | None, record: Mapping[str, Any], site: str) -> dict[str, torch.Tensor]:
    """Encoder and SA features of `weights`, with the heads that the site starts from, if there are any.

    Raises:
        UserError: a file cannot be read, or `weights` lacks the encoder or the SA features.
    """
    tensors = read_tensors(weights) if weights.suffix == ".safetensors" else read_weights(weights)
    own = run / "sites" / site / "model.pt" if run is not None else None
    if own is not None and own.is_file():
        tensors = read_weights(own) | tensors
    elif record.get("from_weights"):
        tensors = read_weights(record["from_weights"]["path"]) | tensors
    start = {key: value for key, value in tensors.items() if key.startswith(SHARED + HEAD_PREFIXES)}
    for part in SHARED:
        if not any(key.startswith(part) for key in start):
            raise UserError(
                f"{weights}: {part}*: found nothing, expected the encoder and the SA features of a federation; name a run of the policy "
                "fedsr or fedavg, or a model.pt"
            )
    return start


def begin(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or check that the training in this folder was begun with the same.

    Raises:
        UserError: a setting differs, or the file is damaged.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            begun = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: found damaged JSON ({error}), expected the settings of a training; give another out"
            ) from error
        for key, value in settings.items():
            if begun.get(key) != value:
                raise UserError(
                    f"{path}: {key}: found {json.dumps(begun.get(key))}, expected {json.dumps(value)}; "
                    "give the settings that the training began with to go on with it, or another out to begin a new one"
                )
    write_json(path, settings)


def run_workflow(files: list[str], **ids: Any) -> None:
    """Run the training workflow of a bundle with values for its ids."""
    for name in ("monai.bundle.workflows", "ignite.engine.engine"):
        logging.getLogger(name).setLevel(logging.ERROR)  # lines that say nothing to a user
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*bundle.*", category=UserWarning)  # it comes from this machine
        workflow = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="train", **ids)
    try:
        workflow.initialize()
        workflow.run()
    except Exception as error:
        raise user_error(error) or error
    workflow.finalize()

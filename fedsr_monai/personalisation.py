"""The personalised phase: a site fits its own heads to the encoder and SA features of a federation, which stay frozen."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from fedsr_monai.bundle_overrides import MISSING, check_overrides, id_parts, ids_behind, value_of
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.checks import check_whole_number
from fedsr_monai.errors import UserError, user_error
from fedsr_monai.evaluation.run import SiteModel
from fedsr_monai.federation.server import checkpoint_file
from fedsr_monai.federation.storage import read_tensors, write_tensors
from fedsr_monai.files import check_settings, is_there, read_json, write_json
from fedsr_monai.kept_weights import keep
from fedsr_monai.networks.weights import TRAINED_PREFIXES, read_weights
from fedsr_monai.progress import say
from fedsr_monai.run_record import RunRecord, read_run
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.site import load_site

# Loss settings of a run that its personalised phase keeps, in addition to those of the network. It keeps neither the
# schedule (learning_rate, epochs) nor the settings in which the phases differ (frozen, sa_alpha, heads_first).
LOSS_IDS = (
    "mutual_information",
    "phi",
    "phi_fraction",
    "phi_warmup",
    "random_atlas",
    "registration_weights",
    "segmentation_weights",
    "exact_registration",
    "both_targets",
    "sa_scans_only",
    "fused",
)
# These are arguments of `personalise`, or follow from them.
RESERVED_IDS = (
    "dataset_dir",
    "output_dir",
    "ckpt_path",
    "global_weights",
    "resume",
    "epochs",
    "epoch_length",
    "seed",
)


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
    guard: bool = True,
    sizes: bool = True,
) -> Path:
    """Fine-tune the heads on a site's unlabelled scans with encoder and SA features frozen.

    Runs the workflow in the bundle's `configs/train.json`, with `configs/search.json` laid over it if the weights of
    the loss terms (lambdas) are searched for. It may be stopped at any moment: the same call continues after the last
    complete epoch and ends with the same numbers.

    If the site took part in the run, the training starts from the site's own heads. A site that joins here starts from
    the heads that the run's sites started from (`federate`'s `from_weights`), or from random ones. A checkpoint of a
    whole network brings its heads along. The run's settings of network and losses are kept unless `overrides` says
    otherwise.

    If the weights that the training (or the run before it) began with already draw the borders of the site's atlas,
    with a Dice of at least 0.85 on the atlas image, they know more brains than the one from which the training draws
    its images. Then the mean of the weights before and after the training is taken (Wortsman et al., Robust fine-tuning
    of zero-shot models, CVPR 2022), unless the two heads agree less with it than with either of the two. Weights from a
    file may fit the site so well that training can only make them worse. They are therefore kept unless, on the site's
    own scans, the two heads agree better by 0.01 afterwards. This needs no labels: a segmentation head that does not
    draw the borders of the site's atlas agrees badly with the atlas that is warped to the scan.

    Finally, the biases of the segmentation head are shifted so that the deep grey matter that the network labels in the
    site's atlas has the sizes that it has in the atlas labels (`networks.sizes.match_sizes`, `out/sizes.json`). The
    trained weights are in `out/trained.pt` if they differ from those in `out/model.pt`.

    Args:
        site: site folder.
        global_weights: folder of a federated run (its last complete round), a `server/round_NNNN.safetensors` of one, or a `model.pt`;
            None takes the weights that ship with the bundle.
        out: folder for model.pt (a state dict, with the site's atlas), history.csv, TensorBoard events, training_state.pt,
            start.safetensors (the tensors that the training began with) and personalised.json (its settings).
        epochs: number of epochs in total; the learning rate falls to 0 over them.
        search: whether the weights of the loss terms are searched for (needs two training scans or more).
        overrides: values for ids of the bundle's configuration.
        seed: seed of all random numbers.
        epoch_length: steps per epoch; by default one per scan.
        bundle: name or folder of the bundle.
        guard: False always keeps the trained weights.
        sizes: False leaves the sizes of structures as trained.

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
    check_whole_number("epochs", epochs)
    if epoch_length is not None:
        check_whole_number("epoch_length", epoch_length)
    loaded, root, out = load_site(site), bundle_path(bundle), Path(out)
    files = [str(root / "configs" / name) for name in ("train.json", *(["search.json"] if search else []))]
    overrides = dict(overrides or {})
    check_overrides(files, overrides)
    reserved = sorted(set(overrides) & set(RESERVED_IDS))
    if reserved:
        expected = "none, as it is an argument of its own or follows from one"
        raise UserError(f"overrides: {reserved[0]}", found="a value", expected=expected, fix="leave it out")

    weights, run = find_weights(global_weights, root)
    record = read_run(run) if run is not None and (run / "run.json").is_file() else None
    if record is not None and record.baseline is not None:
        found = f"a run of the baseline {record.baseline}"
        fix = "take a run of FedSR, or evaluate this one as it is"
        raise UserError(record.path, found=found, expected="one of FedSR's network", fix=fix)
    if record is not None:
        overrides = inherited_overrides(record, ConfigParser.load_config_file(files[0])) | overrides
    initial = initial_tensors(weights, run, record, loaded.name)
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
    ensure_fit([loaded])
    file = out / "personalised.json"
    state = out / "training_state.pt"
    if is_there(file) or is_there(state):
        check_settings(file, settings, "training")
        if not is_there(state) and is_there(out / "history.csv"):
            say(f"{state}: no such file; the training begins again from its start")
    write_json(file, settings)
    write_tensors(out / "start.safetensors", initial)
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
    began = out / "start.safetensors" if run is None else weights_before(record)
    keep(SiteModel(loaded, out / "model.pt", root, overrides), out, began, guard, of_run=run is not None, sizes=sizes)
    return out / "model.pt"


def weights_before(record: RunRecord | None) -> Path | None:
    """Return the weights that a run began with; None if they were random or no longer exist here."""
    try:
        return None if record is None else record.initial_weights()
    except UserError as error:  # another file has their name now
        say(f"{error}; the trained heads are taken")
        return None


def find_weights(given: str | os.PathLike | None, bundle: Path) -> tuple[Path, Path | None]:
    """Return the file that `global_weights` stands for, and the folder of the run that it belongs to, if any.

    Args:
        given: folder of a run, a file of weights, or None for those that come with the bundle.
        bundle: folder of the bundle.

    Raises:
        UserError: there is no such file, the run has no complete round, or its checkpoint is not the one that its server wrote.
    """
    if given is None:
        path = bundle / "models" / "model.pt"
        if not path.is_file():
            fix = "name a run or a file of weights"
            raise UserError(path, found="no such file", expected="the weights that come with the bundle", fix=fix)
        return path, None
    path = Path(given)
    if path.is_dir():
        state = path / "server" / "state.json"
        if not state.is_file():
            fix = "name one, or a file of weights"
            raise UserError(path, found="no server/state.json", expected="a run folder of fedsr federate", fix=fix)
        return checkpoint_file(state, read_json(state, "a server state", "restore it from a copy")), path
    if not path.is_file():
        expected = "a run folder of fedsr federate or a file of weights"
        raise UserError(path, found="no such file", expected=expected, fix="correct the path")
    of_run = path.parent.name == "server" and (path.parents[1] / "run.json").is_file()
    return path, path.parents[1] if of_run else None


def initial_tensors(weights: Path, run: Path | None, record: RunRecord | None, site: str) -> dict[str, torch.Tensor]:
    """Return encoder and SA features of `weights`, with the heads that the site starts from, if there are any.

    Args:
        weights: checkpoint or safetensors.
        run: folder of the run that they belong to, if any.
        record: its run.json.
        site: name of the site.

    Raises:
        UserError: a file cannot be read, or `weights` lacks the encoder.
    """
    tensors = read_tensors(weights) if weights.suffix == ".safetensors" else read_weights(weights)
    # The one network of a pooled run is every site's own.
    names = (site, "pooled") if record is not None and record.pooled else (site,)
    own = [run / "sites" / name / "model.pt" for name in names] if run is not None else []
    found_own = next((path for path in own if path.is_file()), None)
    if found_own is not None:
        tensors = read_weights(found_own) | tensors
    elif record is not None and record.from_weights:
        begun_with = record.initial_weights()
        if begun_with is None:
            found = f"no such file ({record.from_weights.get('path')})"
            expected = "the weights that the run began with, for the heads of a new site"
            raise UserError(f"{record.path}: from_weights", found=found, expected=expected, fix="restore it")
        tensors = read_weights(begun_with) | tensors
    initial = {key: value for key, value in tensors.items() if key.startswith(TRAINED_PREFIXES)}
    # Without SA features (a policy that shares the encoder alone) the training initialises them from the site's atlas.
    if not any(key.startswith("encoder.") for key in initial):
        raise UserError(
            f"{weights}: encoder.*",
            found="nothing",
            expected="the encoder of a federation",
            fix="name a run of a policy that shares it, or a model.pt",
        )
    return initial


def inherited_overrides(record: RunRecord, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that its personalised phase keeps: those of the network and of the losses.

    Args:
        record: record of the run.
        config: the training configuration of the personalised phase's bundle; ids that it does not have are left out.
    """
    kept = {*ids_behind(config, "network_def"), *LOSS_IDS}
    return {
        key: value
        for key, value in record.overrides.items()
        if id_parts(key)[0] in kept and value_of(config, key) is not MISSING
    }


def run_workflow(files: list[str], **ids: Any) -> None:
    """Run the training workflow of a bundle with values for its ids."""
    for name in ("monai.bundle.workflows", "ignite.engine.engine"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # lines that say nothing to a user
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*bundle.*", category=UserWarning)  # it comes from this machine
        workflow = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="train", **ids)
    try:
        workflow.initialize()
        workflow.run()
    except Exception as error:
        raise user_error(error) or error
    workflow.finalize()

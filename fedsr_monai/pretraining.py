"""The recipe of the weights that ship with the bundles: one resumable command from nothing to `model.pt`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.run import evaluate_models, models_of_sites, summary_lines
from fedsr_monai.federation.initial_weights import initial_network
from fedsr_monai.federation.runner import federate
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks.weights import ATLAS_KEYS, read_weights
from fedsr_monai.simulation.profiles import PROFILES
from fedsr_monai.simulation.sites import simulate_labelled, simulate_sites

# Each stage is a pooled run. Segmentation first, on exactly labelled images alone: predicted labels guide the
# registration (eq. 10), so its steps would have to be undone if they were taken before these labels are good. Then
# registration, on the same images and on the sites' scans, with features and labels that no longer change.
STAGES: dict[str, dict[str, Any]] = {
    "segmentation": {"heads": ["segmentation"], "learning_rate": 0.0015},
    "registration": {"heads": ["registration"], "frozen": ["encoder", "segmentation"], "learning_rate": 0.001},
}
STEPS_PER_EPOCH = 150


def pretrain(
    out: str | os.PathLike,
    epochs: Mapping[str, int] | None = None,
    preset: str = "small",
    spacing: float = 2.0,
    shape: Sequence[int] | None = None,
    training: int = 24,
    test: int = 6,
    labelled: int = 2000,
    seed: int = 7,
    steps: int = STEPS_PER_EPOCH,
) -> Path:
    """Train the weights that ship: simulate sites and labelled subjects, train the stages, measure on test subjects,
    write `out/model.pt`.

    The images with exact labels are simulated subjects of random hospitals (`simulate_labelled`) and, for the rest,
    random atlases. The sites contribute their unlabelled scans and the test scans. The file has an empty atlas: every
    site brings its own. The same call on the same folder resumes.

    Args:
        out: folder for sites/, labelled/, one run per stage, evaluation/ and model.pt.
        epochs: epochs by stage, by default 60 of segmentation and 20 of registration.
        preset: "small" or "full".
        spacing, shape: voxel size in millimetres and grid, by default the standard grid of that size.
        training, test: number of simulated subjects per site.
        labelled: number of simulated subjects with labels.
        seed: seed of all random numbers.
        steps: iterations per epoch.

    Returns:
        `out/model.pt`, a state dict without an atlas.
    """
    out = Path(out)
    epochs = {"segmentation": 60, "registration": 20} | dict(epochs or {})
    sites = simulate_sites(
        out / "sites",
        training=training,
        validation=2,
        test=test,
        spacing=spacing,
        shape=shape,
        seed=seed,
        profiles=list(PROFILES),
    )
    pool = simulate_labelled(out / "labelled", labelled, spacing, shape, seed)
    config = ConfigParser.load_config_file(str(bundle_path("fedsr_encoder") / "configs" / "train.json"))
    drawn = {
        "_target_": "fedsr_monai.synthesis.LabelledScans",
        "items": f"$site_datalist({str(pool)!r}, 'training')",
        "otherwise": config["random_atlas"],
    }
    weights: Path | None = None
    for stage, settings in STAGES.items():
        overrides = settings | {
            "preset": preset,
            "epochs": epochs[stage],
            "epoch_length": steps,
            "cosine": True,
            "val_interval": 10**6,
        }
        overrides["random_atlas"] = drawn
        run = federate(
            sites, out / stage, epochs[stage], policy="pooled", seed=seed, overrides=overrides, from_weights=weights
        )
        (weights,) = (run / "sites").glob("*/model.pt")
    assert weights is not None  # of the last stage
    shipped = export_weights(weights, out / "model.pt")
    print("\n".join(summary_lines(evaluate_models(models_of_sites(sites, shipped), out / "evaluation"))))
    return shipped


def export_weights(checkpoint: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Copy a site's network for others, with an empty atlas instead of the site's, and return `out`."""
    state = read_weights(checkpoint)
    empty = {
        "atlas_image": torch.zeros(1, 1, 16, 16, 16),
        "atlas_label": torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8),
    }
    save_checkpoint({key: empty[key] if key in ATLAS_KEYS else value for key, value in state.items()}, Path(out))
    return Path(out)


def with_encoder(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    baseline: str | None = None,
    bundle: str | os.PathLike = "fedsr_encoder",
) -> Path:
    """Write the untrained network that a run of `seed` would begin with, but with the encoder of a checkpoint.

    Args:
        checkpoint: checkpoint of any network with the same encoder, such as a baseline's.
        out: the file to write, for `federate`'s `from_weights`.
        seed: seed of the run.
        overrides: values for ids of the bundle's configuration.
        baseline: baseline of the run, if any.
        bundle: name or folder of the bundle.

    Returns:
        `out`.

    Raises:
        UserError: the checkpoint's encoder has other tensors than the network's.
    """
    network = initial_network(bundle_path(bundle), seed, overrides or {}, baseline)
    encoder = {key: value for key, value in read_weights(checkpoint).items() if key.startswith("encoder.")}
    own = {key: value for key, value in network.state_dict().items() if key.startswith("encoder.")}
    wrong = [key for key in sorted(set(own) | set(encoder)) if _shape(own.get(key)) != _shape(encoder.get(key))]
    if wrong:
        raise UserError(
            f"{checkpoint}: {wrong[0]}",
            found=f"shape {_shape(encoder.get(wrong[0]))}",
            expected=f"shape {_shape(own.get(wrong[0]))}",
            fix="use the encoder of a network of the same preset",
        )
    save_checkpoint({**network.state_dict(), **encoder}, Path(out))
    return Path(out)


def _shape(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)

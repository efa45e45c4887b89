"""What a server, which has no scans, takes from the sites' bundle: the initial tensors and the estimator of Phi."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from fedsr_monai.bundle_path import training_files
from fedsr_monai.errors import user_error
from fedsr_monai.federation.aggregation import MutualInformation
from fedsr_monai.federation.policies import find_policy
from fedsr_monai.federation.site_state import seed_everything, stable_seed
from fedsr_monai.networks.weights import load_weights


def train_config(root: Path, overrides: Mapping[str, Any], baseline: str | None = None) -> ConfigParser:
    """Return the bundle's training configuration with `overrides` (that of `baseline` if given); nothing in it is built yet."""
    parser = ConfigParser(ConfigParser.load_config_files(training_files(root, baseline)))
    parser.update(dict(overrides))
    return parser


def estimator(root: Path, overrides: Mapping[str, Any], baseline: str | None = None) -> MutualInformation | None:
    """Return the estimator of mutual information that the bundle trains with, so that the server ascends the same one.

    Args:
        root: folder of the bundle.
        overrides: values for ids of its configuration.
        baseline: baseline of the run, see `training_files`.

    Returns:
        `Phi(pooled [1, C], sa [C]) -> scalar`, or None if the bundle has none.

    Raises:
        UserError: the configuration holds a user's mistake.
    """
    parser = train_config(root, overrides, baseline)
    try:
        return parser.get_parsed_content("mutual_information") if "mutual_information" in parser else None
    except Exception as error:
        raise user_error(error) or error


def missing_sa(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the SA vectors among initial tensors if all are zero, so that a site's labelled atlas has to provide them; else nothing."""
    sa = {key: value for key, value in tensors.items() if key.startswith("sa.")}
    return {} if any(value.any() for value in sa.values()) else sa


def initial_tensors(
    root: Path,
    policy: str,
    seed: int,
    overrides: Mapping[str, Any],
    weights: str | Path | None = None,
    baseline: str | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors that a run begins with, built without a site: every site builds the same network from the same seed.

    The random numbers are the same as in `FedSRAlgo.build`, because nothing draws any before the network does.

    Args:
        root: folder of the bundle.
        policy: what the run exchanges.
        seed: seed of the run.
        overrides: values for ids of the bundle's configuration.
        weights: checkpoint to start from instead of random weights.
        baseline: baseline of the run, see `training_files`.

    Returns:
        The shared tensors by key, in float32.

    Raises:
        UserError: the weights do not fit the network.
    """
    network = initial_network(root, seed, overrides, baseline)
    if weights is not None:
        load_weights(network, weights)
    return find_policy(policy).shared_tensors(network.state_dict())


def initial_network(
    root: Path, seed: int, overrides: Mapping[str, Any], baseline: str | None = None
) -> torch.nn.Module:
    """Return the untrained network of a run, as each of its sites builds it.

    Args:
        root: folder of the bundle.
        seed: seed of the run.
        overrides: values for ids of the bundle's configuration.
        baseline: baseline of the run, see `training_files`.

    Raises:
        UserError: the configuration holds a user's mistake.
    """
    seed_everything(stable_seed(seed, "network"))
    parser = train_config(root, overrides, baseline)
    try:
        if "initialize" in parser:
            parser.get_parsed_content("initialize")
        return parser.get_parsed_content("network_def")
    except Exception as error:
        raise user_error(error) or error

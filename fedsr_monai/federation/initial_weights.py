"""What a server without a scan takes from the bundle that the sites train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from fedsr_monai.federation.exchange import shared_tensors
from fedsr_monai.federation.site_state import seed_everything, stable_seed
from fedsr_monai.networks.weights import load_weights


def train_config(root: Path, overrides: Mapping[str, Any]) -> ConfigParser:
    """The bundle's training configuration with `overrides`; nothing of it is made yet."""
    parser = ConfigParser(ConfigParser.load_config_file(root / "configs" / "train.json"))
    parser.update(dict(overrides))
    return parser


def estimator(root: Path, overrides: Mapping[str, Any]) -> Callable | None:
    """The estimator of mutual information that the bundle trains with; the server ascends the same. None where it has none."""
    parser = train_config(root, overrides)
    return parser.get_parsed_content("mutual_information") if "mutual_information" in parser else None


def initial_tensors(
    root: Path, policy: str, seed: int, overrides: Mapping[str, Any], weights: str | Path | None = None
) -> dict[str, torch.Tensor]:
    """The tensors that a run begins with, made without a site: every site builds the same network from the same seed.

    The random numbers are drawn as `FedSRAlgo.build` draws them: the network is the first thing that takes any.

    Args:
        weights: checkpoint to start from instead of random weights.

    Raises:
        UserError: the weights do not fit the network.
    """
    seed_everything(stable_seed(seed, "network"))
    parser = train_config(root, overrides)
    if "initialize" in parser:
        parser.get_parsed_content("initialize")
    network = parser.get_parsed_content("network_def")
    if weights is not None:
        load_weights(network, weights)
    return shared_tensors(network.state_dict(), policy)

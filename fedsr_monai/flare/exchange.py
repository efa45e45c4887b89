"""Convert a round's tensors to FLARE's data exchange objects (DXO) and back.

The encoder travels to the server as a *difference* (`WEIGHT_DIFF`) and the SA vectors in a DXO of their own (`APP_DEFINED`), so that
FLARE's privacy filters, which clip and prune differences, act on the encoder and leave the SA vectors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.shareable import Shareable

from fedsr_monai.federation.statistics import parse_statistics

WEIGHTS_PART, SA_PART = "weights", "sa"
KINDS = {WEIGHTS_PART: DataKind.WEIGHT_DIFF, SA_PART: DataKind.APP_DEFINED}
STATISTICS = "statistics"
IMAGES = "images"
# The most characters of a name that an error message repeats.
MAX_NAME_LENGTH = 50


def difference(trained: torch.Tensor, sent: torch.Tensor) -> np.ndarray:
    """Return `trained - sent` in float64, from which `add` recovers `trained` to the last bit.

    float32 is not enough: the rounding error of the difference would be as large as the last bits of the weight. In float64, the
    relative errors of the difference and the sum are at most 2^-53. The nearest float32 is then `trained` itself, as long as the
    total error is less than a quarter of its last bit, which holds for |sent| < 2^26 |trained| (and for trained = 0, where nothing
    is rounded). A weight that shrinks in one round to less than 1/67,108,864 of itself without becoming 0 is off by at most
    2^-52 |sent|.

    Args:
        trained: weights after the round, of any shape, float32.
        sent: weights that the round began with, of the same shape.
    """
    return trained.detach().cpu().double().numpy() - sent.detach().cpu().double().numpy()


def add(sent: torch.Tensor, diff: np.ndarray) -> torch.Tensor:
    """Return `sent` plus a difference, in the type of `sent`; see `difference`."""
    return (sent.double() + torch.as_tensor(diff).double()).to(sent.dtype)


def global_dxo(tensors: Mapping[str, torch.Tensor]) -> DXO:
    """Return what the server sends to the sites: the global tensors by key."""
    return DXO(DataKind.WEIGHTS, data={key: tensor.numpy() for key, tensor in tensors.items()})


def global_tensors(shareable: Shareable) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that a site received, because FLARE may hand out the same arrays twice."""
    return {key: torch.tensor(value) for key, value in from_shareable(shareable).data.items()}


def update_dxo(
    tensors: Mapping[str, torch.Tensor], sent: Mapping[str, torch.Tensor], statistics: Mapping[str, Any]
) -> DXO:
    """Return a site's result of a round: differences, SA vectors and statistics.

    Args:
        tensors: tensors by key, after the allow-list.
        sent: what the round began with, by the same keys.
        statistics: statistics of `FedSRAlgo`; `images` determines the site's weight in the average.
    """
    # Filters such as PercentilePrivacy bound the change per iteration, so they need the number of iterations, not of images.
    meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: statistics["iterations"]}
    diff = {key: difference(value, sent[key]) for key, value in tensors.items() if not key.startswith("sa.")}
    sa = {key: value.numpy() for key, value in tensors.items() if key.startswith("sa.")}
    parts = {WEIGHTS_PART: DXO(DataKind.WEIGHT_DIFF, data=diff, meta=meta)}
    if sa:
        parts[SA_PART] = DXO(DataKind.APP_DEFINED, data=sa)
    return DXO(
        DataKind.COLLECTION, data=parts, meta={IMAGES: statistics["images"], STATISTICS: parse_statistics(statistics)}
    )


def initial_dxo(tensors: Mapping[str, torch.Tensor]) -> DXO:
    """Return the SA vectors that a site's labelled atlas gives before any training."""
    sa = {key: value.numpy() for key, value in tensors.items() if key.startswith("sa.")}
    return DXO(DataKind.COLLECTION, data={SA_PART: DXO(DataKind.APP_DEFINED, data=sa)})


def read_update(shareable: Shareable, sent: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tensors and statistics from a site's result, without checking the tensors.

    A difference that fits a tensor of `sent` is added to it; anything else is passed on unchanged, for the server's checks to report.

    Args:
        shareable: the result as it arrived.
        sent: what the round began with, by key.

    Returns:
        Tensors by key, and the statistics (`images`, `losses`, `epochs`, `iterations`, `seconds`).

    Raises:
        ValueError: it is not a result of this kind; the message repeats nothing of its content except a name.
    """
    dxo = from_shareable(shareable)
    if dxo.data_kind != DataKind.COLLECTION:
        raise ValueError(f"found a DXO of kind {str(dxo.data_kind)[:MAX_NAME_LENGTH]!r}, expected a COLLECTION")
    tensors: dict[str, Any] = {}
    for name, part in dxo.data.items():
        if (
            name not in KINDS
            or not isinstance(part, DXO)
            or part.data_kind != KINDS[name]
            or not isinstance(part.data, dict)
        ):
            raise ValueError(f"found a part {str(name)[:MAX_NAME_LENGTH]!r} of another kind, expected weights and sa")
        for key, value in part.data.items():
            if (key.startswith("sa.") if isinstance(key, str) else False) != (name == SA_PART):
                raise ValueError(
                    f"found {str(key)[:MAX_NAME_LENGTH]!r} in {name}, expected sa.* in sa and all others in weights"
                )
            addable = (
                name == WEIGHTS_PART
                and key in sent
                and isinstance(value, np.ndarray)
                and value.dtype in (np.float64, np.float32)
                and list(value.shape) == list(sent[key].shape)
            )
            tensors[key] = add(sent[key], value) if addable else value
    statistics = dxo.get_meta_prop(STATISTICS)
    return tensors, {**parse_statistics(statistics), IMAGES: dxo.get_meta_prop(IMAGES)}


def size_of(shareable: Shareable) -> int:
    """Return the total size of the arrays in a result, in bytes."""

    def size(value: Any) -> int:
        if isinstance(value, DXO):
            return size(value.data)
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        return value.nbytes if isinstance(value, np.ndarray) else 0

    return size(dict(shareable))

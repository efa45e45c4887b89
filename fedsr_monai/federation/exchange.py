"""What may leave a site: one allow-list of key prefixes per exchange policy.

The network is a dictionary of named tensors here. Its keys start with `encoder.`, `registration.`, `segmentation.` (the two
heads), `sa.` (the site-aggregated vectors) or `atlas_` (the labelled image, which no policy shares).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import save

from fedsr_monai.errors import UserError

# The paper's method, its two federated baselines (FedRep shares a representation, FedAvg everything that is trained), and
# the two ends between which they lie: every site alone, and all images in one place.
POLICIES: dict[str, tuple[str, ...]] = {
    "fedsr": ("encoder.", "sa."),
    "fedrep": ("encoder.",),
    "fedavg": ("encoder.", "registration.", "sa.", "segmentation."),
    "local": (),
    "pooled": (),
}


def allowed_prefixes(policy: str) -> tuple[str, ...]:
    """The key prefixes that `policy` lets out of a site.

    Raises:
        UserError: `policy` is not one of `POLICIES`.
    """
    if policy not in POLICIES:
        raise UserError(f"policy: found {policy!r}, expected one of {', '.join(POLICIES)}; choose one of them")
    return POLICIES[policy]


def shared_tensors(state_dict: Mapping[str, torch.Tensor], policy: str) -> dict[str, torch.Tensor]:
    """The part of `state_dict` that leaves a site: copies in float32 on the CPU, sorted by key.

    A key that the allow-list does not name never leaves, whatever the network holds.

    Raises:
        UserError: unknown policy, or a shared tensor that is not of floating point (it has no average).
    """
    prefixes = allowed_prefixes(policy)
    shared = {}
    for key in sorted(key for key in state_dict if key.startswith(prefixes)):
        tensor = state_dict[key]
        if not tensor.is_floating_point():
            raise UserError(f"{key}: found {tensor.dtype}, expected floating point; only such tensors can be averaged")
        shared[key] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    return shared


def size_in_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of `tensors` on the way, in the safetensors format; 0 when nothing is sent."""
    return len(save(dict(tensors))) if tensors else 0

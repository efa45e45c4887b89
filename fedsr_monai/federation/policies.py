"""The exchange policies: what travels between the sites and the server, and how it is aggregated.

Here the network is a dictionary of named tensors. Its keys start with `encoder.`, `registration.`, `segmentation.` (the two
heads), `sa.` (the site-aggregated vectors) or `atlas_` (the labelled image, which no policy shares). To add a policy, add an
entry to `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError

HEADS = ("registration.", "segmentation.")


@dataclass(frozen=True)
class Policy:
    """Say what a run exchanges.

    Attributes:
        name: name on the command line.
        shares: key prefixes of the tensors that leave a site; no other key ever does.
        ascends_sa: whether the server moves the `sa.*` vectors along the gradient of the mutual information (Algorithm 1 of the
            paper), instead of averaging them like everything else.
        pools_images: whether one client trains on all images, as if the sites were one.
        heads_first: fraction of a round's steps in which the heads learn with the encoder frozen, before the encoder
            learns with the heads frozen; 0 trains both together.
    """

    name: str
    shares: tuple[str, ...] = ()
    ascends_sa: bool = False
    pools_images: bool = False
    heads_first: float = 0.0

    @property
    def exchanges(self) -> bool:
        """Whether anything travels at all."""
        return bool(self.shares)

    @property
    def shares_heads(self) -> bool:
        """Whether the heads travel too, which a site may want to agree to first."""
        return any(prefix in HEADS for prefix in self.shares)

    def shared_tensors(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the part of `state_dict` that leaves a site: copies in float32 on the CPU, sorted by key.

        Raises:
            UserError: a shared tensor does not hold floating-point numbers, so that it cannot be averaged.
        """
        shared = {}
        for key in sorted(key for key in state_dict if key.startswith(self.shares)):
            tensor = state_dict[key]
            if not tensor.is_floating_point():
                raise UserError(
                    key,
                    found=str(tensor.dtype),
                    expected="floating point",
                    fix="share only tensors that can be averaged",
                )
            shared[key] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        return shared


# The paper's method and its two federated baselines: FedRep (Collins et al. 2021) shares a representation, and heads and
# representation learn in turn; FedAvg shares everything that is trained. FedPer (Arivazhagan et al. 2019) shares the same
# as FedRep, but trains it together with the heads. `local` and `pooled` are the two extremes: every site alone, and all
# images in one place.
POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("fedsr", shares=("encoder.", "sa."), ascends_sa=True),
        Policy("fedrep", shares=("encoder.",), heads_first=0.5),
        Policy("fedper", shares=("encoder.",)),
        Policy("fedavg", shares=("encoder.", "registration.", "sa.", "segmentation.")),
        Policy("local"),
        Policy("pooled", pools_images=True),
    )
}


def find_policy(name: str) -> Policy:
    """Return the policy of that name.

    Raises:
        UserError: `name` is not one of `POLICIES`.
    """
    check_choice("policy", name, POLICIES)
    return POLICIES[name]

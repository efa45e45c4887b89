"""The two objectives of a joint step, eq. 11 (registration) and eq. 12 (segmentation), as plain functions of network outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from monai.losses import DiceLoss
from torch import nn

from fedsr_monai.losses import dice_cross_entropy, local_cross_correlation, smoothness
from fedsr_monai.networks import FedSRNet, Registration
from fedsr_monai.networks.fedsr_net import pad_to_stride
from fedsr_monai.spatial.warping import warp

# The lambdas of eq. 11 and 12. The paper's l_smo = 7.5 belongs to another form of smoothness and to images of another scale; these
# belong to the forms in fedsr_monai.losses (mean squared forward differences of a half-resolution field in half-resolution voxels).
REGISTRATION_WEIGHTS = {"similarity": 1.0, "smoothness": 0.5, "dice": 3.0, "mutual_information": 0.1}
SEGMENTATION_WEIGHTS = {"exact": 1.0, "pseudo": 0.25, "mutual_information": 0.1}

soft_dice = DiceLoss(include_background=False, smooth_nr=1.0, smooth_dr=1.0)


@dataclass
class Target:
    """What the atlas is registered to.

    Attributes:
        image: [B, 1, D, H, W].
        shares: label shares at half resolution, [B, classes, D/2, H/2, W/2].
        predicted: the shares are the segmentation's, not a label map's.
    """

    image: torch.Tensor
    fractions: torch.Tensor
    predicted: bool = False


class Labelled(NamedTuple):
    """Images with label maps, for the segmentation loss.

    Attributes:
        logits: [b, classes, D, H, W].
        label: [b, 1, D, H, W].
        probability: softmax of the logits, where it has been computed already.
    """

    logits: torch.Tensor
    label: torch.Tensor
    probability: torch.Tensor | None = None


def mutual_information(estimator: nn.Module, pooled: list[torch.Tensor], network: FedSRNet, head: str) -> torch.Tensor:
    """Phi of a head: the mean over its three scales of the MI of pooled f_d and the SA vector (eq. 6)."""
    vectors = getattr(network.sa, head)
    return sum(estimator(p, vectors[scale], f"{head}.{scale}") for scale, p in enumerate(pooled)) / len(pooled)


def registration_losses(
    network: FedSRNet, found: Registration, target: Target, atlas_fractions: torch.Tensor, estimator: nn.Module | None
) -> dict[str, torch.Tensor]:
    """Terms of eq. 11 before weighting. Labels are compared at half resolution, where the field lives (an eighth of the cost).

    Similarity is negative local cross-correlation in [-1, 0]; dice a loss in [0, 1]; mutual information is returned negated.
    """
    warped = warp(pad_to_stride(network.atlas_image).expand_as(target.image), found.full_ddf)
    losses = {
        "similarity": local_cross_correlation(warped, target.image),
        "smoothness": smoothness(found.ddf),
        "dice": soft_dice(warp(atlas_fractions.expand_as(target.fractions), found.ddf), target.fractions),
    }
    if estimator is not None:
        losses["mutual_information"] = -mutual_information(estimator, found.pooled, network, "registration")
    return losses


def segmentation_losses(
    network: FedSRNet,
    labelled: Mapping[str, Labelled],
    pooled: list[torch.Tensor],
    estimator: nn.Module | None,
) -> dict[str, torch.Tensor]:
    """Terms of eq. 12 before weighting: Dice + CE for each named kind of labels ("exact", "pseudo"), and mutual information negated."""
    losses = {
        kind: dice_cross_entropy(images.logits, images.label, probability=images.probability) for kind, images in labelled.items()
    }
    if estimator is not None:
        losses["mutual_information"] = -mutual_information(estimator, pooled, network, "segmentation")
    return losses


def weighted(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float | torch.Tensor]) -> torch.Tensor:
    """The sum of the losses by their lambdas; a lambda of 0 keeps a term in the log and out of the sum."""
    return sum(weights[name] * loss for name, loss in losses.items() if not (isinstance(weights[name], float) and weights[name] == 0))

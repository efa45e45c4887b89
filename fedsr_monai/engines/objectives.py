"""The two objectives of a joint step, eq. 11 (registration) and eq. 12 (segmentation), as functions of network
outputs.
"""

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
from fedsr_monai.networks.sa import profile
from fedsr_monai.spatial.warping import warp

# The lambdas of eq. 11 and 12. The paper's l_smo = 7.5 is for another form of smoothness and images of another scale;
# these values are for the forms in fedsr_monai.losses (mean squared forward differences of a half-resolution field, in
# its voxels).
REGISTRATION_WEIGHTS = {"similarity": 1.0, "smoothness": 0.5, "dice": 3.0, "mutual_information": 0.1}
SEGMENTATION_WEIGHTS = {"exact": 1.0, "pseudo": 0.25, "general": 0.0, "mutual_information": 0.1}

# For losses that train the segmentation: it drives predictions towards 0 and 1.
soft_dice = DiceLoss(include_background=False, smooth_nr=1.0, smooth_dr=1.0)
# For losses that train the registration: squares in the denominator. Without them, the soft Dice of two equal maps of fractions is
# below 1, and can be higher if one of them is sharper or smaller than it should be.
fraction_dice = DiceLoss(include_background=False, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)


@dataclass
class Target:
    """The images that the atlas is registered to.

    Attributes:
        image: [B, 1, D, H, W].
        fractions: their label fractions, [B, classes, D/2, H/2, W/2].
        predicted: whether fractions come from the segmentation, not from a label map.
    """

    image: torch.Tensor
    fractions: torch.Tensor
    predicted: bool = False


class Labelled(NamedTuple):
    """Images with label maps, for the segmentation loss.

    Attributes:
        logits: [b, classes, D, H, W].
        label: [b, 1, D, H, W].
        probability: softmax of the logits, if it has been computed already.
    """

    logits: torch.Tensor
    label: torch.Tensor
    probability: torch.Tensor | None = None


def mutual_information(estimator: nn.Module, pooled: list[torch.Tensor], network: FedSRNet, head: str) -> torch.Tensor:
    """Return Phi of a head (eq. 6): the mutual information of pooled f_d and the SA vector, averaged over its three
    scales.
    """
    vectors, total = getattr(network.sa, head), torch.zeros((), device=pooled[0].device)
    for scale, features in enumerate(pooled):
        sa, key = vectors[scale], f"{head}.{scale}"
        # If the SA tensor has a variance over scans, the estimator measures differences in units of its square root.
        spread = () if sa.ndim == 1 else ((sa[1].clamp(min=0.0) + 1e-6).sqrt(),)
        total = total + estimator(features, profile(sa), key, *spread)
    return total / len(pooled)


def registration_losses(
    network: FedSRNet, found: Registration, target: Target, atlas_fractions: torch.Tensor, estimator: nn.Module | None
) -> dict[str, torch.Tensor]:
    """Return the terms of eq. 11 before weighting.

    Similarity is the negative squared local cross-correlation, in [-1, 0]; dice is a loss in [0, 1]; mutual information
    is negated. Labels are compared at half resolution, where the field is predicted, at an eighth of the cost.

    Args:
        network: provides the atlas image, which is warped, and the SA vectors.
        found: the registration to `target`; without pooled f_d the mutual information is left out.
        target: what the atlas was registered to.
        atlas_fractions: label fractions of the atlas, [1, classes, D/2, H/2, W/2].
        estimator: of mutual information; None leaves the term out.
    """
    warped = warp(pad_to_stride(network.atlas_image).expand_as(target.image), found.full_ddf)
    losses = {
        "similarity": local_cross_correlation(warped, target.image),
        "smoothness": smoothness(found.ddf),
        "dice": fraction_dice(warp(atlas_fractions.expand_as(target.fractions), found.ddf), target.fractions),
    }
    if estimator is not None and found.pooled:
        losses["mutual_information"] = -mutual_information(estimator, found.pooled, network, "registration")
    return losses


def segmentation_losses(
    network: FedSRNet,
    labelled: Mapping[str, Labelled],
    pooled: list[torch.Tensor],
    estimator: nn.Module | None,
) -> dict[str, torch.Tensor]:
    """Return the terms of eq. 12 before weighting: Dice + cross-entropy for each kind of labels, and negated mutual
    information.

    Args:
        network: provides the SA vectors.
        labelled: images by kind of their labels, "exact" or "pseudo".
        pooled: pooled f_d of f1, f2, f3 of the segmentation head; empty for no mutual information.
        estimator: of mutual information; None leaves the term out.
    """
    losses = {
        kind: dice_cross_entropy(images.logits, images.label, probability=images.probability)
        for kind, images in labelled.items()
    }
    if estimator is not None and pooled:
        losses["mutual_information"] = -mutual_information(estimator, pooled, network, "segmentation")
    return losses


def general_loss(labelled: Mapping[str, Labelled], weights: Mapping[str, float]) -> torch.Tensor:
    """Return the segmentation loss of the general branch: Dice + cross-entropy as in the other branch, but on logits
    without SCIE.
    """
    kinds = [
        weights[kind] * dice_cross_entropy(images.logits, images.label, probability=images.probability)
        for kind, images in labelled.items()
    ]
    return torch.stack(kinds).sum()


def weighted(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float | torch.Tensor]) -> torch.Tensor:
    """Return the sum of the losses, weighted by their lambdas; a term with a lambda of 0 is logged but not summed."""
    terms = (
        weights[name] * loss for name, loss in losses.items() if torch.is_tensor(weights[name]) or weights[name] != 0
    )
    return sum(terms, torch.zeros(()))

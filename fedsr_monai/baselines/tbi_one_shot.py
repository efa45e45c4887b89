"""TBIOneShot: a third network makes the augmentation of the atlas hard for the segmentation, and uncertain labels have
less weight.

X. Zhao et al., *One-Shot Traumatic Brain Segmentation with Adversarial Training and Uncertainty Rectification*,
MICCAI 2023. Weights and order of the steps: its public code (hsiangyuzhao/TBIOneShot).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from monai.transforms import SobelGradients
from torch.nn import functional as F

from fedsr_monai.baselines.networks import AdversarialNet
from fedsr_monai.baselines.trainer import Losses, PairTrainer
from fedsr_monai.engines import head_optimizers
from fedsr_monai.engines.joint import Drawn
from fedsr_monai.losses import dice_cross_entropy
from fedsr_monai.spatial.warping import warp


def three_optimizers(network: AdversarialNet, lr: float) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers of the two networks, each with its own encoder, and of the augmentation network."""
    parameters = list(network.augmentation.parameters())
    return head_optimizers(network, lr) | {"augmentation": torch.optim.Adam(parameters, lr, fused=True)}


class Augmented(NamedTuple):
    """An image made from the atlas.

    Attributes:
        image: the deformed atlas with changed intensities, [1, 1, D, H, W].
        plain: the same deformation with the atlas' own intensities.
        label: label ids of both.
        back: displacement that brings it back to the atlas' space, [1, 3, D, H, W].
    """

    image: torch.Tensor
    plain: torch.Tensor
    label: torch.Tensor
    back: torch.Tensor


class TBIOneShotTrainer(PairTrainer):
    """Take a step of the registration, one of the augmentation against the segmentation, and one of the segmentation.

    1. Registration of the atlas to a scan: similarity and smoothness.
    2. The atlas gets the deformation to this scan and the intensities of another one: the *full* augmentation. From it,
       the augmentation network predicts, voxel by voxel, how much of both to apply: the *sampled* augmentation. The
       network learns to make the segmentations of the two, brought back to the atlas, as different as possible (cosine
       similarity of probabilities and of their edges).
    3. The segmentation learns to make them alike. It also learns the warped labels: on the warped atlas in both
       deformations, and on the two augmentations, where the cross-entropy of a voxel is weighted by exp(-KL) of its
       predictions with and without the scan's intensities, so that uncertain labels have little weight. The adversarial
       and uncertainty terms are ramped up over the training.

    The network is an `AdversarialNet`. A batch should hold two scans; a single scan is used for both.

    Args:
        args, kwargs: arguments of `JointTrainer`.
        ramp_up: number of epochs until the losses that are ramped up have their full weight.
    """

    network: AdversarialNet

    def __init__(self, *args: Any, ramp_up: int = 100, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ramp_up = ramp_up
        self.weights["augmentation"] = {"likeness": 1.0}
        self.edges = SobelGradients(spatial_axes=(0, 1, 2))

    def step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        fixed, style = scans[:1], scans[-1:]
        found = self.register(fixed, drawn.atlas)
        report: Losses = {"registration": self.pair_losses(found, fixed, drawn.atlas)}
        self._descend(report)
        ddf = found.full_ddf.detach()
        with torch.no_grad():
            intensities = warp(style, self.register(drawn.atlas, style).full_ddf) - drawn.atlas
            full = self.augmented(drawn, intensities, ddf)
        report |= self.augmentation_step(full, intensities, ddf, drawn)
        return report | self.segmentation_step(full, intensities, ddf, drawn)

    def augmentation_step(self, full: Augmented, intensities: torch.Tensor, ddf: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the augmentation network."""
        with torch.no_grad():
            of_full = self.on_atlas(self.segment(full.image), full)
        sampled = self.sampled(full, intensities, ddf, drawn)
        likeness = self.likeness(of_full, self.on_atlas(self.segment(sampled.image), sampled))
        self._descend({"augmentation": {"likeness": self.ramp() * likeness}})
        return {"augmentation": {"likeness": likeness}}

    def segmentation_step(self, full: Augmented, intensities: torch.Tensor, ddf: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the segmentation network."""
        with torch.no_grad():
            sampled = self.sampled(full, intensities, ddf, drawn)
        logits = self.segment(torch.cat([full.image, sampled.image, full.plain, sampled.plain]))
        of_full, of_sampled, plain_full, plain_sampled = logits.split(1)
        unlike = 1.5 - self.likeness(self.on_atlas(of_full, full), self.on_atlas(of_sampled, sampled))
        losses = {
            "warped": dice_cross_entropy(plain_full, full.label) + dice_cross_entropy(plain_sampled, sampled.label),
            "rectified": self.ramp()
            * (rectified(of_full, plain_full, full.label) + rectified(of_sampled, plain_sampled, sampled.label)),
            "consistency": self.ramp() * unlike,
        }
        report = {"segmentation": losses | self.exact_if_random(drawn)}
        self._descend(report)
        return report

    def ramp(self) -> float:
        """Return exp(-5 (1 - t)^2), where t is the fraction of the ramp that has passed."""
        return math.exp(-5 * (1 - min(self.state.epoch / self.ramp_up, 1)) ** 2)

    def augmented(self, drawn: Drawn, intensities: torch.Tensor, ddf: torch.Tensor) -> Augmented:
        """Return the atlas with a change of intensities (on the atlas) and a displacement, both applied in full."""
        label = warp(drawn.atlas_label, ddf.detach(), mode="nearest")
        return Augmented(warp(drawn.atlas + intensities, ddf), warp(drawn.atlas, ddf), label, inverse(ddf))

    def sampled(self, full: Augmented, intensities: torch.Tensor, ddf: torch.Tensor, drawn: Drawn) -> Augmented:
        """Return the atlas with as much of both changes as the augmentation network lets through."""
        of_ddf, of_intensities = self.network.masks(full.image)
        return self.augmented(drawn, of_intensities * intensities, of_ddf * ddf)

    def on_atlas(self, logits: torch.Tensor, augmented: Augmented) -> torch.Tensor:
        """Return the probabilities of an augmented image in the atlas' space."""
        return warp(logits.softmax(dim=1), augmented.back)

    def likeness(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the mean cosine similarity of the probabilities, plus half that of their edges."""
        edges, other = (self.edges(probability[0])[None] for probability in (first, second))
        return F.cosine_similarity(first, second).mean() + 0.5 * F.cosine_similarity(edges, other, eps=1e-3).mean()


def rectified(logits: torch.Tensor, other: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy, with voxels weighted by exp(-KL) of two predictions, plus a small multiple of the KL.

    Args:
        logits: logits of an augmented image, [1, classes, D, H, W].
        other: logits of the same anatomy with other intensities.
        label: ids [1, 1, D, H, W] that may be wrong.
    """
    divergence = F.kl_div(logits.log_softmax(dim=1), other.softmax(dim=1), reduction="none").sum(dim=1)
    voxels = F.cross_entropy(logits, label[:, 0].long(), reduction="none")
    return (voxels * (-divergence).exp() + 0.005 * divergence).mean()


def inverse(ddf: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Return a displacement that undoes another one, by fixed-point iteration; its error falls as long as neighbouring
    displacements differ by less than a voxel.
    """
    found = -ddf
    for _ in range(steps):
        found = -warp(ddf, found)
    return found

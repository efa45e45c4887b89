"""The common part of the baselines' trainers: pairs of images, and the losses between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import Trainer

from fedsr_monai.baselines.networks import PairNet
from fedsr_monai.engines import JointTrainer
from fedsr_monai.engines.joint import Drawn
from fedsr_monai.engines.objectives import fraction_dice
from fedsr_monai.losses import dice_cross_entropy, local_cross_correlation, smoothness
from fedsr_monai.networks import Registration
from fedsr_monai.networks.fedsr_net import pad_to_stride
from fedsr_monai.networks.label_fractions import label_fractions, predicted_fractions
from fedsr_monai.spatial.warping import warp

Losses = dict[str, dict[str, torch.Tensor]]


class PairTrainer(JointTrainer):
    """A `JointTrainer` that takes the steps of a baseline, which subclasses define (`step`).

    Optimisers, precision, clipping, epochs and logging are those of `JointTrainer`. Labels of scans, which FedSR uses if
    a person has corrected one, are ignored.
    """

    network: PairNet
    mixes_sites = True  # the atlas belongs to the site of the first scan; the other scans are its partners

    def _iteration(self, engine: Trainer, batchdata: Mapping[str, torch.Tensor]) -> dict[str, float]:
        self.network.train()
        self._begin_step(batchdata)
        scans = pad_to_stride(batchdata["image"].to(self.state.device).as_subclass(torch.Tensor))
        self._measuring = False  # there is no mutual information whose gradient could be measured
        return self._report(self.step(scans, self._draw()))

    def step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        """Update the network once and return the losses by head and name.

        Args:
            scans: [B, 1, D, H, W].
            drawn: the atlas, and an exactly labelled image: a random atlas, or the atlas itself if random atlases are off.
        """
        raise NotImplementedError

    # -- parts of a step

    def register(self, fixed: torch.Tensor, moving: torch.Tensor) -> Registration:
        """Register an image to another one, both [1, 1, D, H, W]."""
        with self._autocast():
            return self.network.register_pair(fixed, moving)

    def segment(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits in float32."""
        with self._autocast():
            return self.network.segmentation_logits(image)

    @torch.no_grad()
    def fractions(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """Return the label fractions of an image at half resolution: from its labels, or predicted if it has none."""
        if label is None:
            return predicted_fractions(self.segment(image))
        return label_fractions(label, self.network.num_classes)

    def pair_losses(self, found: Registration, fixed: torch.Tensor, moving: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return similarity and smoothness of a registration, in the forms of eq. 8 and 9 for all methods."""
        warped = warp(moving, found.full_ddf)
        return {"similarity": local_cross_correlation(warped, fixed), "smoothness": smoothness(found.ddf)}

    def warped_labels(self, label: torch.Tensor, found: Registration) -> torch.Tensor:
        """Return the label ids of an image, warped by a registration with nearest-neighbour sampling."""
        return warp(label, found.full_ddf.detach(), mode="nearest")

    def exact(self, drawn: Drawn) -> dict[str, torch.Tensor]:
        """Return the loss of the segmentation on the exactly labelled image."""
        return {"exact": dice_cross_entropy(self.segment(drawn.image), drawn.label)}

    def exact_if_random(self, drawn: Drawn) -> dict[str, torch.Tensor]:
        """Return `exact` where random atlases are drawn, for methods without a loss on the atlas itself."""
        return {} if self.random_atlas is None else self.exact(drawn)


def beta(a: float, b: float) -> float:
    """Draw a number in [0, 1] from a Beta distribution."""
    return float(torch.distributions.Beta(a, b).sample())


def both_ways(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the sum of the losses of both directions, by name."""
    return {name: loss + second[name] for name, loss in first.items()}


def overlap(fractions: torch.Tensor, found: Registration, target: torch.Tensor) -> torch.Tensor:
    """Return the soft Dice loss between label fractions, warped by a registration, and those of its target."""
    return fraction_dice(warp(fractions, found.ddf), target)

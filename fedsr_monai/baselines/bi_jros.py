"""Bi-JROS: one encoder that is pretrained and then frozen, and two heads that are the two levels of a bilevel problem.

X. Fan et al., *Bi-level Learning of Task-Specific Decoders for Joint Registration and One-Shot Medical Image
Segmentation*, CVPR 2024. Weights and order of the steps: its public code (Coradlut/Bi-JROS).
"""

from __future__ import annotations

from typing import Any

import torch

from fedsr_monai.baselines.trainer import Losses, PairTrainer, both_ways, overlap
from fedsr_monai.engines.joint import Drawn
from fedsr_monai.engines.objectives import soft_dice, weighted
from fedsr_monai.networks import Registration
from fedsr_monai.networks.label_fractions import average_fractions, predicted_fractions
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis.draws import uniform

STYLE = (0.6, 0.95)  # range of the fraction of the scan's own intensities in the fake


class BiJROSTrainer(PairTrainer):
    """Take a step of the segmentation head (the lower level), then one of the registration head (the upper level).

    Segmentation learns on the scan's *fake* (appearance conformity). The scan is warped to the atlas and back, and then
    blended with the scan itself. The result has the scan's appearance and the anatomy of the warped atlas, so that the
    warped atlas labels are its labels.

    Registration learns from similarity, smoothness and cycle consistency (each image, warped there and back, should equal
    itself) in both directions, and from the overlap of warped and predicted labels. Its gradient includes the response of
    the lower level, with an outer product in place of the inverse Hessian: the loss of the segmentation on the fake, times
    -<dU, dL> / <dL, dL>, where dU and dL are the gradients of the upper and the lower loss with respect to the
    segmentation head.

    The network is a `PairNet`.

    Args:
        args, kwargs: arguments of `JointTrainer`.
        encoder_epochs: epochs in which the encoder still learns, with both heads, before it is frozen. The paper's
            encoder was trained beforehand, on scans of many sites; 0 with pretrained weights does the same.
    """

    def __init__(self, *args: Any, encoder_epochs: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        learns = any(parameter.requires_grad for parameter in self.network.encoder.parameters())
        self.encoder_epochs = encoder_epochs if learns else 0

    def step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        self.network.encoder.requires_grad_(self.state.epoch <= self.encoder_epochs)
        return self.segmentation_step(scans[:1], drawn) | self.registration_step(scans[:1], drawn)

    def segmentation_step(self, scan: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the segmentation head."""
        with torch.no_grad():
            to_scan, to_atlas = self.register(scan, drawn.atlas), self.register(drawn.atlas, scan)
        report = {
            "segmentation": {"fake": self.fake_loss(scan, drawn, to_scan, to_atlas)} | self.exact_if_random(drawn)
        }
        self._descend(report)
        return report

    def registration_step(self, scan: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the registration head."""
        to_scan, to_atlas = self.register(scan, drawn.atlas), self.register(drawn.atlas, scan)
        losses = both_ways(self.pair_losses(to_scan, scan, drawn.atlas), self.pair_losses(to_atlas, drawn.atlas, scan))
        losses["cycle"] = sum(
            (warp(warp(image, there.full_ddf), back.full_ddf) - image).abs().mean()
            for image, there, back in ((drawn.atlas, to_scan, to_atlas), (scan, to_atlas, to_scan))
        )
        losses["dice"] = overlap(drawn.atlas_fractions, to_scan, predicted_fractions(self.segment(scan)))
        lower = self.fake_loss(scan, drawn, to_scan, to_atlas)
        losses["coupling"] = -self.response(weighted(losses, self.weights["registration"]), lower) * lower
        report = {"registration": losses}
        self._descend(report)
        return report

    def fake(
        self, scan: torch.Tensor, drawn: Drawn, to_scan: Registration, to_atlas: Registration
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image with the anatomy of the warped atlas and the appearance of the scan, and its label fractions at
        half resolution.
        """
        there_and_back = warp(warp(scan, to_atlas.full_ddf), to_scan.full_ddf)
        image = torch.lerp(there_and_back, scan, uniform(*STYLE))
        return image, warp(drawn.atlas_fractions, to_scan.ddf)

    def fake_loss(
        self, scan: torch.Tensor, drawn: Drawn, to_scan: Registration, to_atlas: Registration
    ) -> torch.Tensor:
        """Return the loss of the segmentation on the scan's fake."""
        image, fractions = self.fake(scan, drawn, to_scan, to_atlas)
        predicted = average_fractions(self.segment(image).softmax(dim=1))
        return soft_dice(predicted, fractions) - (fractions * (predicted + 1e-6).log()).sum(dim=1).mean()

    def response(self, upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        """Return <dU, dL> / <dL, dL> of the gradients with respect to the segmentation head, as a scalar."""
        parameters = list(self.network.segmentation.parameters())
        of_upper, of_lower = (
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True) for loss in (upper, lower)
        )
        product = torch.stack([(u * v).sum() for u, v in zip(of_upper, of_lower)]).sum()
        return product / (torch.stack([v.square().sum() for v in of_lower]).sum() + 1e-12)

"""BRBS: a registration that is consistent with labels and with its inverse generates labelled images for a segmentation.

Y. He et al., *Learning Better Registration to Learn Better Few-Shot Medical Image Segmentation: Authenticity,
Diversity, and Robustness*, IEEE TNNLS 2022. Weights and order of the steps: its public code (YutingHe-list/BRBS).
"""

from __future__ import annotations

import torch

from fedsr_monai.baselines.trainer import Losses, PairTrainer, beta, both_ways, overlap
from fedsr_monai.engines.joint import Drawn
from fedsr_monai.losses import dice_cross_entropy
from fedsr_monai.networks import Registration
from fedsr_monai.spatial.warping import compose, resize_ddf, warp
from fedsr_monai.synthesis.draws import pick


class BRBSTrainer(PairTrainer):
    """Take a step of the registration network, then one of the segmentation network.

    Registration learns on a pair drawn from the atlas and two scans, in both directions (*knowledge consistency*): from
    similarity, smoothness, the overlap of warped labels with those of the other image (predicted if there are none), and
    the composition of the two fields, which should be the identity.

    Segmentation learns on an image between the atlas and the scans (*space-style sampling*): the atlas with a random part
    of one scan's intensities, deformed by a random part of the registration to the other scan, with labels to match. It
    also learns on mixtures of a scan with another scan that was registered to it (*mix misalignment*): the logits of a
    mixture should be the mixture of the logits, which restrains the network where the two are not aligned.

    The network is a `SeparateNet`, and the optimisers are those of a fused step. A batch should hold two scans; a single
    scan is used for both.
    """

    def step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        return self.registration_step(scans, drawn) | self.segmentation_step(scans, drawn)

    def registration_step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the registration network."""
        images = [(drawn.atlas, drawn.atlas_label), (scans[:1], None), (scans[-1:], None)]
        pair = ((0, 1), (0, 2), (2, 1))[pick(3)]
        (a, a_label), (b, b_label) = (images[i] for i in (pair if pick(2) else reversed(pair)))
        to_b, to_a = self.register(b, a), self.register(a, b)
        of_a, of_b = self.fractions(a, a_label), self.fractions(b, b_label)
        losses = both_ways(self.pair_losses(to_b, b, a), self.pair_losses(to_a, a, b))
        losses["dice"] = overlap(of_a, to_b, of_b) + overlap(of_b, to_a, of_a)
        losses["inverse"] = compose(to_a.ddf, to_b.ddf).square().mean()
        report = {"registration": losses}
        self._descend(report)
        return report

    def segmentation_step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the segmentation network."""
        first, second = scans[:1], scans[-1:]
        with torch.no_grad():
            to_atlas, to_second = self.register(drawn.atlas, first), self.register(second, drawn.atlas)
            first_on_atlas = warp(first, to_atlas.full_ddf)
            image, label = self.sample(drawn, first_on_atlas, to_second, beta(0.3, 0.3), beta(0.3, 0.3))
            aligned = warp(first_on_atlas, to_second.full_ddf)
            share = beta(0.3, 0.3)
            mixture = share * aligned + (1 - share) * second
        generated, of_aligned, of_second, of_mixture = self.segment(torch.cat([image, aligned, second, mixture])).split(
            1
        )
        mixed = share * of_aligned + (1 - share) * of_second
        losses = {
            "generated": dice_cross_entropy(generated, label),
            "mixture": (of_mixture - mixed).square().mean(),
        }
        report = {"segmentation": losses | self.exact_if_random(drawn)}
        self._descend(report)
        return report

    def sample(
        self, drawn: Drawn, style: torch.Tensor, space: Registration, style_part: float, space_part: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image between the atlas and two scans, and its label ids.

        Args:
            drawn: holds the atlas.
            style: a scan registered to the atlas, whose intensities are taken in part.
            space: the registration of the atlas to a scan, which is applied in part.
            style_part, space_part: in [0, 1]; 0 is the atlas.
        """
        ddf = resize_ddf(space_part * space.ddf, drawn.atlas.shape[2:])
        image = warp(drawn.atlas + style_part * (style - drawn.atlas), ddf)
        return image, warp(drawn.atlas_label, ddf, mode="nearest")

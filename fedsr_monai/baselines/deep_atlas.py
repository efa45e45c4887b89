"""DeepAtlas: two networks that teach each other in turn.

Z. Xu, M. Niethammer, *DeepAtlas: Joint Semi-Supervised Learning of Image Registration and Segmentation*, MICCAI 2019.
"""

from __future__ import annotations

import torch

from fedsr_monai.baselines.trainer import Losses, PairTrainer, overlap
from fedsr_monai.engines.joint import Drawn
from fedsr_monai.engines.objectives import soft_dice
from fedsr_monai.losses import dice_cross_entropy
from fedsr_monai.networks.label_fractions import predicted_fractions
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis.draws import pick


class DeepAtlasTrainer(PairTrainer):
    """Alternate a step of the registration network and one of the segmentation network, each with the other one fixed.

    Registration learns on a pair drawn from atlas and scans: from similarity, smoothness and the anatomy loss, which is the
    overlap of warped and fixed labels; missing labels are predicted. Segmentation learns on the atlas and a scan: from the
    supervised loss on the labelled image, and from the anatomy loss, whose gradient flows into the predicted labels. Here
    the anatomy loss needs one true label map, so a pair of two scans trains only the registration.

    The network is a `SeparateNet`, and the optimisers are those of a fused step: each trains one network.
    """

    def step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        return self.registration_step(scans, drawn) | self.segmentation_step(scans, drawn)

    def registration_step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the registration network."""
        images = [(drawn.atlas, drawn.atlas_label), (scans[:1], None), (scans[-1:], None)]
        pairs = [(0, 1), (1, 0), (1, 2)] if len(scans) > 1 else [(0, 1), (1, 0)]
        (moving, moving_label), (fixed, fixed_label) = (images[i] for i in pairs[pick(len(pairs))])
        found = self.register(fixed, moving)
        losses = self.pair_losses(found, fixed, moving)
        fractions, target = self.fractions(moving, moving_label), self.fractions(fixed, fixed_label)
        report = {"registration": losses | {"dice": overlap(fractions, found, target)}}
        self._descend(report)
        return report

    def segmentation_step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        """Take a step of the segmentation network."""
        scan = scans[:1]
        logits = self.segment(torch.cat([drawn.image, scan]))
        predicted = predicted_fractions(logits[1:])
        with torch.no_grad():
            atlas_is_fixed = bool(pick(2))
            found = self.register(*((drawn.atlas, scan) if atlas_is_fixed else (scan, drawn.atlas)))
        if atlas_is_fixed:
            anatomy = soft_dice(warp(predicted, found.ddf), drawn.atlas_fractions)
        else:
            anatomy = soft_dice(predicted, warp(drawn.atlas_fractions, found.ddf))
        report = {"segmentation": {"exact": dice_cross_entropy(logits[:1], drawn.label), "anatomy": anatomy}}
        self._descend(report)
        return report

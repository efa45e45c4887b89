"""U-ReSNet: registration and segmentation as two outputs of one network, which are trained together.

T. Estienne et al., *U-ReSNet: Ultimate Coupling of Registration and Segmentation with Deep Nets*, MICCAI 2019. The
form of the field and the weights: its public code (TheoEst/joint_registration_tumor_segmentation).
"""

from __future__ import annotations

import torch

from fedsr_monai.baselines.trainer import Losses, PairTrainer
from fedsr_monai.engines.joint import Drawn
from fedsr_monai.losses import dice_cross_entropy


class UReSNetTrainer(PairTrainer):
    """Take one step down the sum of all losses: similarity, smoothness, the distance of the field's gradients from the
    identity, and the segmentation of the scan and of the exactly labelled image.

    The labels of the scan are those of the atlas, warped by the current field, because there are no others. They train
    the segmentation, not the field.

    The network is a `UReSNet`.
    """

    def step(self, scans: torch.Tensor, drawn: Drawn) -> Losses:
        scan = scans[:1]
        with self._autocast():
            fixed = self.network.encoder(torch.cat([scan, drawn.atlas, drawn.image]))
            logits, _ = self.network.segment(fixed)
            of_scan, of_atlas, _ = zip(*(feature.split(1) for feature in fixed))
            found = self.network.register_features(of_scan, of_atlas)
        along = torch.stack([found.ddf[:, axis].diff(dim=axis + 1).abs().mean() for axis in range(3)]).sum()
        report: Losses = {
            "registration": self.pair_losses(found, scan, drawn.atlas) | {"stretch": along},
            "segmentation": {
                "pseudo": dice_cross_entropy(logits[:1], self.warped_labels(drawn.atlas_label, found)),
                "exact": dice_cross_entropy(logits[2:], drawn.label),
            },
        }
        self._descend(report)
        return report

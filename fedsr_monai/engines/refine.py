"""Instance optimisation: a few gradient steps on one scan's deformation at inference, after the network's
prediction.
"""

from __future__ import annotations

import torch

from fedsr_monai.engines.objectives import REGISTRATION_WEIGHTS, Target, registration_losses, weighted
from fedsr_monai.networks import FedSRNet, Registration
from fedsr_monai.networks.fedsr_net import crop_to, pad_to_stride
from fedsr_monai.networks.label_fractions import predicted_fractions
from fedsr_monai.spatial.warping import compose, integrate, resize_ddf


def refine_registration(
    network: FedSRNet, image: torch.Tensor, steps: int = 20, lr: float = 0.1, weights: dict[str, float] | None = None
) -> torch.Tensor:
    """Return the displacement [B, 3, D, H, W] in voxels, as `network.register`, improved on each scan by itself.

    A half-resolution velocity field is composed with the network's field and descended by Adam on eq. 11 without its
    mutual
    information: similarity, smoothness of the whole field, and overlap of the warped atlas labels with the predicted
        ones. No
    label of the scan is used. The network's weights do not change.

    Args:
        network: with its atlas set.
        image: scans on the atlas' grid, [B, 1, D, H, W] in [0, 1].
        steps: gradient steps; 0 returns the network's field.
        lr: Adam's step in half-resolution voxels.
        weights: lambdas merged over `objectives.REGISTRATION_WEIGHTS`.
    """
    weights = REGISTRATION_WEIGHTS | (weights or {})
    scan = pad_to_stride(image)
    with torch.no_grad():
        fixed = network.encoder(scan)
        logits, _ = network.segment(fixed)
        fractions = network.atlas_fractions()
        predicted = predicted_fractions(logits)
        first = network.align(fixed, network.encoder(pad_to_stride(network.atlas_image)), predicted, fractions)
        target = Target(scan, predicted)
    ddf = first.ddf.float()
    velocity = torch.zeros_like(ddf, requires_grad=True)
    optimizer = torch.optim.Adam([velocity], lr=lr)

    def moved() -> Registration:
        field = compose(integrate(velocity), ddf)
        return Registration(field, resize_ddf(field, scan.shape[2:]), [])

    with torch.enable_grad():
        for _ in range(steps):
            loss = weighted(registration_losses(network, moved(), target, fractions, None), weights)
            (velocity.grad,) = torch.autograd.grad(loss, velocity)
            optimizer.step()
    with torch.no_grad():
        return crop_to(moved().full_ddf, image.shape[2:])

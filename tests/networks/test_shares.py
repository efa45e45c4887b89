from __future__ import annotations

import torch
from torch.nn import functional as F

from fedsr_monai.networks.shares import label_shares, predicted_shares


def test_label_shares_are_a_one_hot_map_averaged(phantom):
    label = torch.stack([phantom[1], phantom[1].roll(1, dims=1)])[:, :, :, :24]
    shares = label_shares(label, 14)
    assert shares.shape == (2, 14, 16, 12, 16) and shares.dtype == torch.float32
    one_hot = F.one_hot(label[:, 0].long(), 14).movedim(-1, 1).float()
    assert torch.equal(shares, F.avg_pool3d(one_hot, 2))


def test_predicted_shares_are_probabilities_averaged():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8, 6, 10, requires_grad=True)
    shares = predicted_shares(logits)
    torch.testing.assert_close(shares, F.avg_pool3d(logits.softmax(dim=1), 2))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 4, 3, 5))
    assert shares.requires_grad

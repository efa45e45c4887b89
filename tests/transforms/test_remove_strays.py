from __future__ import annotations

import pytest
import torch

from fedsr_monai.transforms import RemoveStraysd
from fedsr_monai.transforms.remove_strays import remove_strays


@pytest.fixture
def logits() -> torch.Tensor:
    """Structure 1 in two halves of 64 voxels and two strays of 2 and 8; structure 2 follows it everywhere."""
    values = torch.zeros(4, 16, 16, 16)
    values[0], values[2] = 1.0, 0.5
    for box in (
        (slice(1, 5),) * 3,
        (slice(10, 14),) * 3,
        (slice(1, 3), 10, 10),
        (slice(10, 12), slice(1, 3), slice(1, 3)),
    ):
        values[(1, *box)] = 3.0
        values[(2, *box)] = 2.0
    return values


def test_strays_get_the_next_label(logits):
    labels = remove_strays(logits, 0.1).argmax(dim=0)
    assert int((labels == 1).sum()) == 128 + 8 and (labels[1:3, 10, 10] == 2).all()
    labels = remove_strays(logits, 0.2).argmax(dim=0)
    assert int((labels == 1).sum()) == 128 and (labels[10:12, 1:3, 1:3] == 2).all()
    assert torch.equal(remove_strays(logits, 0), logits)


def test_nothing_else_changes(logits):
    before = logits.clone()
    cleaned = remove_strays(logits, 0.1)
    assert torch.equal(logits, before)
    changed = cleaned != logits
    assert int(changed.sum()) == 2 and cleaned[changed].eq(-torch.inf).all()
    assert torch.isfinite(cleaned.softmax(dim=0)).all()
    assert torch.equal(RemoveStraysd("pred")({"pred": logits})["pred"], cleaned) and torch.equal(logits, before)
    result = RemoveStraysd("pred", inplace=True)({"pred": logits})["pred"]
    assert result is logits and torch.equal(result, cleaned)


def test_pieces_touch_at_corners():
    values = torch.zeros(2, 6, 6, 6)
    values[0] = 1
    for index in range(6):
        values[1, index, index, index] = 2
    assert int((remove_strays(values, 0.5).argmax(dim=0) == 1).sum()) == 6

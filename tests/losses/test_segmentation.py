from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from fedsr_monai.losses import dice_cross_entropy
from fedsr_monai.losses.segmentation import dice_cross_entropy_plain


def example(classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, classes, 6, 7, 8)
    return logits, torch.randint(0, classes - 1, (2, 1, 6, 7, 8), dtype=torch.uint8)  # the last class is absent


@pytest.mark.parametrize(
    "reference",
    [
        dice_cross_entropy_plain,
        DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True, smooth_nr=1.0, smooth_dr=1.0),
    ],
    ids=["plain", "monai"],
)
def test_value_and_gradient_are_those_of_the_definition(reference):
    logits, label = example()
    ours, theirs = logits.clone().requires_grad_(True), logits.clone().requires_grad_(True)
    value, expected = dice_cross_entropy(ours, label), reference(theirs, label)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-4)


def test_right_answer_costs_nothing_and_wrong_ones_more():
    _, label = example()
    right = 50 * torch.nn.functional.one_hot(label[:, 0].long(), 5).movedim(-1, 1).float()
    assert dice_cross_entropy(right, label).item() == pytest.approx(0, abs=1e-4)
    assert dice_cross_entropy(right.roll(1, dims=1), label).item() > 10


def test_gradient_where_the_true_class_has_no_probability_left():
    monai = DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=False, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )
    logits, label = example()
    ours, theirs = (100 * logits).requires_grad_(True), (100 * logits).requires_grad_(True)
    value = dice_cross_entropy(ours, label)
    assert value.isfinite() and value > 50
    value.backward()
    monai(theirs, label).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-4)


def test_probabilities_that_are_known_already():
    logits, label = example()
    ours, theirs = logits.clone().requires_grad_(True), logits.clone().requires_grad_(True)
    value, expected = (
        dice_cross_entropy(ours, label, probability=logits.softmax(dim=1)),
        dice_cross_entropy(theirs, label),
    )
    assert value.item() == expected.item()
    value.backward()
    expected.backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_bfloat16_logits_are_summed_in_float32():
    logits, label = example()
    value = dice_cross_entropy(logits.bfloat16(), label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(dice_cross_entropy(logits.bfloat16().float(), label).item(), rel=1e-6)

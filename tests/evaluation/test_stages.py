from __future__ import annotations

import math

import pytest

from fedsr_monai.evaluation.stages import compare, comparison_text


def rows(dice: dict[str, float], task: str = "segmentation") -> list[dict]:
    return [
        {"site": "a", "case": case, "task": task, "dice": value + shift}
        for case, value in dice.items()
        for shift in (-0.1, 0.1)
    ]


def test_only_scans_that_both_have_are_compared():
    found = compare(rows({"1": 0.5, "2": 0.7, "3": 0.1}), rows({"1": 0.6, "2": 0.65, "4": 0.9, "5": math.nan}))
    assert found == {
        "segmentation": {"before": pytest.approx(0.6), "after": pytest.approx(0.625), "scans": 2, "better": 1}
    }
    assert compare(rows({"1": 0.5}), rows({"2": 0.5})) == {}


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0.85, "is better than before training: mean Dice 0.850, 0.800 before (+0.050; better on 1 of 2 scans)"),
        (0.75, "is worse than before training: mean Dice 0.750, 0.800 before (−0.050; "),
        (0.8004, "is no better than before training: mean Dice 0.800, 0.800 before (+0.000; "),
        (0.7996, "is no better than before training: mean Dice 0.800, 0.800 before (+0.000; "),
    ],
)
def test_a_loss_is_said_plainly(after, words):
    text = comparison_text("registration", {"before": 0.8, "after": after, "scans": 2, "better": 1})
    assert text.startswith(f"registration {words}")

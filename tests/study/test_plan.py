from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.study.plan import read_plan

PLANS = sorted((Path(__file__).parents[2] / "studies").glob("*.json"))
GOOD = {
    "name": "x",
    "question": "y?",
    "sites": {"sites": 1},
    "arms": {"a": {"policy": "local"}, "b": {}},
    "contrasts": [["a", "b"]],
}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_the_plans_that_come_with_the_project_are_sound(path, quick):
    plan = read_plan(path, quick)
    assert plan.contrasts and len(plan.seeds) >= (1 if quick else 3)


def test_quick_replaces_values(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD | {"rounds": 9, "quick": {"rounds": 1}}))
    assert (read_plan(path).rounds, read_plan(path, quick=True).rounds) == (9, 1)


@pytest.mark.parametrize(
    ("change", "where", "found"),
    [
        ({"rouns": 3}, "rouns", "unknown key"),
        ({"question": ""}, "question", "nothing"),
        ({"rounds": 0}, "rounds", "0"),
        ({"seeds": [1, 1]}, "seeds", r"\[1, 1\]"),
        ({"seeds": "3"}, "seeds", "'3'"),
        ({"arms": {"a": {"polici": "x"}, "b": {}}}, "arms.a: polici", "unknown key"),
        ({"arms": {"../a": {}, "b": {}}}, "arms", r"'\.\./a'"),
        ({"arms": {"a": {"scans": 0}, "b": {}}}, "arms.a.scans", "0"),
        ({"arms": {"a": {"at": "home"}, "b": {}}}, "arms.a.at", "'home'"),
        ({"contrasts": [["a", "c"]]}, "contrasts", r"\['a', 'c'\]"),
        ({"contrasts": [["a", "a"]]}, "contrasts", r"\['a', 'a'\]"),
        ({"contrasts": [[["a"], "b"]]}, "contrasts", r"\[\['a'\], 'b'\]"),
        ({"contrasts": "ab"}, "contrasts", "'ab'"),
        ({"quick": 3}, "quick", "3"),
        ({"rounds": True}, "rounds", "True"),
        ({"name": ["x"]}, "name", r"\['x'\]"),
        ({"sites": {"sites": "one"}}, "sites: sites", "'one'"),
        ({"sites": {"folders": [1]}}, "1", "found 1, expected text"),
        ({"unseen": {}}, "unseen", "{}"),
        ({"personalise": {"epochs": 0}}, "personalise.epochs", "0"),
        ({"personalise": {"at": "home"}}, "personalise.at", "'home'"),
        ({"arms": ["a", "b"]}, "arms", r"\['a', 'b'\]"),
        ({"arms": {"a": [], "b": {}}}, "arms.a", r"\[\]"),
        ({"arms": {"a": {"policy": "fed"}, "b": {}}}, "arms.a.policy", "'fed'"),
        ({"arms": {"a": {"overrides": {"preset": "$exit()"}}, "b": {}}}, "arms.a: overrides: preset", r"\$exit"),
        ({"overrides": {"imports": ["$import os"]}}, "overrides: imports", "no other party"),
    ],
)
def test_a_mistake_in_a_plan_is_named(tmp_path, change, where, found):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=found) as raised:
        read_plan(path)
    assert where in raised.value.where


@pytest.mark.parametrize(
    ("arm", "where", "found"),
    [
        ({"baseline": "brbs", "personalise": True}, "arms.a.personalise", "true"),
        ({"pretrain": {"baseline": "brbs"}}, "arms.a.pretrain", "brbs"),
        ({"pretrain": {"baseline": "brbs", "rounds": 0, "steps": 1}}, "arms.a.pretrain.rounds", "0"),
        (
            {"pretrain": {"baseline": "b", "rounds": 1, "steps": 1}, "from_weights": "x"},
            "arms.a.pretrain",
            "from_weights",
        ),
        ({"start": {"policy": "fedavg"}}, "arms.a.start", "fedavg"),
        ({"start": {"policy": "local", "rounds": 1}}, "arms.a.start.policy", "local"),
        ({"start": {"policy": "fedavg", "rounds": 20}}, "arms.a.start.rounds", "20"),
        ({"start": {"policy": "fedavg", "rounds": 1}, "baseline": "brbs"}, "arms.a.start", "baseline"),
    ],
)
def test_a_mistake_in_what_an_arm_begins_with_is_named(tmp_path, arm, where, found):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD | {"arms": {"a": arm, "b": {}}}))
    with pytest.raises(UserError, match=found) as raised:
        read_plan(path)
    assert where in raised.value.where

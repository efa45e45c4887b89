"""The plan of a study: what is compared on which sites, written down before it runs."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsr_monai.bundle_overrides import check_plain
from fedsr_monai.checks import check_choice, check_whole_number, is_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.sa_variants import VARIANTS
from fedsr_monai.federation.policies import POLICIES
from fedsr_monai.files import read_json

SHIPPED, RANDOM = "shipped", "random"  # values of `from_weights`: the bundle's own weights, and random ones
MEMBERS, UNSEEN, ALL = "members", "unseen", "all"  # values of `at`
NAME = re.compile(r"[A-Za-z0-9+][A-Za-z0-9._+-]*")
FIX = "see docs/studies.md for the keys of a plan"
NAMES: dict[type, str] = {
    str: "text", dict: "an object", list: "a list", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip
KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "question": (str,), "sites": (dict,), "arms": (dict,), "contrasts": (list,), "seeds": (list,),
    "rounds": (int,), "steps": (int,), "overrides": (dict,), "personalise": (dict,), "unseen": (list,), "sa": (list,),
}  # fmt: skip
SITES: dict[str, tuple[type, ...]] = {
    "folders": (list,), "sites": (int,), "training": (int,), "validation": (int,), "test": (int,), "spacing": (int, float),
    "shape": (list,), "seed": (int,), "unseen": (bool,), "profiles": (list,), "anatomies": (bool,), "test_anatomies": (str,),
    "protocols": (list,),
}  # fmt: skip
ARM: dict[str, tuple[type, ...]] = {
    "policy": (str, type(None)), "overrides": (dict,), "from_weights": (str, type(None)), "personalise": (bool,),
    "baseline": (str, type(None)), "pretrain": (dict, type(None)), "start": (dict, type(None)), "scans": (int, type(None)), "at": (str,),
}  # fmt: skip
START: dict[str, tuple[type, ...]] = {"policy": (str,), "rounds": (int,)}
PERSONALISE: dict[str, tuple[type, ...]] = {"epochs": (int,), "epoch_length": (int,), "at": (str,)}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        policy: exchange policy of the rounds.
        overrides: values for ids of the bundle's `train.json`, over those of the plan.
        from_weights: "shipped", a checkpoint, or "random" or None for random weights.
        personalise: whether the heads are fitted to each site after the rounds.
        baseline: a method that is trained instead of FedSR (docs/baselines.md).
        pretrain: `baseline`, `rounds` and `steps` of a pooled training beforehand, whose encoder the arm begins with.
        start: `policy` and `rounds` of a federation that makes the first rounds. Every site then continues from what
            its server has, such as heads that are shared at first, with the arm's own policy for the remaining rounds.
        scans: number of training scans that each site uses (the first ones); None for all.
        at: "members" or "unseen": the sites that take part in the rounds; an arm at unseen sites is one that does not wait for others.
    """

    policy: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    from_weights: str | None = None
    personalise: bool = False
    baseline: str | None = None
    pretrain: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    scans: int | None = None
    at: str = MEMBERS


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        name: name of the study.
        question: the question that it is to answer, in one sentence.
        sites: arguments of `simulate_sites`, where `anatomies: true` asks for semi-real sites made from a folder that
            the user names; or {"folders": [...]} for site folders that exist.
        arms: the arms by name.
        contrasts: pairs (arm, reference) that are tested.
        seeds: one run per arm and seed; seeds are the units of the tests.
        rounds, steps: communication rounds, and training steps per round and site; the pooled arm takes the steps of all
            sites.
        overrides: values for ids of the bundle's `train.json`, the same in every arm.
        personalise: arguments of `personalise` (`epochs`, `epoch_length`) for the arms that use it, and `at`: "all"
            (the default), or "unseen" if only the unseen sites fit their heads, in a study of those.
        unseen: names of sites that take part in no round; they are measured, and fitted if the arm personalises.
        sa: changes of the SA features whose effect on every run is measured (`evaluation.sa_variants.VARIANTS`).
    """

    name: str
    question: str
    sites: Mapping[str, Any]
    arms: Mapping[str, Arm]
    contrasts: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 10
    steps: int = 10
    overrides: Mapping[str, Any] = field(default_factory=dict)
    personalise: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 1, "epoch_length": 10})
    unseen: tuple[str, ...] = ()
    sa: tuple[str, ...] = ()


def read_plan(path: str | os.PathLike, quick: bool = False) -> Plan:
    """Read and check a plan (JSON).

    Args:
        path: the file.
        quick: replace values by those in the plan's `quick` object: the same study at a size that only shows that it
            runs.

    Raises:
        UserError: a key is missing or unknown, or a value is not what it must be.
    """
    path = Path(path)
    content = read_json(path, "the plan of a study", FIX)
    small = content.pop("quick", {})
    _check_kind(f"{path}: quick", small, dict)
    if quick:
        content |= small
    _check_keys(str(path), content, KINDS)
    for key in ("name", "question", "sites", "arms", "contrasts"):
        if not content.get(key):
            raise UserError(f"{path}: {key}", found="nothing", expected="a value", fix=FIX)
    for key in ("rounds", "steps"):
        if key in content:
            check_whole_number(f"{path}: {key}", content[key])
    for variant in content.get("sa", ()):
        check_choice(f"{path}: sa", variant, VARIANTS[1:])
    seeds = content.get("seeds", [0, 1, 2])
    if not seeds or not all(is_whole_number(seed, 0) for seed in seeds):
        raise UserError(f"{path}: seeds", found=reprlib.repr(seeds), expected="a list of whole numbers")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds", found=reprlib.repr(seeds), expected="each seed once")
    _check_keys(f"{path}: sites", content["sites"], SITES)
    for name in (*content["sites"].get("folders", ()), *content.get("unseen", ())):
        _check_kind(f"{path}: {name!r:.60}", name, str)
    for key, value in content.get("personalise", {}).items():
        _check_keys(f"{path}: personalise", {key: value}, PERSONALISE)
        if key == "at":
            check_choice(f"{path}: personalise.at", value, (ALL, UNSEEN))
        else:
            check_whole_number(f"{path}: personalise.{key}", value)
    _check_plain(str(path), content.get("overrides", {}))
    arms = {name: _arm(path, name, arm) for name, arm in content["arms"].items()}
    for name, arm in arms.items():
        if arm.start and arm.start["rounds"] >= content.get("rounds", Plan.rounds):
            expected = f"fewer than the plan's {content.get('rounds', Plan.rounds)} rounds"
            raise UserError(f"{path}: arms.{name}.start.rounds", found=str(arm.start["rounds"]), expected=expected)
    return Plan(
        name=content["name"],
        question=content["question"],
        sites=content["sites"],
        arms=arms,
        contrasts=_contrasts(path, content["contrasts"], arms),
        seeds=tuple(seeds),
        **{key: content[key] for key in ("rounds", "steps", "overrides", "personalise") if key in content},
        unseen=tuple(content.get("unseen", ())),
        sa=tuple(content.get("sa", ())),
    )


def _arm(path: Path, name: str, content: Any) -> Arm:
    where = f"{path}: arms.{name}"
    if not NAME.fullmatch(name):
        raise UserError(where, found=repr(name), expected="a name of letters, digits, '.', '_', '+' and '-'")
    _check_kind(where, content, dict)
    _check_keys(where, content, ARM)
    if content.get("policy") is not None:
        check_choice(f"{where}.policy", content["policy"], POLICIES)
    _check_plain(where, content.get("overrides", {}))
    arm = Arm(**content)
    if arm.baseline is not None and arm.personalise:
        raise UserError(f"{where}.personalise", found="true", expected="false: a baseline has no personalised phase")
    if arm.pretrain is not None:
        if arm.from_weights is not None:
            raise UserError(f"{where}.pretrain", found="it and from_weights", expected="one of the two")
        if not isinstance(arm.pretrain, dict) or set(arm.pretrain) != {"baseline", "rounds", "steps"}:
            raise UserError(
                f"{where}.pretrain", found=repr(arm.pretrain), expected="baseline, rounds and steps", fix=FIX
            )
        for key in ("rounds", "steps"):
            check_whole_number(f"{where}.pretrain.{key}", arm.pretrain[key])
    if arm.start is not None:
        if arm.baseline is not None:
            raise UserError(
                f"{where}.start", found="it and baseline", expected="one of the two, as they train different networks"
            )
        _check_keys(f"{where}.start", arm.start, START)
        if set(arm.start) != set(START):
            raise UserError(f"{where}.start", found=repr(arm.start), expected="policy and rounds", fix=FIX)
        check_choice(f"{where}.start.policy", arm.start["policy"], POLICIES)
        if not POLICIES[arm.start["policy"]].exchanges:
            raise UserError(f"{where}.start.policy", found=arm.start["policy"], expected="one that exchanges tensors")
        check_whole_number(f"{where}.start.rounds", arm.start["rounds"])
    if arm.scans is not None and not is_whole_number(arm.scans, 1):
        raise UserError(f"{where}.scans", found=repr(arm.scans), expected="a whole number of at least 1")
    check_choice(f"{where}.at", arm.at, (MEMBERS, UNSEEN))
    return arm


def _check_keys(where: str, content: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for key, value in content.items():
        if key not in kinds:
            expected = f"some of {', '.join(kinds)}"
            raise UserError(f"{where}: {key:.60}", found="an unknown key", expected=expected, fix=FIX)
        _check_kind(f"{where}: {key}", value, *kinds[key])


def _check_kind(where: str, value: Any, *kinds: type) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(NAMES[kind] for kind in kinds)
        raise UserError(where, found=reprlib.repr(value), expected=expected, fix=FIX)


def _check_plain(where: str, overrides: Mapping[str, Any]) -> None:
    """Refuse overrides that could be more than hyper-parameters: plans are passed on, and a bundle's configuration is code."""
    for key, value in overrides.items():
        check_plain(key, value, f"{where}: overrides")


def _contrasts(path: Path, content: Any, arms: Mapping[str, Arm]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for pair in content:
        of_names = isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        if not of_names or not set(pair) <= set(arms) or pair[0] == pair[1]:
            expected = f"pairs of two of the arms {', '.join(arms)}"
            raise UserError(f"{path}: contrasts", found=reprlib.repr(pair), expected=expected)
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)

"""Values for ids of a bundle's configuration: which ids exist, and which values may be taken from another party's file.

A MONAI configuration runs what begins with `$`, reads the file that follows `%`, and builds the class that `_target_` names. What
users type on their own command line may be any of these; what a job, a run.json or a personalised.json holds may not.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedsr_monai.checks import check_choice, check_whole_number, is_name, is_number
from fedsr_monai.device import find_device
from fedsr_monai.errors import UserError
from fedsr_monai.files import check_regular

# Paths and hardware settings: each machine decides these for itself, whatever another party's file says.
IDS_OF_THE_MACHINE = (
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "ckpt_path",
    "initial_weights",
    "global_weights",
    "device",
    "amp",
    "num_workers",
    "rank",
    "world_size",
    "resume",
)
# Smallest values of ids that are counts, and (in `RANGES`) the ranges of others, wherever they are in a configuration.
LEAST = {
    "epochs": 1,
    "max_epochs": 1,
    "epoch_length": 1,
    "val_interval": 1,
    "batch_size": 1,
    "num_workers": 0,
    "seed": 0,
    "search_interval": 1,
    "search_start": 0,
    "phi_warmup": 0,
}
CHOICES = {
    "preset": ("small", "full"),
    "sa_statistics": ("normalised", "convolution"),
    "phi": ("parzen", "infonce", "scans"),
}
SCIE = ("gate", "normalise", "film_difference", "attention")  # or true, which stands for the first, or false
SCIE_OF_CONVOLUTION = ("normalise", "film_difference")  # these read the statistics of `convolution`
RANGES = {
    "learning_rate": (1e-12, 1e3),
    "registration_lr": (0, 1e3),
    "encoder_lr": (0, 1e3),
    "search_learning_rate": (1e-12, 1e3),
    "spacing": (0.1, 100),
    "sa_alpha": (0, 1),
    "exact_registration": (0, 1),
    "heads_first": (0, 1),
}
MISSING = object()
DEEPEST = 4  # levels of lists and objects in a value


def check_overrides(
    files: Sequence[str | os.PathLike], overrides: Mapping[str, Any], taken: Iterable[str] = ()
) -> None:
    """Refuse values that would be ignored, or would stop or hang a training half-way.

    Args:
        files: the configuration files of a workflow.
        overrides: values by id.
        taken: ids that the caller sets from its own arguments.

    Raises:
        UserError: an id is unknown or taken, or its value is not plain JSON, of another type than the bundle's own value, or
            out of range. Expressions (`$...`, `@...`) are not evaluated here.
    """
    for file in files:
        check_regular(file, "a configuration of the bundle", "install the bundle again")
    config = {key: value for file in files for key, value in ConfigParser.load_config_file(file).items()}
    try:
        json.dumps(overrides)
    except (TypeError, ValueError) as error:
        found = f"a value that is not plain JSON ({error})"
        raise UserError("overrides", found=found, expected="numbers, text, lists") from None
    for key in overrides:
        first = id_parts(key)[0]
        if first not in config:
            near = difflib.get_close_matches(first, config, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(config))}"
            expected = "one of its ids"
            raise UserError(f"overrides: {key}", found=f"no such id in {Path(files[0])}", expected=expected, fix=fix)
        if first in taken:
            fix = "leave it out: it follows from the command's own arguments"
            raise UserError(f"overrides: {key}", found="a value", expected="none", fix=fix)
    for key, value in overrides.items():
        _check_value(key, value, value_of(config, key))
    settings = config | dict(overrides)
    if settings.get("scie") in SCIE_OF_CONVOLUTION and settings.get("sa_statistics") != "convolution":
        found, expected = f"{settings['scie']} with sa_statistics {settings.get('sa_statistics')}", "convolution"
        raise UserError("overrides: scie", found=found, expected=expected, fix="add sa_statistics=convolution")


def _check_value(key: str, value: Any, own: Any) -> None:
    """Refuse an override of another type than the bundle's own value of this id, or out of the id's range."""
    where, name = f"overrides: {key}", id_parts(key)[-1]
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        return
    if key == "device":
        find_device(value)
    elif key == "scie":
        if not isinstance(value, bool) and value not in SCIE:
            raise UserError(where, found=repr(value), expected=f"true, false or one of {', '.join(SCIE)}")
    elif key in CHOICES:
        check_choice(where, value, CHOICES[key])
    elif name in LEAST and not (value is None and own is None):
        check_whole_number(where, value, LEAST[name])
    elif isinstance(own, bool):
        if not isinstance(value, bool):
            raise UserError(where, found=repr(value), expected="true or false")
    elif isinstance(own, (int, float)):
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not (is_number(value) and low <= value <= high):
            expected = f"a number from {low:g} to {high:g}" if name in RANGES else "a number"
            raise UserError(where, found=repr(value), expected=expected)
    elif isinstance(own, str) and not own.startswith("$") and not isinstance(value, str):
        raise UserError(where, found=repr(value), expected=f"text, for example {own}")
    elif isinstance(own, list) and not isinstance(value, list):
        raise UserError(where, found=repr(value), expected="a list")
    elif isinstance(own, Mapping) and not (value is None or isinstance(value, Mapping)):
        raise UserError(where, found=repr(value), expected="an object, or null to switch it off")


def check_plain(key: str, value: Any, where: str = "overrides", fix: str = "leave it out") -> None:
    """Refuse an override from another party that could be more than a hyper-parameter.

    Args:
        key: the id.
        value: a number, truth value, word, null, or a list or object of these is accepted.
        where: where the override was found, for the message.
        fix: what to do about it, for the message.

    Raises:
        UserError: the value is anything else, or the id has a special meaning in a configuration (`_target_`,
            `imports`).
    """
    parts = id_parts(key)
    if any(not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", part) for part in parts) or parts[0] in ("imports", "run"):
        found = "an id that no other party may set"
        raise UserError(f"{where}: {key[:60]}", found=found, expected="a hyper-parameter", fix=fix)
    if not is_plain(value):
        expected = "a number, a truth value, a word or a list of these"
        raise UserError(f"{where}: {key}", found=reprlib.repr(value)[:100], expected=expected, fix=fix)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether a configuration treats `value` as plain data: numbers, truth values, words, null, and lists and objects of these."""
    if isinstance(value, Mapping) and depth < DEEPEST:
        return all(is_name(key) and is_plain(item, depth + 1) for key, item in value.items())
    if isinstance(value, list) and depth < DEEPEST:
        return all(is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, bool) or is_number(value) or is_name(value)


def checked_overrides(overrides: Any, where: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the overrides of another party's record without those that each machine sets for itself.

    Args:
        overrides: values by id, as found in the record.
        where: the record's file, for the message.
        config: where given, the configuration that has to have these ids.

    Raises:
        UserError: a value is not plain, or an id is unknown.
    """
    fix = "remove it there if you know that it changes nothing, or make the run again without it"
    if not isinstance(overrides, Mapping):
        found = type(overrides).__name__
        raise UserError(f"{where}: overrides", found=found, expected="values by id", fix="restore it from a copy")
    kept = {key: value for key, value in overrides.items() if id_parts(key)[0] not in IDS_OF_THE_MACHINE}
    for key, value in kept.items():
        check_plain(key, value, f"{where}: overrides", fix)
        if config is not None and value_of(config, key) is MISSING:
            found = "an unknown id"
            raise UserError(f"{where}: overrides: {key[:60]}", found=found, expected="one of the bundle's ids", fix=fix)
    return kept


def ids_behind(config: Mapping[str, Any], name: str) -> set[str]:
    """Return the ids that the value of `name` refers to in a configuration, directly or through others."""
    found: set[str] = set()
    left = [name]
    while left:
        references = re.findall(r"@(\w+)", json.dumps(config.get(left.pop(), "")))
        new = [reference for reference in references if reference in config and reference not in found]
        found.update(new)
        left.extend(new)
    return found


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """Return what a configuration holds at an id, without resolving it; `MISSING` where it has none."""
    found: Any = config
    for part in id_parts(key):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return MISSING
    return found


def id_parts(key: str) -> list[str]:
    """Return the parts of an id: `train#trainer#max_epochs` has three."""
    return key.replace("::", "#").split("#")

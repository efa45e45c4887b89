"""Describe a run in a job, and check it where it arrives: a site trusts its own files, not the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedsr_monai import __version__
from fedsr_monai.bundle_path import check_overrides
from fedsr_monai.checks import check_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.federation.exchange import allowed_prefixes
from fedsr_monai.federation.records import digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Ids of a bundle's configuration that every site sets for itself: its paths and its hardware.
SITE_IDS = (
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "ckpt_path",
    "initial_weights",
    "device",
    "num_workers",
    "rank",
    "world_size",
)


@dataclass(frozen=True)
class Settings:
    """Describe a run, the same for server and sites.

    All values are plain: they travel as JSON, and none is a path or is executed.

    Attributes:
        run: name of the run; its state is kept under it, so that a second job with the same name resumes it.
        rounds: communication rounds in total.
        version: of this package; a participant with another version refuses, as it may train differently.
        bundle: name of the bundle that the sites have installed.
        bundle_sha256: of its train.json; a participant with another one refuses.
        policy: what is exchanged, a key of `fedsr_monai.federation.exchange.POLICIES`.
        local_epochs: epochs that a site trains each round.
        seed: of all random numbers.
        overrides: numbers and words for ids of the bundle's train.json.
        weights_sha256: of the weights that come with the bundle, to begin with them; None begins with random ones.

    Raises:
        UserError: a value is not what it must be.
    """

    run: str
    rounds: int
    version: str
    bundle: str
    bundle_sha256: str
    policy: str = "fedsr"
    local_epochs: int = 1
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("run", "bundle"):
            value = getattr(self, name)
            if not isinstance(value, str) or not NAME.fullmatch(value):
                raise UserError(f"job: {name}", found=repr(value), expected="letters, digits, '.', '_' and '-'")
        for name, least in (("rounds", 1), ("local_epochs", 1), ("seed", 0)):
            check_whole_number(f"job: {name}", getattr(self, name), least)
        if not allowed_prefixes(self.policy):
            found = f"{self.policy!r}, which exchanges nothing"
            raise UserError("job: policy", found=found, expected="fedsr, fedrep or fedavg", fix="choose one of them")

    def check_bundle(self, root: Path) -> None:
        """Compare the package and the bundle that are installed here with those of the run.

        Raises:
            UserError: another version, train.json or weights, or an override that a job may not set.
        """
        if self.version != __version__:
            found, expected = f"version {__version__}", f"{self.version!r} (job)"
            raise UserError("fedsr_monai", found=found, expected=expected, fix="install the same version everywhere")
        config = root / "configs" / "train.json"
        fix = "install the same version of the bundle everywhere"
        if digest(config) != self.bundle_sha256:
            expected = f"{self.bundle_sha256[:12]}... (job)"
            raise UserError(config, found=f"sha256 {digest(config)[:12]}...", expected=expected, fix=fix)
        weights = self.weights(root)
        if weights is not None and (not weights.is_file() or digest(weights) != self.weights_sha256):
            expected = f"sha256 {self.weights_sha256[:12]}... (job)"
            raise UserError(weights, found="other weights or none", expected=expected, fix=fix)
        check_overrides([config], self.overrides)
        values = ConfigParser.load_config_file(config)
        for key, value in self.overrides.items():
            check_plain(key, value, values)

    def weights(self, root: Path) -> Path | None:
        """Return the file of the weights to begin with, below the bundle; None for random weights."""
        return None if self.weights_sha256 is None else root / "models" / "model.pt"

    def all_overrides(self) -> dict[str, Any]:
        """Return all overrides of the bundle's configuration, as `fedsr federate` sets them."""
        # A schedule over the bundle's `epochs` spans the run, not the round.
        return {"epochs": self.rounds * self.local_epochs, "seed": self.seed, **self.overrides}


def settings_from_job(content: Mapping[str, Any]) -> Settings:
    """Make `Settings` from the JSON of a job.

    Raises:
        UserError: a key is missing or unknown, or a value is not what it must be.
    """
    known = {item.name for item in fields(Settings)}
    for key in sorted(set(content) - known):
        expected = f"one of {', '.join(sorted(known))}"
        raise UserError(f"job: {key}", found="an unknown setting", expected=expected, fix="export the job again")
    missing = [item.name for item in fields(Settings) if item.name not in content and _is_required(item)]
    if missing:
        raise UserError(f"job: {missing[0]}", found="nothing", expected="a value", fix="export the job again")
    return Settings(**content)


def check_plain(key: str, value: Any, config: Mapping[str, Any]) -> None:
    """Refuse an override that could be more than a hyper-parameter.

    A MONAI configuration evaluates what starts with `$`, reads the file that follows `%`, and builds the class that `_target_`
    names. So an override from a job may only replace a number, truth value, word or list of these by another such value.

    Args:
        key: id of the bundle's configuration, with `#` or `::` between its parts.
        value: the job's value.
        config: the bundle's configuration.

    Raises:
        UserError: the override is of another kind, or each site sets the id for itself.
    """
    parts = key.replace("::", "#").split("#")
    if any(part.startswith("_") for part in parts) or parts[0] in SITE_IDS:
        raise UserError(
            f"overrides: {key}",
            found="an id that a job must not set",
            expected="hyper-parameters only",
            fix="set it in the site's own fedsr.json",
        )
    found: Any = config
    for part in parts:
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            found = None
    for what, item in (("the bundle's value", found), ("the job's", value)):
        if not _plain(item):
            expected = "a number, a truth value, a word or a list of these"
            raise UserError(f"overrides: {key}", found=f"{item!r} ({what})", expected=expected, fix="leave it out")


def _is_required(item: Field) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_plain(item) and not isinstance(item, list) for item in value)
    return (
        value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and bool(NAME.fullmatch(value)))
    )

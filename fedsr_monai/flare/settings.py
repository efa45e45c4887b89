"""What a job says about a run, checked where it arrives: a site trusts its own files, not the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedsr_monai import __version__
from fedsr_monai.bundle_path import check_overrides
from fedsr_monai.errors import UserError
from fedsr_monai.federation.exchange import allowed_prefixes
from fedsr_monai.federation.records import digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Where things lie and what they run on is a site's own business.
OWN = (
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
    """A run, the same for server and sites. Plain values: it travels as JSON, and nothing in it is a path or is executed.

    Attributes:
        run: name of the run; its state is kept under it, so a second job of the same name goes on from the first.
        rounds: communication rounds in all.
        version: of this package; one of another version may train differently, so it refuses.
        bundle: name of the bundle that the sites have installed.
        bundle_sha256: of its train.json; a site with another one refuses.
        policy: what is exchanged, a key of `fedsr_monai.federation.exchange.POLICIES`.
        local_epochs: a site trains each round.
        seed: of everything random.
        overrides: numbers and words for ids of the bundle's train.json.
        weights_sha256: of the weights that come with the bundle, to start from them; None starts from random ones.
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
            if not isinstance(getattr(self, name), str) or not NAME.fullmatch(getattr(self, name)):
                raise UserError(
                    f"job: {name}: found {getattr(self, name)!r}, expected letters, digits, '.', '_' and '-'; correct it"
                )
        for name, least in (("rounds", 1), ("local_epochs", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(
                    f"job: {name}: found {value!r}, expected a whole number of at least {least}; correct it"
                )
        if not allowed_prefixes(self.policy):
            raise UserError(
                f"job: policy: found {self.policy!r}, which exchanges nothing; expected fedsr, fedrep or fedavg"
            )

    def check_bundle(self, root: Path) -> None:
        """Compare the package and the bundle that are installed here with those that the run was made for.

        Raises:
            UserError: another version, train.json or weights, or an override that a job may not set.
        """
        if self.version != __version__:
            raise UserError(
                f"fedsr_monai: found version {__version__}, expected {self.version!r} (job); install the same version everywhere"
            )
        config = root / "configs" / "train.json"
        if digest(config) != self.bundle_sha256:
            raise UserError(
                f"{config}: found sha256 {digest(config)[:12]}..., expected {self.bundle_sha256[:12]}... (job); "
                "install the version of the bundle that the run uses everywhere"
            )
        weights = self.weights(root)
        if weights is not None and (not weights.is_file() or digest(weights) != self.weights_sha256):
            raise UserError(
                f"{weights}: found other weights or none, expected sha256 {self.weights_sha256[:12]}... (job); "
                "install the version of the bundle that the run uses everywhere"
            )
        check_overrides([config], self.overrides)
        values = ConfigParser.load_config_file(config)
        for key, value in self.overrides.items():
            check_plain(key, value, values)

    def weights(self, root: Path) -> Path | None:
        """The weights to start from, below the bundle."""
        return None if self.weights_sha256 is None else root / "models" / "model.pt"

    def all_overrides(self) -> dict[str, Any]:
        """Overrides of the bundle's configuration as `fedsr federate` sets them."""
        # A schedule over the bundle's `epochs` spans the run, not the round.
        return {"epochs": self.rounds * self.local_epochs, "seed": self.seed, **self.overrides}


def settings_from_job(content: Mapping[str, Any]) -> Settings:
    """`Settings` from the JSON of a job.

    Raises:
        UserError: a key is missing or unknown, or a value is not what it must be.
    """
    known = {item.name for item in fields(Settings)}
    for key in sorted(set(content) - known):
        raise UserError(
            f"job: {key}: found an unknown setting, expected {', '.join(sorted(known))}; export the job anew"
        )
    try:
        return Settings(**content)
    except TypeError as error:
        raise UserError(f"job: {error}; export the job anew") from None


def check_plain(key: str, value: Any, config: Mapping[str, Any]) -> None:
    """Refuse an override that could be more than a hyper-parameter.

    A MONAI configuration runs what starts with `$`, reads the file that follows `%`, and makes the class that `_target_` names. So
    an override from a job may only replace a number, truth value, word or list of these by another such value.

    Raises:
        UserError: it is not of that kind, or it is for each site to decide.
    """
    parts = key.replace("::", "#").split("#")
    if any(part.startswith("_") for part in parts) or parts[0] in OWN:
        raise UserError(
            f"overrides: {key}: found an id that is not the job's to set; set it in the site's own fedsr.json"
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
            raise UserError(
                f"overrides: {key}: found {item!r} ({what}), expected a number, a truth value, a word or a list of these; leave it out"
            )


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_plain(item) and not isinstance(item, list) for item in value)
    return (
        value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and bool(NAME.fullmatch(value)))
    )

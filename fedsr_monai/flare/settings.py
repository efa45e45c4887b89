"""The settings of a run in a job, and their checks where the job arrives: a site trusts its own files, not the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from monai.bundle import ConfigParser

from fedsr_monai import __version__
from fedsr_monai.bundle_overrides import (
    IDS_OF_THE_MACHINE,
    MISSING,
    check_overrides,
    check_plain,
    id_parts,
    is_plain,
    value_of,
)
from fedsr_monai.checks import is_name
from fedsr_monai.errors import UserError
from fedsr_monai.federation.policies import POLICIES
from fedsr_monai.federation.settings import RunSettings
from fedsr_monai.files import sha256


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Describe a run in a job, the same for server and sites.

    All values are plain: they travel as JSON, and none is a path or is executed.

    Attributes:
        run: name of the run, under which its state is kept, so that a second job with the same name resumes it.
        version: version of this package; a participant with another version refuses the job, because it may train differently.
        bundle: name of the bundle that the sites have installed.
        bundle_digest: digest of its train.json (see `file_digest`); a participant with another one refuses the job.
        weights_digest: digest of the bundle's own weights, if the run begins with them; None for random weights.

    Raises:
        UserError: a value is not what it must be.
    """

    where: ClassVar[str] = "job: "

    run: str
    version: str
    bundle: str
    bundle_digest: str
    weights_digest: str | None = None

    def __post_init__(self) -> None:
        for name in ("run", "bundle"):
            value = getattr(self, name)
            if not is_name(value):
                raise UserError(f"job: {name}", found=repr(value), expected="letters, digits, '.', '_' and '-'")
        for name in ("version", "bundle_digest", "weights_digest"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "weights_digest" and value is None):
                raise UserError(f"job: {name}", found=repr(value)[:60], expected="text", fix="export the job again")
        super().__post_init__()
        if self.baseline is not None:
            fix = "compare methods with fedsr federate"
            raise UserError("job: baseline", found=repr(self.baseline), expected="none: a job trains FedSR", fix=fix)
        if not self.exchange.exchanges:
            found = f"{self.policy!r}, which exchanges nothing"
            expected = f"one of {', '.join(name for name, policy in POLICIES.items() if policy.exchanges)}"
            raise UserError("job: policy", found=found, expected=expected, fix="choose one of them")

    def check_bundle(self, root: Path) -> None:
        """Compare the package and the bundle that are installed here with those of the run.

        Raises:
            UserError: the version, train.json or weights differ, or an override is one that a job must not set.
        """
        if self.version != __version__:
            found, expected = f"version {__version__}", f"{self.version!r} (job)"
            raise UserError("fedsr_monai", found=found, expected=expected, fix="install the same version everywhere")
        config = root / "configs" / "train.json"
        fix = "install the same version of the bundle everywhere"
        if file_digest(config) != self.bundle_digest:
            found, expected = f"{file_digest(config)[:20]}...", f"{self.bundle_digest[:20]}... (job)"
            raise UserError(config, found=found, expected=expected, fix=fix)
        weights = self.weights(root)
        if weights is not None and (not weights.is_file() or file_digest(weights) != self.weights_digest):
            expected = f"{str(self.weights_digest)[:20]}... (job)"
            raise UserError(weights, found="other weights or none", expected=expected, fix=fix)
        check_overrides([config], self.overrides)
        values = ConfigParser.load_config_file(config)
        for key, value in self.overrides.items():
            check_job_override(key, value, values)

    def weights(self, root: Path) -> Path | None:
        """Return the file in the bundle that holds the initial weights; None for random weights."""
        return None if self.weights_digest is None else root / "models" / "model.pt"


def file_digest(path: Path) -> str:
    """Return `sha256:` and the digest of a file; without this prefix FLARE warns that a job seems to contain a secret."""
    return f"sha256:{sha256(path)}"


def settings_from_job(content: Mapping[str, Any]) -> Settings:
    """Return the `Settings` in the JSON of a job.

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


def check_job_override(key: str, value: Any, config: Mapping[str, Any]) -> None:
    """Refuse an override that could be more than a hyper-parameter (see `check_plain`), or of an id that each machine sets for itself.

    Args:
        key: id of the bundle's configuration, with `#` or `::` between its parts.
        value: the job's value.
        config: the bundle's configuration; the value that the override replaces must be plain too.

    Raises:
        UserError: the override is not of this kind, or each site sets the id for itself.
    """
    if id_parts(key)[0] in IDS_OF_THE_MACHINE:
        raise UserError(
            f"overrides: {key}",
            found="an id that a job must not set",
            expected="hyper-parameters only",
            fix="set it in the site's own fedsr.json",
        )
    check_plain(key, value)
    replaced = value_of(config, key)
    if replaced is not MISSING and not is_plain(replaced):
        expected = "one that replaces a number, a truth value, a word or a list of these"
        raise UserError(f"overrides: {key}", found="an override of another kind", expected=expected, fix="leave it out")


def _is_required(item: Field) -> bool:
    return item.default is NO_DEFAULT and item.default_factory is NO_DEFAULT

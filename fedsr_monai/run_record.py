"""Read the records of a run, which another party may have written: `run.json` and `personalised.json`.

A bundle's configuration is code, so a record may not bring its own: the bundle must be installed here, or be named by the user. What
the record sets in that configuration must be plain values (see `fedsr_monai.bundle_overrides`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedsr_monai.bundle_overrides import checked_overrides, id_parts, ids_behind
from fedsr_monai.bundle_path import bundle_path, installed_bundle, training_files
from fedsr_monai.checks import is_name
from fedsr_monai.errors import UserError
from fedsr_monai.files import read_json, sha256

INSTALLED = ("fedsr_encoder", "fedsr_site")
FIX = "restore it from a copy"


@dataclass(frozen=True)
class RunRecord:
    """Hold the checked content of a `run.json`.

    Attributes:
        path: the file.
        sites: name and site folder (or several, separated by commas) of each site.
        overrides: values for ids of the bundle's configuration; plain.
        bundle: what the record says about the bundle; `trusted_bundle` finds it.
        from_weights: path and sha256 of the weights that the run began with; empty if it began with random ones.
        baseline: the method that was trained instead of FedSR, if any.
        pooled: the run trained one network on the scans of all sites.
    """

    path: Path
    sites: list[tuple[str, str]]
    overrides: dict[str, Any]
    bundle: Mapping[str, Any]
    from_weights: Mapping[str, Any]
    baseline: str | None = None
    pooled: bool = False

    def initial_weights(self) -> Path | None:
        """Return the weights that the run began with; None if they were random or do not exist here.

        Raises:
            UserError: the file is not the one that the run began with.
        """
        path, digest = self.from_weights.get("path"), self.from_weights.get("sha256")
        if path is None or not Path(path).is_file():
            return None
        if digest is not None and sha256(path) != digest:
            found = "other weights than the run began with"
            raise UserError(path, found=found, expected=f"sha256 {digest[:12]}... ({self.path})", fix=FIX)
        return Path(path)


def read_run(run: str | os.PathLike) -> RunRecord:
    """Read `run.json` in the folder of a run.

    Raises:
        UserError: it does not exist, is damaged, or holds more than plain values.
    """
    path = Path(run) / "run.json"
    content = read_json(path, "the record of a run", "give the folder that `fedsr federate --out` wrote")
    sites = content.get("sites", [])
    valid = isinstance(sites, list) and all(
        isinstance(site, dict) and is_name(site.get("name")) and is_path(site.get("path", "")) for site in sites
    )
    if not valid:
        raise UserError(f"{path}: sites", found="entries of another form", expected="a name and a path each", fix=FIX)
    from_weights = content.get("from_weights") or {}
    texts = [from_weights.get(key) for key in ("path", "sha256")] if isinstance(from_weights, dict) else [0]
    if not all(text is None or is_path(text) for text in texts):
        raise UserError(f"{path}: from_weights", found="another form", expected="a path and a sha256", fix=FIX)
    baseline = content.get("baseline")
    if not (baseline is None or is_name(baseline)):
        raise UserError(f"{path}: baseline", found="another form", expected="the name of a baseline, or null", fix=FIX)
    return RunRecord(
        path,
        [(site["name"], site.get("path", "")) for site in sites],
        checked_overrides(content.get("overrides", {}), str(path)),
        _mapping(path, "bundle", content.get("bundle", {})),
        from_weights,
        baseline,
        content.get("policy") == "pooled",
    )


def read_personalised(path: Path, named: str | os.PathLike | None = None) -> tuple[str, Path, dict[str, Any]]:
    """Read a `personalised.json`: the site folder, the bundle, and the values that its network depends on.

    Args:
        path: the file.
        named: folder of a bundle that the user has named.

    Raises:
        UserError: the file is damaged, holds more than plain values, or needs a bundle that is not installed.
    """
    content = read_json(path, "the settings of a personalised training", "personalise the site again")
    site, bundle = content.get("site"), content.get("bundle")
    if not (isinstance(site, str) and is_path(site)):
        raise UserError(f"{path}: site", found=type(site).__name__, expected="the path of a site folder", fix=FIX)
    bundle = {"path": bundle} if isinstance(bundle, str) else _mapping(path, "bundle", bundle)
    root = trusted_bundle(bundle, str(path), named)
    return site, root, network_overrides(checked_overrides(content.get("overrides", {}), str(path)), root, str(path))


def trusted_bundle(content: Mapping[str, Any], where: str, named: str | os.PathLike | None = None) -> Path:
    """Return the folder of the bundle that a record names, if its configuration may be executed.

    Args:
        content: `path`, `name` and the sha256 of `train.json`, as far as the record holds them.
        where: the record's file, for the message.
        named: folder of a bundle that the user has named; it is taken for a record of a bundle of that name.

    Raises:
        UserError: the bundle is neither installed nor named.
    """
    path, name = content.get("path"), content.get("name")
    path = path if isinstance(path, str) and is_path(path) else None
    last = name if path is None else Path(path).name
    if named is not None and (name or last) == bundle_path(named).name:
        return bundle_path(named)
    for known in INSTALLED:
        root = installed_bundle(known)
        same = name == known and content.get("train.json") == sha256(root / "configs" / "train.json")
        if same or (path is not None and os.path.realpath(path) == os.path.realpath(root)):
            return root
    raise UserError(
        f"{where}: bundle",
        found=f"{str(last)[:60]!r}, which is not installed",
        expected=f"one of {', '.join(INSTALLED)} of this version",
        fix="name its folder with --bundle if you trust its configuration, as it is code",
    )


def network_overrides(
    overrides: Mapping[str, Any], root: Path, where: str, baseline: str | None = None
) -> dict[str, Any]:
    """Return those overrides that the network of a bundle depends on.

    Args:
        overrides: checked overrides of a record.
        root: folder of the bundle.
        where: the record's file, for the message.
        baseline: baseline of the record, if any.

    Raises:
        UserError: one of them is for an id that the bundle does not have.
    """
    config = ConfigParser.load_config_files(training_files(root, baseline))
    wanted = {*ids_behind(config, "network_def"), "network_def"}
    return checked_overrides({k: v for k, v in overrides.items() if id_parts(k)[0] in wanted}, where, config)


def is_path(value: Any) -> bool:
    """Return whether a value is text that can be used as a path, or as several paths separated by commas."""
    try:
        paths = value.encode().split(b",") if isinstance(value, str) else [b"\0"]
    except UnicodeEncodeError:
        return False
    return all(b"\0" not in path and len(path) < 4000 and max(map(len, path.split(b"/"))) < 256 for path in paths)


def _mapping(path: Path, key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {key}", found=type(value).__name__, expected="an object", fix=FIX)
    return value

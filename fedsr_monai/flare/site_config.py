"""What a hospital decides by itself: `local/fedsr.json` in its FLARE folder, beside FLARE's own `privacy.json`.

It is a file of its own because FLARE >= 2.8 tells the server what it finds in `resources.json`, and a folder's name is nobody's
business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsr_monai.bundle_path import installed_bundle
from fedsr_monai.errors import UserError

FILE = "fedsr.json"
# fedavg sends the heads too: a site has to allow it.
POLICIES = ("fedsr", "fedrep")
NAME = "{SITE_NAME}"


@dataclass(frozen=True)
class SiteConfig:
    """Where a participant keeps things, and what it allows.

    Attributes:
        state: folder for the states of runs, kept between jobs.
        site: its site folder; None at the server.
        bundles: folders of bundles by name, for bundles that are not part of the package.
        overrides: values for ids of the bundle's configuration that only count here, such as `device`. They win over the job's.
        policies: exchange policies that this site takes part in.
    """

    state: Path
    site: str | None = None
    bundles: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    policies: tuple[str, ...] = POLICIES

    def bundle(self, name: str) -> Path:
        """The folder of the bundle of that name: the one named here, or the one that comes with the package."""
        return Path(self.bundles[name]) if name in self.bundles else installed_bundle(name)


def read_site_config(workspace: str | Path, name: str) -> SiteConfig:
    """Read `local/fedsr.json` below a participant's FLARE folder; the server needs none.

    `{SITE_NAME}` in a path stands for the participant's name, so that sites which share a `local` folder (the simulator's) can
    have one file.

    Args:
        workspace: the participant's FLARE folder, which holds `local`.
        name: of the participant.

    Raises:
        UserError: the file is damaged, has an unknown key, or a path in it is not absolute.
    """
    path = Path(workspace) / "local" / FILE
    content: Any = {}
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8").replace(NAME, name))
        except ValueError as error:
            raise UserError(
                f"{path}: found damaged JSON ({error}), expected an object; write it anew with `fedsr flare-site`"
            ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: found {type(content).__name__}, expected an object; write it anew with `fedsr flare-site`"
        )
    known = ("site", "state", "bundles", "overrides", "policies")
    for key in sorted(set(content) - set(known)):
        raise UserError(f"{path}: {key}: found an unknown key, expected {', '.join(known)}; correct it")
    state = content.get("state", str(Path(workspace).absolute() / "fedsr"))
    paths = {"site": content.get("site"), "state": state, **content.get("bundles", {})}
    for key, value in paths.items():
        if value is not None and not Path(value).is_absolute():
            raise UserError(f"{path}: {key}: found {value!r}, expected an absolute path; correct it")
    policies = tuple(content.get("policies", POLICIES))
    return SiteConfig(Path(state), content.get("site"), content.get("bundles", {}), content.get("overrides", {}), policies)

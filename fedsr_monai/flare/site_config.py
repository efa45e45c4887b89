"""Read a participant's own configuration: `local/fedsr.json` in its FLARE folder, next to FLARE's own `privacy.json`.

It is a separate file because FLARE >= 2.8 sends the content of `resources.json` to the server, and the path of a hospital's data
must not leave the hospital.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsr_monai.bundle_path import installed_bundle
from fedsr_monai.errors import UserError
from fedsr_monai.federation.privacy import Privacy, read_privacy
from fedsr_monai.files import is_there, read_json
from fedsr_monai.run_record import is_path

FILE = "fedsr.json"
# fedavg is missing because it sends the heads too: a site has to allow it explicitly.
POLICIES = ("fedsr", "fedrep", "fedper")
SITE_NAME = "{SITE_NAME}"
KINDS = {"site": str, "state": str, "bundles": dict, "overrides": dict, "policies": list, "privacy": dict}
NAMES = {str: "text", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class SiteConfig:
    """Where a participant keeps its data, and what it allows.

    Attributes:
        state: folder for the states of runs, kept between jobs.
        site: its site folder; None at the server.
        bundles: folders of bundles by name, for bundles that are not part of the package.
        overrides: values for ids of the bundle's configuration that apply at this participant only, such as `device`. They take
            precedence over the job's.
        policies: exchange policies that this site takes part in.
        privacy: clip norms and noise for what this site sends; None for neither. No job can change it.
    """

    state: Path
    site: str | None = None
    bundles: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    policies: tuple[str, ...] = POLICIES
    privacy: Privacy | None = None

    def bundle(self, name: str) -> Path:
        """Return the folder of a bundle: the one configured here, or the one that comes with the package.

        Raises:
            UserError: there is no bundle of that name.
        """
        return Path(self.bundles[name]) if name in self.bundles else installed_bundle(name)


def read_site_config(workspace: str | Path, name: str) -> SiteConfig:
    """Read `local/fedsr.json` below a participant's FLARE folder; the server needs none.

    `{SITE_NAME}` in a path stands for the participant's name, so that sites that share a `local` folder (in the simulator) can
    share the file.

    Args:
        workspace: the participant's FLARE folder, which holds `local`.
        name: the participant's FLARE name.

    Raises:
        UserError: the file is damaged, has an unknown key or a value of the wrong type, or a path in it is not absolute.
    """
    path = Path(workspace) / "local" / FILE
    content: dict[str, Any] = {}
    if is_there(path):
        content = read_json(path, "the configuration of a site", "write it again with `fedsr flare-site`")
        content = json.loads(json.dumps(content).replace(SITE_NAME, name))
    for key, value in content.items():
        if key not in KINDS:
            raise UserError(f"{path}: {key}", found="an unknown key", expected=f"one of {', '.join(KINDS)}")
        if not isinstance(value, KINDS[key]) and value is not None:
            raise UserError(f"{path}: {key}", found=repr(value), expected=NAMES[KINDS[key]])
    content = {key: value for key, value in content.items() if value is not None}
    bundles = content.get("bundles", {})
    state = content.get("state", str(Path(workspace).absolute() / "fedsr"))
    for key, value in {"site": content.get("site"), "state": state, **bundles}.items():
        if value is not None and not (isinstance(value, str) and is_path(value) and Path(value).is_absolute()):
            raise UserError(f"{path}: {key}", found=repr(value), expected="an absolute path")
    policies = tuple(content.get("policies", POLICIES))
    privacy = read_privacy(content.get("privacy"), f"{path}: privacy")
    return SiteConfig(Path(state), content.get("site"), bundles, content.get("overrides", {}), policies, privacy)

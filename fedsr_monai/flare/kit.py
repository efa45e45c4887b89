"""Preparing a participant's FLARE folder: its data, and leave for FLARE to make this package's components."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError
from fedsr_monai.files import write_json
from fedsr_monai.flare.site_config import FILE, NAME, read_site_config
from fedsr_monai.sites.site import load_site

PACKAGE = "fedsr_monai.flare."
ALLOWED = "class_allow_list"


def prepare_kit(kit: str | Path, site: str | Path | None = None, state: str | Path | None = None) -> list[Path]:
    """Write `local/fedsr.json` and the list of allowed classes in `local/resources.json` of a startup kit.

    What these files already say otherwise is kept.

    Args:
        kit: the participant's FLARE folder, which holds `startup` and `local`; for the simulator, its workspace.
        site: the participant's site folder, may hold `{SITE_NAME}`; None for the server.
        state: folder for the states of runs; by default `fedsr` in `kit`.

    Returns:
        The files written.

    Raises:
        UserError: there is no such folder, the site folder breaks the contract, a file is damaged, or FLARE is not installed.
    """
    kit = Path(kit)
    if not kit.is_dir():
        raise UserError(f"{kit}: not found, expected a participant's FLARE folder (startup kit); name it")
    if site is not None and NAME not in str(site):
        load_site(site)
    local = kit / "local"
    content = _read(local / FILE)
    content |= {
        key: str(Path(value).absolute()) for key, value in (("site", site), ("state", state)) if value is not None
    }
    write_json(local / FILE, content)
    read_site_config(kit, "site")
    written = [local / FILE]
    resources = _read(local / "resources.json") or _read(local / "resources.json.default")
    allowed = resources.get(ALLOWED, default_classes())
    if allowed is not None and not any(item in (PACKAGE, "fedsr_monai.", "*") for item in allowed):
        write_json(local / "resources.json", {**resources, ALLOWED: [*allowed, PACKAGE]})
        written.append(local / "resources.json")
    return written


def default_classes() -> list[str] | None:
    """What FLARE allows where a site says nothing: a list since 2.8, everything (None) before."""
    if importlib.util.find_spec("nvflare") is None:
        raise UserError("nvflare: not installed, expected it at every site: pip install 'fedsr-monai[nvflare]'")
    if importlib.util.find_spec("nvflare.app_common.default_component_policy") is None:
        return None
    from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

    return list(DEFAULT_CLASS_ALLOW_LIST)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except ValueError as error:
        raise UserError(f"{path}: found damaged JSON ({error}), expected an object; restore it from a copy") from error
    return content

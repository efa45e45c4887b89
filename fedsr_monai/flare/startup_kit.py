"""Set up a participant's startup kit: name its data, allow this package's components, and let killed job processes be restarted."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError
from fedsr_monai.files import is_there, read_json, write_json
from fedsr_monai.flare.site_config import FILE, SITE_NAME, read_site_config
from fedsr_monai.sites.site import load_site

PACKAGE = "fedsr_monai.flare."
ALLOWED = "class_allow_list"
CLIENT_LAUNCHER = "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher"
RESTARTING_LAUNCHER = PACKAGE + "launcher.RestartingJobLauncher"


def prepare_startup_kit(kit: str | Path, site: str | Path | None = None, state: str | Path | None = None) -> list[Path]:
    """Write `local/fedsr.json` of a startup kit, and the allowed classes and the job launcher to its `local/resources.json`.

    Other entries of these files are kept, and so is any launcher other than FLARE's own for processes (Docker, Kubernetes).

    Args:
        kit: the participant's FLARE folder, which holds `startup` and `local`; for the simulator, its workspace.
        site: the participant's site folder, which may contain `{SITE_NAME}`; None for the server.
        state: folder for the states of runs; by default `fedsr` in `kit`.

    Returns:
        The files written.

    Raises:
        UserError: `kit` does not exist, the site folder violates the contract, a file is damaged, or FLARE is not installed.
    """
    kit = Path(kit)
    if not kit.is_dir():
        raise UserError(
            kit, found="no such folder", expected="a FLARE startup kit", fix="give the participant's folder"
        )
    if site is not None and SITE_NAME not in str(site):
        load_site(site)
    local = kit / "local"
    content = _read(local / FILE)
    paths = {"site": site, "state": state}
    content |= {key: str(Path(value).absolute()) for key, value in paths.items() if value is not None}
    write_json(local / FILE, content)
    read_site_config(kit, "site")
    written = [local / FILE]
    resources = _resources(local / "resources.json") or _resources(local / "resources.json.default")
    changed = restarting(allowing(resources))
    if changed != resources:
        write_json(local / "resources.json", changed)
        written.append(local / "resources.json")
    return written


def allowing(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return FLARE's resources with this package's components among the allowed classes, if FLARE has such a list.

    Raises:
        UserError: FLARE is not installed.
    """
    allowed = resources.get(ALLOWED, default_classes())
    if allowed is None or any(item in (PACKAGE, "fedsr_monai.", "*") for item in allowed):
        return dict(resources)
    return {**resources, ALLOWED: [*allowed, PACKAGE]}


def restarting(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return FLARE's resources with the launcher that restarts killed job processes in place of FLARE's own launcher for sites."""
    components = [
        {**item, "path": RESTARTING_LAUNCHER} if item.get("path") == CLIENT_LAUNCHER else item
        for item in resources.get("components", [])
    ]
    return {**resources, "components": components} if components else dict(resources)


def default_classes() -> list[str] | None:
    """Return the classes that FLARE allows by default: a list since version 2.8, everything (None) before.

    Raises:
        UserError: FLARE is not installed.
    """
    if importlib.util.find_spec("nvflare") is None:
        fix = "run pip install 'fedsr-monai[nvflare]'"
        raise UserError("nvflare", found="no such package", expected="it at every site and at the server", fix=fix)
    if importlib.util.find_spec("nvflare.app_common.default_component_policy") is None:
        return None
    from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

    return list(DEFAULT_CLASS_ALLOW_LIST)


def _resources(path: Path) -> dict[str, Any]:
    content = _read(path)
    components, allowed = content.get("components", []), content.get(ALLOWED)
    lists = isinstance(components, list) and (allowed is None or isinstance(allowed, list))
    if not (lists and all(isinstance(item, dict) for item in components)):
        found, fix = "entries of another form", "restore it from a copy"
        raise UserError(f"{path}: components, {ALLOWED}", found, "lists, as FLARE writes them", fix)
    return content


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "a configuration file of a startup kit", "restore it from a copy") if is_there(path) else {}

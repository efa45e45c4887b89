"""The sites of a study: simulated, semi-real or existing folders, and the same sites with fewer scans."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedsr_monai.errors import UserError
from fedsr_monai.files import write_json
from fedsr_monai.simulation.sites import simulate_sites
from fedsr_monai.sites.contract import read_spec
from fedsr_monai.sites.site import load_site
from fedsr_monai.study.plan import Plan


def study_folders(
    plan: Plan,
    out: Path,
    processes: int,
    anatomies: str | os.PathLike | None = None,
    sites: Sequence[str | os.PathLike] | None = None,
) -> list[Path]:
    """Return the site folders of a study, simulated first where the plan says so.

    Args:
        plan: the study.
        out: its folder, which gets `sites/`.
        processes: worker processes of the simulation.
        anatomies: folder of label maps for semi-real sites (docs/simulate.md).
        sites: site folders to take instead of the plan's.

    Raises:
        UserError: `simulate_sites` cannot make the sites.
    """
    if sites:
        return [Path(folder) for folder in sites]
    if "folders" in plan.sites:
        return [Path(folder) for folder in plan.sites["folders"]]
    settings = {key: value for key, value in plan.sites.items() if key != "anatomies"}
    if anatomies is None:
        settings = {key: value for key, value in settings.items() if key not in ("test_anatomies", "protocols")}
    return simulate_sites(out / "sites", **{**settings, "processes": processes, "anatomies": anatomies})


def check_sources(plan: Plan, anatomies: str | os.PathLike | None, sites: Sequence[str | os.PathLike] | None) -> None:
    """Check that the sites of a study can be made, before its folder is made.

    Raises:
        UserError: the plan needs label maps of people but no folder of them is named, or both site folders and label
            maps are.
    """
    if sites and anatomies is not None:
        raise UserError("sites", found="it and anatomies", expected="one of the two")
    if plan.sites.get("anatomies") and anatomies is None and not sites:
        raise UserError(
            f"study {plan.name}: sites",
            found="no folder of label maps",
            expected="the people that its semi-real sites are made of",
            fix="name the folder with --anatomies, see docs/simulate.md",
        )


def with_fewer_scans(folder: str | os.PathLike, out: Path, scans: int) -> Path:
    """Make a site folder with the first `scans` training scans of another one, using links, and return it.

    Raises:
        UserError: the site has fewer.
    """
    site, spec = load_site(folder), read_spec(Path(folder))
    if len(site.training) < scans:
        raise UserError(
            site.root,
            found=f"{len(site.training)} training scans",
            expected=f"the {scans} that an arm of the study asks for",
        )
    out.mkdir(parents=True, exist_ok=True)
    for entry in site.root.iterdir():
        link = out / entry.name
        if entry.is_dir() and not link.is_symlink():
            link.symlink_to(entry)
    write_json(out / "site.json", {**spec, "training": spec["training"][:scans]})
    return out

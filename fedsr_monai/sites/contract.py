"""The contract of `site.json`: what must be in it, and one error for each thing that is not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsr_monai.checks import is_name, is_number, is_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.files import read_json
from fedsr_monai.spatial.grid import LEAST_VOXELS

SECTIONS = ("training", "validation", "test")
# Limits with room for children, ventricles, generous masks, fields of view that cut the brain, and the larger space of
# templates; heads with their skull have 3 litres and more.
BRAIN_LITRES = (0.4, 2.8)


def read_spec(root: Path) -> dict[str, Any]:
    """Read `site.json` below `root`.

    Raises:
        UserError: the folder or the file is missing, or the file is not a JSON object.
    """
    fix = "write one of your scans with `fedsr prepare`, or a simulated one with `fedsr simulate`"
    if not root.is_dir():
        raise UserError(root, found="no such folder", expected="a site folder with site.json", fix=fix)
    path = root / "site.json"
    if not path.is_file():
        raise UserError(path, found="no such file", expected="the description of the site", fix=fix)
    return read_json(path, "the keys of a site in UTF-8", "fix the file, see the README's site folder")


def site_faults(root: Path, spec: Mapping[str, Any]) -> dict[str, UserError]:
    """Return every violation of the contract in `site.json`, by key (`labels`, `training[0].image`).

    Files are only checked for existence, not opened.
    """
    faults: dict[str, UserError] = {}

    def fault(key: str, found: str, expected: str, fix: str) -> None:
        faults[key] = UserError(f"{root / 'site.json'}: {key}", found, expected, fix)

    for key, (valid, expected, fix) in _TOP.items():
        if key not in spec:
            fault(key, "nothing", expected, fix)
        elif not valid(spec[key]):
            fault(key, _short(spec[key]), expected, fix)

    first_use: dict[str, str] = {}
    for where, entry in section_entries(spec):
        if not isinstance(entry, dict):
            if where != "atlas":  # the atlas has been judged above
                fault(where, _short(entry), "an object with 'image'", 'write {"image": "images/NAME.nii.gz"}')
            continue
        known = entry_kinds(where)
        for key in sorted(set(entry) - set(known)):
            names = ", ".join(f"'{kind}'" for kind in known[:-1]) + f" and '{known[-1]}'"
            fault(f"{where}.{key}", "an unknown key", f"only {names}", "remove or rename it")
        for key in known:
            if key not in entry:
                if key == "image" or (key == "label" and not where.startswith("training")):
                    fault(f"{where}.{key}", "nothing", "a path below the site folder", f"add the {key} of this case")
                continue
            problem = _path_fault(root, entry[key])
            if problem:
                fault(f"{where}.{key}", *problem)
                continue
            path = os.path.normpath(entry[key])
            if path in first_use:
                found = f"{path}, which {first_use[path]} names too"
                fault(f"{where}.{key}", found, "each file once", "remove one of the two entries")
            first_use.setdefault(path, f"{where}.{key}")
    return faults


def entry_kinds(where: str) -> tuple[str, ...]:
    """Return the keys that an entry of `site.json` may have; `where` is the entry's own key (see `section_entries`)."""
    return ("image", "label", "fine_label") if where == "atlas" else ("image", "label")


def section_entries(spec: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the entries of `site.json` with their keys: `atlas`, `training[0]`, `training[1]` and so on."""
    entries = [("atlas", spec.get("atlas"))]
    for section in SECTIONS:
        rows = spec.get(section)
        entries += [(f"{section}[{i}]", row) for i, row in enumerate(rows)] if isinstance(rows, list) else []
    return entries


def _path_fault(root: Path, value: object) -> tuple[str, str, str] | None:
    """Return found, expected and fix of a bad path; None for a good one. Links are followed: a site may link to an archive."""
    if not isinstance(value, str) or not value:
        return _short(value), "a path below the site folder", "write it as text"
    if os.path.isabs(value):
        return (
            f"the absolute path {value}",
            "a path relative to the site folder",
            "move or link the file into the folder",
        )
    if os.path.normpath(value).split(os.sep)[0] == "..":
        return f"{value}, outside the site folder", "a path below it", "move or link the file into the folder"
    if not os.path.isfile(root / value):
        return f"{value}, which does not exist", "an existing file", "restore the file or remove the entry"
    return None


def _is_label_table(value: object) -> bool:
    if not isinstance(value, dict) or not all(isinstance(name, str) and name for name in value.values()):
        return False
    # channel k of the network is label k, so gaps would leave channels without a meaning
    return set(value) == {str(k) for k in range(len(value))} and 2 <= len(value) <= 256


def _is_triple(value: object, valid) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(valid(v) for v in value)


_TOP = {
    "name": (
        is_name,
        "a name of at most 100 letters, digits, '.', '_' and '-'",
        "choose one, it names the site's folders in every run",
    ),
    "labels": (
        _is_label_table,
        "ids '0' to 'N' without a gap, each with a name",
        "list all structures, background as '0'",
    ),
    "spacing": (
        lambda v: _is_triple(v, lambda s: is_number(s) and s > 0),
        "three numbers above 0 (mm)",
        "write the voxel size of the images",
    ),
    "shape": (
        lambda v: _is_triple(v, lambda s: is_whole_number(s, 1)) and max(v) >= LEAST_VOXELS,
        f"three whole numbers above 0, the largest of them {LEAST_VOXELS} or more",
        "write the number of voxels of the images along x, y, z",
    ),
    "atlas": (lambda v: isinstance(v, dict), "an object with 'image' and 'label'", "name the atlas' two files"),
    "training": (
        lambda v: isinstance(v, list) and len(v) > 0,
        "a list of at least one scan",
        "add a scan of this site",
    ),
    "validation": (lambda v: isinstance(v, list), "a list of scans", "write [] if there is none"),
    "test": (lambda v: isinstance(v, list), "a list of scans", "write [] if there is none"),
}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

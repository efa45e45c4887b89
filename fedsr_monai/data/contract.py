"""The contract of `site.json`: what must be in it, and one line for each thing that is not."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

from fedsr_monai.errors import UserError

SECTIONS = ("training", "validation", "test")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_json(root: Path) -> object:
    """The content of `site.json` below `root`.

    Raises:
        UserError: there is no such folder or file, or it is not JSON.
    """
    cure = "write one of your scans with `fedsr prepare`, or a simulated one with `fedsr simulate`"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, expected a site folder with site.json: {cure}")
    path = root / "site.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the description of the site: {cure}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: unreadable ({error}), expected JSON in UTF-8: mend the file at that place") from None


def site_faults(root: Path, spec: object) -> list[str]:
    """Everything in `site.json` that breaks the contract, one line each; files are only looked for, not opened."""
    where = root / "site.json"
    if not isinstance(spec, dict):
        return [
            f"{where}: holds {_kind(spec)}, expected an object with the keys of a site: see the README's site folder"
        ]
    faults = []

    def fault(key: str, found: str, expected: str, cure: str) -> None:
        faults.append(f"{where}: '{key}' {found}, expected {expected}: {cure}")

    for key, (valid, expected, cure) in _TOP.items():
        if key not in spec:
            fault(key, "is missing", expected, cure)
        elif not valid(spec[key]):
            fault(key, f"is {_short(spec[key])}", expected, cure)

    entries = [("atlas", spec.get("atlas"))]
    for section in SECTIONS:
        rows = spec.get(section)
        entries += [(f"{section}[{i}]", row) for i, row in enumerate(rows)] if isinstance(rows, list) else []
    first_use: dict[str, str] = {}
    for place, entry in entries:
        if not isinstance(entry, dict):
            if place != "atlas":  # the atlas has been judged above
                fault(place, f"is {_short(entry)}", "an object with 'image'", 'write {"image": "images/NAME.nii.gz"}')
            continue
        for key in sorted(set(entry) - {"image", "label"}):
            fault(f"{place}.{key}", "is unknown", "only 'image' and 'label'", "remove or rename it")
        for key in ("image", "label"):
            if key not in entry:
                if key == "image" or not place.startswith("training"):
                    fault(f"{place}.{key}", "is missing", "a path below the site folder", f"add the {key} of this case")
                continue
            problem = _path_fault(root, entry[key])
            if problem:
                fault(f"{place}.{key}", *problem)
                continue
            path = os.path.normpath(entry[key])
            if path in first_use:
                fault(
                    f"{place}.{key}",
                    f"is {path}, as is '{first_use[path]}'",
                    "each file once",
                    "remove one of the two entries",
                )
            first_use.setdefault(path, f"{place}.{key}")
    return faults


def _path_fault(root: Path, value: object) -> tuple[str, str, str] | None:
    """Found, expected, cure; None for a good path. Links are followed: a site may link to an archive outside."""
    if not isinstance(value, str) or not value:
        return f"is {_short(value)}", "a path below the site folder", "write it as text"
    if os.path.isabs(value):
        return (
            f"is the absolute path {value}",
            "a path relative to the site folder",
            "move or link the file into the folder",
        )
    if os.path.normpath(value).split(os.sep)[0] == "..":
        return f"is {value}, outside the site folder", "a path below it", "move or link the file into the folder"
    if not os.path.isfile(root / value):
        return f"is {value}, which is not there", "an existing file", "restore the file or remove the entry"
    return None


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_label_table(value: object) -> bool:
    if not isinstance(value, dict) or not all(isinstance(name, str) and name for name in value.values()):
        return False
    # channel k of the network is label k: gaps would leave channels without a meaning
    return set(value) == {str(k) for k in range(len(value))} and 2 <= len(value) <= 256


def _is_triple(value: object, valid) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(valid(v) for v in value)


_TOP = {
    "name": (
        lambda v: isinstance(v, str) and _NAME.fullmatch(v) is not None,
        "a name of letters, digits, '.', '_' and '-'",
        "choose one, it names the site's folders in every run",
    ),
    "labels": (
        _is_label_table,
        "ids '0' to 'N' without a gap, each with a name",
        "list all structures, background as '0'",
    ),
    "spacing": (
        lambda v: _is_triple(v, lambda s: _number(s) and s > 0),
        "three numbers above 0 (mm)",
        "write the voxel size of the images",
    ),
    "shape": (
        lambda v: _is_triple(v, lambda s: isinstance(s, int) and not isinstance(s, bool) and s > 0),
        "three whole numbers above 0",
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


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true/false", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Find the site folders that people name on a command line."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from fedsr_monai.errors import UserError


def expand_sites(names: Sequence[str]) -> list[str]:
    """Return the site folders that `names` stand for, each once, in order.

    A name is a site folder, a folder that holds site folders, a pattern such as `sites/*`, or several of these
    separated by commas. A folder that is not a site is returned too, because the function that reads it says what is
    missing. So is a folder beside sites that has an atlas but no site.json: it is a site that is incomplete or has lost
    that file.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: list[str] = []
    for name in (part.strip() for text in names for part in text.split(",")):
        if glob.has_magic(name) and not Path(name).exists():
            matches = sorted(path for path in glob.glob(name) if Path(path, "site.json").is_file())
            if not matches:
                raise UserError(name, "no match", "site folders, which contain a site.json", "correct the pattern")
            found += matches
        elif name:
            below = []
            if not Path(name, "site.json").exists() and any(Path(name).glob("*/site.json")):
                below = sorted(
                    {str(file.parent) for kind in ("site.json", "atlas") for file in Path(name).glob(f"*/{kind}")}
                )
            found += below or [name]
    if not found:
        raise UserError("sites", "none", "at least one site folder", "name one")
    return list(dict.fromkeys(found))

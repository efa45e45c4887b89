"""Write the job that a coordinator submits: three JSON files without code or paths."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError
from fedsr_monai.flare.recipe import FedSRRecipe


def export_job(out: str | Path, sites: Sequence[str] | Mapping[str, int | None], rounds: int, **options: Any) -> Path:
    """Write a FLARE job.

    Args:
        out: folder of the job; its name is the job's. A job that is already there is replaced.
        sites, rounds, options: see `FedSRRecipe`.

    Returns:
        `out`.

    Raises:
        UserError: an argument is wrong, or `out` holds something other than a job.
    """
    out = Path(out).absolute()
    recipe = FedSRRecipe(out.name, rounds, sites, **options)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "meta.json").is_file())):
        raise UserError(out, found="something else", expected="a job or nothing", fix="choose another folder")
    try:
        if out.exists():
            shutil.rmtree(out)
    except OSError as error:
        found, fix = f"a job that cannot be replaced ({error.strerror})", "make it writable, or choose another folder"
        raise UserError(out, found, expected="a job that may be replaced", fix=fix) from None
    recipe.export(str(out.parent))
    return out

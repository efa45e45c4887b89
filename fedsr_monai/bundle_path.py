"""Where the bundles are (beside the package in a checkout, inside it when installed from a wheel), and the ids of their configurations."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedsr_monai.errors import UserError


def bundle_path(bundle: str | os.PathLike) -> Path:
    """Return the absolute folder of a bundle, by name ("fedsr_encoder", "fedsr_site") or as the path of a folder.

    Raises:
        UserError: none of the folders that it may be has a configs/train.json.
    """
    if (Path(bundle) / "configs" / "train.json").is_file():
        return Path(bundle).absolute()
    return installed_bundle(bundle)


def installed_bundle(name: str | os.PathLike) -> Path:
    """Return the absolute folder of a bundle that comes with the package.

    Raises:
        UserError: there is none of that name.
    """
    package = Path(__file__).parent
    for folder in (package.parent / "bundles" / name, package / "bundles" / name):
        if (folder / "configs" / "train.json").is_file():
            return folder.absolute()
    raise UserError(
        "bundle",
        found=f"no {Path(name) / 'configs' / 'train.json'}",
        expected="a bundle",
        fix="give the folder of one, fedsr_encoder or fedsr_site",
    )


def check_overrides(files: Sequence[str | os.PathLike], overrides: Mapping[str, Any]) -> None:
    """Refuse values for ids that none of the configuration files has: they would be added, and then ignored.

    Raises:
        UserError: an id is unknown, or a value is not plain JSON.
    """
    config = {key: value for file in files for key, value in ConfigParser.load_config_file(file).items()}
    try:
        json.dumps(overrides)
    except TypeError as error:
        found = f"a value that is not plain JSON ({error})"
        raise UserError("overrides", found, expected="numbers, text or lists") from None
    for key in overrides:
        first = key.replace("::", "#").split("#")[0]
        if first not in config:
            near = difflib.get_close_matches(first, config, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(config))}"
            raise UserError(f"overrides: {key}", f"no such id in {Path(files[0])}", "one of its ids", fix)

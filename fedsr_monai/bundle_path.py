"""Where the bundles lie: beside the package in a checkout, inside it when installed from a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from fedsr_monai.errors import UserError


def bundle_path(bundle: str | os.PathLike) -> Path:
    """The absolute folder of a bundle, by name ("fedsr_encoder", "fedsr_site") or as the path of a folder.

    Raises:
        UserError: there is no configs/train.json below any of the places.
    """
    package = Path(__file__).parent
    for place in (Path(bundle), package.parent / "bundles" / bundle, package / "bundles" / bundle):
        if (place / "configs" / "train.json").is_file():
            return place.absolute()
    raise UserError(
        f"bundle: found no {Path(bundle) / 'configs' / 'train.json'}, expected a bundle; "
        "give the folder of one, fedsr_encoder or fedsr_site"
    )

"""Where the bundles are (beside the package in a checkout, inside it when installed from a wheel), and their files."""

from __future__ import annotations

import os
from pathlib import Path

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError


def bundle_path(bundle: str | os.PathLike) -> Path:
    """Return the absolute folder of a bundle, by name ("fedsr_encoder", "fedsr_site") or as the path of a folder.

    Raises:
        UserError: no folder of that name or path has a configs/train.json.
    """
    if (Path(bundle) / "configs" / "train.json").is_file():
        return Path(bundle).absolute()
    return installed_bundle(bundle)


def installed_bundle(name: str | os.PathLike) -> Path:
    """Return the absolute folder of a bundle that comes with the package.

    Raises:
        UserError: there is no such bundle.
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


def training_files(root: Path, baseline: str | None = None) -> list[Path]:
    """Return the files of a bundle's training configuration; later files override earlier ones.

    Args:
        root: folder of the bundle.
        baseline: a method that replaces FedSR: the name of a file in `configs/baselines/`, without its extension.

    Raises:
        UserError: the bundle has no such baseline.
    """
    files = [root / "configs" / "train.json"]
    if baseline is not None:
        known = {path.stem: path for path in sorted((root / "configs" / "baselines").glob("*.json"))}
        check_choice("baseline", baseline, known)
        files.append(known[baseline])
    return files

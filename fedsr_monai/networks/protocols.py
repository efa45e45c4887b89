"""Label protocols: whose borders a segmentation head follows, and where a bundle keeps the head.

Each protocol has its own segmentation head on the shared encoder. The head in the bundle's `model.pt` is that of Neuromorphometrics. The head
of another protocol is a separate file in the same folder, and replaces it. Structures and ids are the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedsr_monai.checks import check_choice
from fedsr_monai.errors import UserError

NEUROMORPHOMETRICS, FREESURFER = "neuromorphometrics", "freesurfer"
HEADS: dict[str, str | None] = {NEUROMORPHOMETRICS: None, FREESURFER: "freesurfer.safetensors"}  # next to model.pt


def is_own(ckpt_path: str | os.PathLike, bundle_root: str | os.PathLike) -> bool:
    """Return whether a checkpoint is the one that comes with the bundle."""
    return Path(ckpt_path).resolve() == Path(bundle_root, "models", "model.pt").resolve()


def protocol_head(
    protocol: str,
    bundle_root: str | os.PathLike,
    ckpt_path: str | os.PathLike,
    dataset_dir: object = None,
) -> Path | None:
    """Return the file of the segmentation head for a protocol; None for the head in the bundle's `model.pt`.

    Args:
        protocol: a key of `HEADS`.
        bundle_root: folder of the bundle.
        ckpt_path: checkpoint of the network.
        dataset_dir: site folders, if any.

    Raises:
        UserError: there is no such protocol or no such file, or a site or other weights than the bundle's are given.
    """
    check_choice("--protocol", protocol, HEADS)
    file = HEADS[protocol]
    if file is None:
        return None
    models = Path(bundle_root) / "models"
    where, expected = f"--protocol {protocol}", "the bundle's own weights and atlas"
    reason = "a site's atlas and heads decide its protocol"
    if dataset_dir:
        fix = f"leave out --protocol or --site (dataset_dir): {reason}"
        raise UserError(where, found=f"the site {dataset_dir}", expected=expected, fix=fix)
    if not is_own(ckpt_path, bundle_root):
        fix = f"leave out --protocol or --weights (ckpt_path): {reason}"
        raise UserError(where, found=f"the weights {ckpt_path}", expected=expected, fix=fix)
    if not (models / file).is_file():
        fix = "leave --protocol out, or restore the file"
        raise UserError(models / file, found="no such file", expected=f"the head of --protocol {protocol}", fix=fix)
    return models / file

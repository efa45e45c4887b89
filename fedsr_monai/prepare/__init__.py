"""Preparation of raw scans: brain mask, bias field, affine map to the atlas; needs ITK. No training, no labelling."""

from __future__ import annotations

import importlib.util

from fedsr_monai.errors import UserError


def require_itk() -> None:
    """Check that ITK is installed, before any of the modules here imports it.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("SimpleITK") is None:
        raise UserError(
            "package SimpleITK", "no installation", "one, for raw scans", "run `pip install 'fedsr-monai[itk]'`"
        )

"""From raw scans to a site folder, and raw scans in inference: brain mask, bias field, affine map to the atlas. Needs ITK."""

from __future__ import annotations

import importlib.util

from fedsr_monai.errors import UserError


def require_itk() -> None:
    """Refuse to go on without ITK, before any of the modules here imports it.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("itk") is None:
        raise UserError("package itk: not installed, expected for raw scans: pip install 'fedsr-monai[itk]'")

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk

from tests.helpers.raw_scans import atlas, raw_scan, save

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """Raw scans side by side: two labelled, one not, one with a wrong header."""
    folder = tmp_path_factory.mktemp("raw")
    source = atlas(3.0, (64, 72, 64))
    for seed, name in enumerate(("ann", "bob", "eve")):
        volume, label, grid, _ = raw_scan(seed, source=source)
        save(folder / f"{name}.nii.gz", volume, grid.affine)
        if name != "eve":
            save(folder / f"{name}_dseg.nii.gz", label, grid.affine)
    flip = grid.affine.copy()
    flip[2] *= -1
    save(folder / "flip.nii.gz", volume, flip)
    return folder

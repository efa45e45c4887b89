from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume
from tests.helpers.specimen import AFFINE, labels, scan


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A sound site folder: two training scans, one for validation, one for the test."""
    root = tmp_path / "ward"
    for seed, name in enumerate(["a", "b", "c", "d"]):
        write_volume(root / f"images/{name}.nii.gz", scan(seed), AFFINE)
        write_volume(root / f"labels/{name}.nii.gz", labels(), AFFINE)
    both = [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"} for name in "cd"]
    training = [{"image": f"images/{name}.nii.gz"} for name in "ab"]
    return write_site(root, "ward", scan(9), labels(), AFFINE, training, both[:1], both[1:])


@pytest.fixture
def edit(site: Path):
    """Change the parsed site.json in place: `edit(lambda spec: ...)`."""

    def change(function) -> None:
        spec = json.loads((site / "site.json").read_text())
        function(spec)
        (site / "site.json").write_text(json.dumps(spec))

    return change

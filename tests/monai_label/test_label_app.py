"""The app without its server; needs the environment of `make label-env`."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.monai_label.app import make_app
from tests.helpers.raw_scans import raw_scan, save

pytest.importorskip("monailabel", reason="needs the environment of `make label-env`")


def test_a_whole_head_anywhere_in_space_is_labelled(tmp_path):
    from fedsr_monai.monai_label.startup import sitecustomize  # noqa: F401  (as in the server's processes)

    from fedsr_monai.monai_label.label_app import RAW, LabelApp  # isort: skip

    make_app(tmp_path / "app")
    head, truth, grid, _ = raw_scan(1, skull=True)
    save(tmp_path / "scans" / "head.nii.gz", head, grid.affine)
    app = LabelApp(str(tmp_path / "app"), str(tmp_path / "scans"), {})
    result = app.infer({"model": RAW, "image": "head"})
    image = nib.load(result["file"])
    labels = np.asarray(image.dataobj)
    assert labels.shape == truth.shape and np.allclose(image.affine, grid.affine, atol=1e-4)
    for number in (2, 3, 4, 10, 13):  # large structures
        overlap = (
            2 * ((labels == number) & (truth == number)).sum() / ((labels == number).sum() + (truth == number).sum())
        )
        assert overlap > 0.6, (number, overlap)
    assert result["params"]["label_names"]["cerebellar white matter"] == 5
    assert result["params"]["quality"]["verdict"] in ("good", "doubtful")
    Path(result["file"]).unlink()

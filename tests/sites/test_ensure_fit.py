"""Sites are checked before anything trains on them or is measured on them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.benchmark.accuracy import run_accuracy
from fedsr_monai.errors import UserErrors
from fedsr_monai.evaluation.run import evaluate
from fedsr_monai.federation.runner import federate
from fedsr_monai.personalisation import personalise
from fedsr_monai.sites import check as module
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.site import load_site
from fedsr_monai.spatial.nifti import write_volume
from tests.helpers.specimen import AFFINE, labels, scan


def with_nan(root):
    volume = scan(0).copy()
    volume[5, 5, 5] = np.nan
    write_volume(root / "images/a.nii.gz", volume, AFFINE)


def constant(root):
    write_volume(root / "images/a.nii.gz", np.full((17, 16, 16), 0.5, np.float32), AFFINE)


def four_dimensions(root):
    nib.save(nib.Nifti1Image(np.stack([scan(0)] * 2, -1), AFFINE), root / "images/a.nii.gz")


def cut_tail(root):
    content = (root / "images/a.nii.gz").read_bytes()
    (root / "images/a.nii.gz").write_bytes(content[:-4])


def label(value, dtype):
    def change(root):
        volume = labels().astype(dtype)
        volume[5, 5, 5] = value
        write_volume(root / "labels/d.nii.gz", volume, AFFINE)

    return change


CASES = {
    "NaN": (with_nan, "a.nii.gz", "NaN or infinite"),
    "constant": (constant, "a.nii.gz", "constant"),
    "4-D": (four_dimensions, "a.nii.gz", "the shape (17, 16, 16, 2)"),
    "cut gzip tail": (cut_tail, "a.nii.gz", "broken gzip stream"),
    "label 14": (label(14, np.uint8), "d.nii.gz", "unknown label ids 14"),
    "label -1": (label(-1, np.int16), "d.nii.gz", "unknown label ids -1"),
    "label 1.5": (label(1.5, np.float32), "d.nii.gz", "the label 1.5"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unfit_site_is_refused(site, case):
    spoil, name, found = CASES[case]
    ensure_fit([site])
    spoil(site)
    with pytest.raises(UserErrors) as caught:
        ensure_fit([site])
    (fault,) = caught.value.errors
    assert fault.where.endswith(f"/{name}") and fault.found.find(found) >= 0


COMMANDS = {
    "federate": lambda site, out: federate([site], out, rounds=1),
    "evaluate": lambda site, out: evaluate(site, out, progress=False),
    "benchmark": lambda site, out: run_accuracy([site], out, methods=()),
    "personalise": lambda site, out: personalise(site, None, out, epochs=1),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_every_violation_and_write_nothing(site, tmp_path, command):
    with_nan(site)
    label(14, np.uint8)(site)
    with pytest.raises(UserErrors) as caught:
        COMMANDS[command](site, tmp_path / "out")
    assert [fault.where.rsplit("/", 1)[1] for fault in caught.value.errors] == ["a.nii.gz", "d.nii.gz"]
    assert not (tmp_path / "out").exists()


def test_a_file_is_opened_once_until_it_changes(site, monkeypatch):
    opened = []
    monkeypatch.setattr(
        module, "read_volume", lambda path, read=module.read_volume: opened.append(path.name) or read(path)
    )
    ensure_fit([site, site])
    volumes = ["image", "label", "a", "b", "c", "c", "d", "d"]  # of the atlas, of training, validation and test
    assert opened == [f"{name}.nii.gz" for name in volumes]
    ensure_fit([load_site(site)])
    assert len(opened) == len(volumes)
    with_nan(site)
    with pytest.raises(UserErrors, match=r"a\.nii\.gz: found 1 voxels that are NaN"):
        ensure_fit([site])
    assert opened[len(volumes) :] == ["a.nii.gz"]

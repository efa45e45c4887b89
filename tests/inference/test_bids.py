from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.inference import bids
from fedsr_monai.inference.run import Result
from fedsr_monai.inference.segment import segment
from fedsr_monai.networks import FedSRNet
from tests.helpers.read_aligned import ReadAligned

pytest.importorskip("SimpleITK", reason="ITK is not installed")
FIRST = "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"
SECOND = "sub-02/anat/sub-02_acq-fast_T1w.nii.gz"
LOST = "sub-03/anat/sub-03_T1w.nii.gz"  # a link to what was not downloaded


@pytest.fixture
def dataset(tmp_path, site_folder) -> Path:
    root, source = tmp_path / "dataset", site_folder("source")
    for number, path in enumerate((FIRST, SECOND)):
        (root / path).parent.mkdir(parents=True)
        shutil.copy(source / f"images/training{number}.nii.gz", root / path)
    (root / LOST).parent.mkdir(parents=True)
    (root / LOST).symlink_to("../../.git/annex/objects/missing")
    (root / "dataset_description.json").write_text('{"Name": "two heads", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def run(tmp_path, dataset, site_folder, knows_both, monkeypatch):
    """`segment` with a network whose heads answer with the labels of the phantom."""
    site = site_folder()
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr("fedsr_monai.inference.run.LoadRaw", ReadAligned)

    def call(**options) -> list[Result]:
        results: list[Result] = []
        options = {"quality": False, "progress": False, "weights": tmp_path / "model.pt", "site": site} | options
        try:
            segment([dataset], tmp_path / "derivatives", on_result=results.append, **options)
        except UserErrors as error:
            call.errors = error.errors
        return results

    return call


def test_a_dataset_becomes_a_derivatives_dataset(run, dataset, tmp_path):
    out = tmp_path / "derivatives"
    results = run(register=True)
    assert [str(error).split(": ")[0] for error in run.errors] == [str(dataset / LOST)]
    assert "datalad get" in str(run.errors[0])
    assert [result.labels.relative_to(out).as_posix() for result in results] == [
        "sub-01/ses-a/anat/sub-01_ses-a_desc-fedsr_dseg.nii.gz",
        "sub-02/anat/sub-02_acq-fast_desc-fedsr_dseg.nii.gz",
    ]
    folder = out / "sub-01/ses-a/anat"
    assert {file.name for file in folder.iterdir()} == {
        *(
            f"sub-01_ses-a_desc-{name}_dseg{suffix}"
            for name in ("fedsr", "fedsrAtlas")
            for suffix in (".nii.gz", ".tsv", ".json")
        ),
        *(f"sub-01_ses-a_from-atlas_to-T1w_mode-image_xfm{suffix}" for suffix in (".nii.gz", ".json")),
    }
    assert all(file.is_file() for result in results for file in result.files)
    scan, labels = nib.load(dataset / FIRST), nib.load(results[0].labels)
    assert labels.shape == scan.shape and np.array_equal(labels.affine, scan.affine)
    sidecar = json.loads((folder / "sub-01_ses-a_desc-fedsr_dseg.json").read_text())
    assert sidecar["Sources"] == [f"bids:raw:{FIRST}"]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "fedsr-monai"
    with open(out / "volumes.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["participant_id"], row["session_id"], row["source"]) for row in rows] == [
        ("sub-01", "ses-a", FIRST), ("sub-02", "n/a", SECOND),
    ]  # fmt: skip
    voxels = (np.asarray(labels.dataobj) == 3).sum() * abs(np.linalg.det(labels.affine[:3, :3])) / 1000
    assert float(rows[0]["cerebral_cortex_ml"]) == pytest.approx(voxels, abs=1e-3)
    assert (out / "sub-01/figures/sub-01_ses-a_desc-alignment_T1w.png").is_file()


def test_names_follow_the_schema_of_bids(run, tmp_path):
    """Every file has a name of the standard, or `.bidsignore` lists it."""
    rules = pytest.importorskip("bidsschematools.rules", reason="bids-validator is not installed")
    from bidsschematools.schema import load_schema

    run(register=True)
    out, schema = tmp_path / "derivatives", load_schema()
    groups = (schema.rules.files.common, schema.rules.files.raw, schema.rules.files.deriv)
    expressions = [rule["regex"] for group in groups for rule in rules.regexify_filename_rules(group, schema, level=2)]
    ignored = (out / ".bidsignore").read_text().split()
    for file in out.rglob("*"):
        path = file.relative_to(out)
        known = any(re.fullmatch(expression, path.as_posix()) for expression in expressions)
        listed = any(part.match(line) for part in (path, *path.parents) for line in [*ignored, ".bidsignore"])
        assert file.is_dir() or known or listed, path
        assert not (known and listed and path.suffix == ".gz"), path


def test_it_resumes(run, dataset, tmp_path):
    out = tmp_path / "derivatives"
    first, second = (result.labels for result in run())
    stamps = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    assert [result.labels for result in run()] == [first, second]
    assert (first.stat().st_mtime_ns, second.stat().st_mtime_ns) == stamps  # complete
    second.unlink()
    run()
    assert first.stat().st_mtime_ns == stamps[0] and second.is_file()
    shutil.copy(dataset / SECOND, dataset / FIRST)  # another image: it is labelled again
    run()
    assert first.stat().st_mtime_ns != stamps[0]
    run(register=True)  # other options as well
    assert list(out.rglob("*_xfm.nii.gz"))


def test_participants_and_sessions_are_chosen(run):
    assert [result.scan.name for result in run(participants=["sub-01", "02"])] == ["sub-01_ses-a", "sub-02_acq-fast"]
    assert [result.scan.name for result in run(sessions=["ses-a"])] == ["sub-01_ses-a"]
    with pytest.raises(UserError, match="--participant_label: found 04, expected .*01, 02, 03"):
        run(participants=["04"])


def test_a_folder_without_a_dataset_has_no_participants(tmp_path):
    (tmp_path / "flat").mkdir()
    assert not bids.is_dataset([tmp_path / "flat"]) and not bids.is_dataset([tmp_path, tmp_path])
    with pytest.raises(UserError, match="--participant_label"):
        segment([tmp_path / "flat"], tmp_path / "out", participants=["01"])

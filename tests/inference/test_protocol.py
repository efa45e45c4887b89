"""Two label protocols: one more segmentation head, and the atlas labels that it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from fedsr_monai.atlas.standard import standard_atlas, standard_grid
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.inference import run as module
from fedsr_monai.inference.ledger import Ledger
from fedsr_monai.inference.prediction import label
from fedsr_monai.inference.quality import Quality
from fedsr_monai.inference.segment import segment
from fedsr_monai.inference.workflow import load_workflow
from fedsr_monai.labels.agreement import agreement
from fedsr_monai.networks.protocols import HEADS
from tests.helpers.dicom_series import write_series
from tests.helpers.read_aligned import ReadAligned

AMYGDALA = 12  # what the head for FreeSurfer says everywhere


@pytest.fixture(autouse=True)
def atlas(monkeypatch, phantom):
    """The phantom stands for the project's atlas."""
    monkeypatch.setattr(module, "get_atlas", lambda *_: phantom)
    monkeypatch.setattr(module, "native_atlas", lambda: (*phantom, standard_grid(6.0, (32, 32, 32))))


@pytest.fixture
def scan(site_folder) -> Path:
    return site_folder() / "images" / "training0.nii.gz"


@pytest.fixture
def run(two_heads, tmp_path):
    def run(*scans: Path, **options) -> list[Path]:
        options = {"bundle": two_heads, "quality": False, "progress": False} | options
        return segment(scans, tmp_path / "out", **options)

    return run


def values(path: Path) -> set[int]:
    return set(np.unique(nib.load(path).dataobj).tolist())


def settings(out: Path, name: str) -> dict:
    return Ledger(out).results()[name]["settings"]


def test_the_head_of_the_protocol_labels_the_scan_and_the_atlas(run, scan, tmp_path, capsys):
    out = tmp_path / "out"
    (default,) = run(scan, register=True)
    by_the_first, own = nib.load(default).get_fdata(), values(out / "atlas" / "label.nii.gz")
    assert settings(out, "training0")["protocol"] == "neuromorphometrics" and own == set(range(14))
    (other,) = run(
        scan, register=True, protocol="freesurfer"
    )  # over the files of the first: they are this program's own
    assert other == default and values(other) == {AMYGDALA} != set(np.unique(by_the_first))
    assert values(out / "atlas" / "label.nii.gz") == {AMYGDALA} <= values(out / "training0_atlas-dseg.nii.gz")
    assert settings(out, "training0")["protocol"] == "freesurfer" and settings(out, "training0")["head"]
    assert "cannot be compared" not in capsys.readouterr().err
    other.unlink()
    other.write_text("corrected by hand")
    with pytest.raises(UserError, match="a file that was changed since it was written"):
        run(scan)
    shutil.copy(scan, tmp_path / "second.nii.gz")
    run(tmp_path / "second.nii.gz", protocol="neuromorphometrics")
    assert f"{out}: holds results of protocol freesurfer too" in capsys.readouterr().err


def test_results_are_judged_by_atlas_labels_of_the_protocol(run, scan, monkeypatch):
    seen = []

    def judge(workflow, *_) -> Quality:
        seen.append(set(workflow.network.atlas_label.unique().tolist()))
        return Quality(1.0, 1.0, 0.0, 0.0)

    monkeypatch.setattr(module, "judge", judge)
    run(scan, quality=True)
    run(scan, quality=True, protocol="freesurfer")
    assert seen == [set(range(14)), {AMYGDALA}]


def test_it_is_the_bundle_s_inference(run, two_heads, scan, tmp_path):
    (written,) = run(scan, protocol="freesurfer")
    workflow = ConfigWorkflow(
        config_file=str(two_heads / "configs" / "inference.json"), logging_file=False, workflow_type="infer",
        run_id="inference", bundle_root=str(two_heads), output_dir=str(tmp_path / "bundle"), protocol="freesurfer",
        device="$torch.device('cpu')", **{"dataset#data": [{"image": str(scan)}]},
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    assert written.read_bytes() == (tmp_path / "bundle" / written.name).read_bytes()


def test_what_does_not_go_together_is_refused_before_any_work(run, two_heads, scan, site_folder, tmp_path):
    shutil.copy(two_heads / "models" / "model.pt", tmp_path / "own.pt")
    bare = tmp_path / "bare"
    shutil.copytree(two_heads, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    for options, words in (
        ({"protocol": "aal"}, "^--protocol: found 'aal', expected one of neuromorphometrics, freesurfer"),
        ({"site": site_folder("other")}, "^--protocol freesurfer: found the site .*--site.*a site's atlas and heads"),
        ({"weights": tmp_path / "own.pt"}, "^--protocol freesurfer: found the weights .*--weights.*a site's atlas"),
        ({"bundle": "fedsr_encoder"}, "^--protocol freesurfer: found a head for neuromorphometrics alone"),
        ({"bundle": bare}, "freesurfer.safetensors: found no such file, expected the head of --protocol freesurfer"),
    ):
        with pytest.raises(UserError, match=words):
            run(scan, **{"protocol": "freesurfer"} | options)
    assert not (tmp_path / "out").exists()
    run(scan, weights=tmp_path / "own.pt")  # whose borders these have is not known
    assert settings(tmp_path / "out", "training0")["protocol"] is None


def test_a_dataset_is_labelled_again_in_another_protocol_and_says_which(run, scan, tmp_path, monkeypatch):
    pytest.importorskip("SimpleITK", reason="ITK is not installed")
    monkeypatch.setattr(module, "LoadRaw", ReadAligned)
    root, out = tmp_path / "dataset", tmp_path / "out"
    (root / "sub-01" / "anat").mkdir(parents=True)
    shutil.copy(scan, root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    (first,) = run(root)
    stamp, sidecar = first.stat().st_mtime_ns, first.with_name(first.name.replace(".nii.gz", ".json"))
    assert "label protocol neuromorphometrics" in json.loads(sidecar.read_text())["Description"]
    run(root)
    assert first.stat().st_mtime_ns == stamp  # complete
    run(root, protocol="freesurfer")
    assert values(first) == {AMYGDALA}
    assert "label protocol freesurfer" in json.loads(sidecar.read_text())["Description"]
    (maker,) = json.loads((out / "dataset_description.json").read_text())["GeneratedBy"]
    assert maker["Description"] == "fedsr segment --protocol freesurfer"


def test_a_dicom_seg_says_which(run, phantom, tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    monkeypatch.setattr(module, "judge", lambda *_: Quality(1.0, 1.0, 0.0, 0.0))
    voxels = (1000 * phantom[0][0].numpy()).astype(np.int16)
    folder = write_series(tmp_path / "scan", voxels, standard_grid(6.0, (32, 32, 32)).affine)
    run(folder, dicom_seg=True, quality=True, protocol="freesurfer")
    seg = pydicom.dcmread(tmp_path / "out" / "scan_dseg.dcm")
    assert seg.SeriesDescription == "FedSR brain structures, freesurfer"
    (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert "protocol=freesurfer" in algorithm.AlgorithmParameters and "head_sha256=" in algorithm.AlgorithmParameters


def test_the_heads_that_are_shipped_belong_to_the_encoder():
    """Whatever their borders, they know the atlas; with another encoder they would not."""
    image, expected = standard_atlas(2.0, (80, 96, 80))
    affine = torch.as_tensor(standard_grid(2.0, (80, 96, 80)).affine)
    models = bundle_path("fedsr_site") / "models"
    for protocol in (name for name, file in HEADS.items() if file is None or (models / file).is_file()):
        workflow = load_workflow("fedsr_site", device="cpu", protocol=protocol)
        scan = MetaTensor(image, affine=affine, meta={"original_channel_dim": 0, "filename_or_obj": "atlas"})
        with torch.no_grad():
            found = label(workflow, scan, register=False)[0]["pred"][0].numpy()
        assert agreement(found, expected[0].numpy()) > 0.6, protocol

"""A real server over REST: `make test-label`. Loopback only; everything is bounded, and the server ends by itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import resample_image, voxel_map

pytest.importorskip("monailabel", reason="needs the environment of `make label-env`")
requests = pytest.importorskip("requests")

GRID = standard_grid(6.0, (32, 32, 32))
SECONDS = 480  # after which the server is ended, whatever happens


def oblique() -> Grid:
    """A grid over the phantom with permuted, flipped and turned axes."""
    shape, affine = (50, 42, 56), np.eye(4)
    turned = Rotation.from_euler("xyz", (6, -9, 12), degrees=True).as_matrix()
    affine[:3, :3] = turned @ (np.eye(3)[:, [2, 0, 1]] * (-1, 1, -1)) * (4.0, 5.0, 3.5)
    affine[:3, 3] = (GRID.affine @ [15.5, 15.5, 15.5, 1])[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(affine, shape)


@pytest.fixture
def studies(tmp_path, phantom) -> Path:
    """Three scans of the phantom, each a little dimmer, on an oblique grid."""
    own = oblique()
    volume = resample_image(phantom[0], voxel_map(GRID.affine, own.affine), own.shape)[0].numpy()
    volume[volume < 0.05] = 0
    (tmp_path / "scans").mkdir()
    for number in range(3):
        image = nib.Nifti1Image((volume * (1000 - 200 * number)).astype(np.int16), own.affine)
        nib.save(image, tmp_path / "scans" / f"scan{number}.nii.gz")
    return tmp_path / "scans"


@contextlib.contextmanager
def server(studies: Path, *options: str):
    """`fedsr label` on a free port; gives the address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "timeout",
        str(SECONDS),
        sys.executable,
        "-m",
        "fedsr_monai",
        "label",
        str(studies),
        "--port",
        str(port),
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with open(studies.parent / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=studies.parent)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(SECONDS):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{address}/info/", timeout=60).raise_for_status()
                break
            assert process.poll() is None, (studies.parent / "server.log").read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def infer(address: str, name: str, folder: Path) -> nib.Nifti1Image:
    # Ellipsoids are no brain, and so their labels would be refused if they were judged.
    answer = requests.post(
        f"{address}/infer/fedsr_site",
        params={"image": name, "output": "image"},
        data={"params": json.dumps({"judge": False})},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.nii.gz").write_bytes(answer.content)
    return nib.load(folder / f"{name}.nii.gz")


def train(address: str, options: dict) -> dict:
    """Train in a process of its own, as 3D Slicer asks for it, and return what became of it."""
    answer = requests.post(f"{address}/train/fedsr_site", json=options, timeout=60)
    assert answer.status_code == 200, answer.text
    for _ in range(SECONDS):
        task = requests.get(f"{address}/train/", timeout=60).json()
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            break
        time.sleep(0.5)
    return task


def assert_known_to_slicer(names: set[str]) -> None:
    """Every structure for which 3D Slicer's extension has an anatomical term, and thus a colour, is called by that."""
    (table,) = Path(sys.prefix).glob("monailabel/plugins/slicer/MONAILabel/MONAILabelLib/labelcolors.py")
    colours: dict = {}
    exec(table.read_text(), colours)
    terms = set(colours["GenericAnatomyColors"])
    assert {"cerebral white matter", "cerebral cortex", "cerebellar white matter", "thalamus"} == names & terms


def bundle_inference(bundle: Path, scan: Path, out: Path) -> nib.Nifti1Image:
    """What `python -m monai.bundle run inference` calls."""
    run(
        "inference", config_file=str(bundle / "configs" / "inference.json"), bundle_root=str(bundle), output_dir=str(out),
        **{"dataset#data": [{"image": str(scan)}]},
    )  # fmt: skip
    return nib.load(out / f"{scan.name.removesuffix('.nii.gz')}_dseg.nii.gz")


def test_segment_correct_train_and_segment_again(studies, site_folder, phantom, tmp_path):
    model = tmp_path / "app" / "model" / "fedsr_site" / "models" / "model.pt"
    # Before the server starts, which takes a while to notice new files.
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), studies / "empty.nii.gz")
    with server(studies, "--out", str(tmp_path / "app"), "--site", str(site_folder())) as address:
        info = requests.get(f"{address}/info/", timeout=60).json()
        assert list(info["models"]) == ["fedsr_site", "fedsr_site_raw"] and list(info["trainers"]) == ["fedsr_site"]
        for served_model in info["models"].values():
            assert list(served_model["labels"].values()) == list(range(1, 14))
            assert served_model["config"]["judge"] is True
        assert_known_to_slicer(set(info["labels"]))

        served = infer(address, "scan0", tmp_path / "served")
        direct = bundle_inference(model.parents[1], studies / "scan0.nii.gz", tmp_path / "direct")
        assert served.shape == oblique().shape and np.allclose(served.affine, oblique().affine, atol=1e-4)
        assert np.allclose(served.affine, direct.affine, atol=1e-5)
        labels = np.asarray(served.dataobj).astype(int)
        assert (labels == np.asarray(direct.dataobj)).mean() > 0.999 and len(np.unique(labels)) >= 3

        # A scan that cannot be labelled: the client sees the line that says what to do.
        answer = requests.post(f"{address}/infer/fedsr_site", params={"image": "empty"}, timeout=120)
        assert answer.status_code == 422 and "empty.nii.gz: found " in answer.json()["detail"], answer.text
        answer = requests.post(f"{address}/infer/fedsr_site", params={"image": "scan0"}, timeout=120)
        assert answer.status_code == 422 and "scan0.nii.gz: found an implausible result" in answer.text, answer.text

        # A person says that there is only brain stem; 3D Slicer numbers the one segment that is left with 1.
        params = {"params": json.dumps({"label_info": [{"name": "brain stem", "idx": 1}]})}
        for name in ("scan0", "scan1", "scan2"):
            corrected = nib.Nifti1Image((labels > 0).astype(np.uint8), served.affine)
            nib.save(corrected, tmp_path / "corrected.nii.gz")
            with open(tmp_path / "corrected.nii.gz", "rb") as file:
                answer = requests.put(
                    f"{address}/datastore/label",
                    params={"image": name, "tag": "final"},
                    data=params,
                    files={"label": file},
                    timeout=60,
                )
            assert answer.status_code == 200, answer.text
        stored = nib.load(studies / "labels" / "final" / "scan1.nii.gz")
        assert np.array_equal(np.asarray(stored.dataobj), np.asarray(corrected.dataobj))

        before = torch.load(model, weights_only=True)
        task = train(address, {"max_epochs": 4, "val_split": 0.34})
        assert task["status"] == "DONE", task["details"]
        after = torch.load(model, weights_only=True)
        moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert moved == {"segmentation"} and set(after) == set(before)
        stats = requests.get(f"{address}/info/", timeout=60).json()["train_stats"]["fedsr_site"]
        assert (stats["epoch"], stats["total_epochs"]) == (4, 4) and 0 <= stats["best_metric"] <= 1

        again = np.asarray(infer(address, "scan2", tmp_path / "again").dataobj)
        assert (again == 10).sum() > (labels == 10).sum() and again.shape == labels.shape

        # A segment that is not one of the structures is refused, by file, before anything is trained.
        params = {"params": json.dumps({"label_info": [{"name": "tumour", "idx": 1}]})}
        with open(tmp_path / "corrected.nii.gz", "rb") as file:
            where = {"image": "scan0", "tag": "final"}
            requests.put(
                f"{address}/datastore/label", params=where, data=params, files={"label": file}, timeout=60
            ).raise_for_status()
        task = train(address, {"max_epochs": 1})
        assert task["status"] == "ERROR" and "scan0.nii.gz: found the segment 'tumour'" in task["details"][-1]
    log = (tmp_path / "server.log").read_text()
    assert "training: epoch 4/4" in log
    assert "keys don't match" not in log

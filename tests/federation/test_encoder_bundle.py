"""The federated phase with the bundle that ships: the network, losses and trainer of the method on 32^3 voxels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsr_monai.federation import federate
from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(tmp_path, phantom):
    image, label = (volume[0].numpy() for volume in phantom)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    folders = []
    for site, scale in (("dark", 0.7), ("bright", 0.95)):
        scans = [f"images/scan{number}.nii.gz" for number in range(2)]
        for number, scan in enumerate(scans):
            write_volume(tmp_path / site / scan, scale * np.roll(image, number, axis=number), affine)
        labelled = {"image": "images/held.nii.gz", "label": "labels/held.nii.gz"}
        write_volume(tmp_path / site / labelled["image"], scale * image[::-1].copy(), affine)
        write_volume(tmp_path / site / labelled["label"], label[::-1].copy(), affine)
        training = [{"image": scan} for scan in scans]
        folders.append(write_site(tmp_path / site, site, image, label, affine, training, validation=[labelled]))
    # Epochs of three steps over two scans, a validation in the second round, and a scheduled rate: all have state.
    overrides = {"epoch_length": 3, "val_interval": 2, "cosine": True}
    return {"sites": folders, "rounds": 2, "seed": 5, "overrides": overrides, "out": tmp_path / "run"}


def numbers(run: Path):
    tensors = {f"server {key}": value for key, value in read_tensors(run / "server" / "round_0002.safetensors").items()}
    for site in ("bright", "dark"):
        model = torch.load(run / "sites" / site / "model.pt", weights_only=True)
        tensors |= {f"{site} {key}": value for key, value in model.items()}
    return tensors


def test_federated_resumed_and_private(arguments, tmp_path):
    whole = numbers(federate(**arguments))
    run = tmp_path / "run"
    assert {key.split()[1].split(".")[0] for key in whole if key.startswith("server")} == {"encoder", "sa"}
    assert all(torch.isfinite(value).all() for value in whole.values())
    for head in ("registration", "segmentation"):
        keys = [key.split()[1] for key in whole if key.startswith(f"dark {head}.")]
        assert any(not torch.equal(whole[f"dark {key}"], whole[f"bright {key}"]) for key in keys)
    assert whole["dark atlas_image"].shape == (1, 1, 32, 32, 32)
    first = read_tensors(run / "server" / "round_0001.safetensors")
    assert all(not torch.equal(first[key], whole[f"server {key}"]) for key in first)

    content = (run / "server" / "round_0002.safetensors").read_bytes()
    private = [
        value
        for key, value in whole.items()
        if key.split()[1].startswith(("registration.", "segmentation.", "atlas_image"))
    ]
    for value in private:
        bits = value.contiguous().numpy().tobytes()
        middle = len(bits) // 8 * 4
        if value.numel() >= 16 and value.unique().numel() > 8:
            assert bits[middle : middle + 32] not in content

    with open(run / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["site"], row["iteration"]) for row in rows] == [
        ("1", "bright", "3"), ("1", "dark", "3"), ("2", "bright", "6"), ("2", "dark", "6"),
    ]  # fmt: skip
    assert {"loss", "registration", "segmentation", "similarity", "smoothness", "dice", "mutual_information"} <= set(
        rows[0]
    )
    assert json.loads((run / "run.json").read_text())["bundle"]["name"] == "fedsr_encoder"
    assert not list(run.rglob("sites/*/history.csv"))

    # A site that is new in each round: what a round hands to the next is on the disk.
    arguments["out"] = tmp_path / "again"
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(
            "fedsr_monai.federation.executors.SequentialExecutor.algo", lambda self, site: self.jobs[site].make_algo()
        )
        again = numbers(federate(**arguments))
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []

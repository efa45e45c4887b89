"""Make the folder that MONAI Label serves; needs no MONAI Label."""

from __future__ import annotations

import importlib.util
import json
import os
import socket

import pytest
import torch

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.cli import main
from fedsr_monai.errors import UserError
from fedsr_monai.inference.workflow import load_workflow
from fedsr_monai.monai_label import app as app_module
from fedsr_monai.monai_label import server
from fedsr_monai.monai_label.app import copy_bundle, make_app
from fedsr_monai.monai_label.server import check_port
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import read_weights


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    torch.save(FedSRNet().state_dict(), tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def state(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def test_a_copy_of_the_bundle_with_the_site_and_its_weights(site_folder, weights, phantom, tmp_path):
    copy_bundle(tmp_path / "fedsr_site", weights, site_folder())
    source = bundle_path("fedsr_site")
    for name in ("train", "inference", "evaluate"):
        made = json.loads((tmp_path / "fedsr_site" / "configs" / f"{name}.json").read_text())
        given = json.loads((source / "configs" / f"{name}.json").read_text())
        changed = {key: made[key] for key in made if made[key] != given[key]}
        expected = {
            "train": {"dataset_dir", "heads", "val_interval", "train", "validate"},
            "inference": {"dataset_dir"},
            "evaluate": set(),
        }[name]
        assert set(changed) == expected and changed.get("heads") in (None, ["segmentation"])
        assert changed.get("dataset_dir", str(tmp_path / "clinic")) == str(tmp_path / "clinic")
    served, mine = state(tmp_path / "fedsr_site"), torch.load(weights, weights_only=True)
    assert all(torch.equal(served[key], mine[key]) for key in mine if not key.startswith("atlas"))
    assert torch.equal(served["atlas_label"], phantom[1][None])
    assert sorted(path.name for path in (tmp_path / "fedsr_site" / "models").iterdir()) == ["model.pt"]
    assert (tmp_path / "fedsr_site" / "configs" / "metadata.json").is_file()


def test_by_default_the_weights_of_the_bundle_and_no_site(tmp_path):
    copy_bundle(tmp_path / "fedsr_site", None, None)
    served, shipped = state(tmp_path / "fedsr_site"), state(bundle_path("fedsr_site"))
    assert set(served) == set(shipped) and all(torch.equal(served[key], shipped[key]) for key in shipped)
    assert json.loads((tmp_path / "fedsr_site" / "configs" / "train.json").read_text())["dataset_dir"] is None


def test_an_app_in_another_protocol_has_its_head_alone(two_heads, monkeypatch, tmp_path):
    monkeypatch.setattr(app_module, "bundle_path", lambda name: two_heads)
    bundle = make_app(tmp_path / "app", protocol="freesurfer")
    served, network, head = state(bundle), state(two_heads), read_weights(two_heads / "models/freesurfer.safetensors")
    assert all(torch.equal(served[key], head.get(key, network[key])) for key in network)
    assert json.loads((bundle / "configs" / "train.json").read_text())["random_atlas"] is None
    # What labels whole heads reads the protocol in the copy, and its model.pt, in which training leaves another head.
    torch.save(served | {"segmentation.logits.bias": torch.ones(14)}, bundle / "models" / "model.pt")
    workflow = load_workflow(bundle, device="cpu")
    assert workflow.protocol == "freesurfer" and workflow.network.segmentation.logits.bias.eq(1).all()
    assert make_app(tmp_path / "app") == bundle
    for protocol in ("neuromorphometrics", "freesurfer"):
        assert load_workflow(two_heads, device="cpu", protocol=protocol).protocol == protocol
    with pytest.raises(UserError, match="found an app made with protocol freesurfer, expected neuromorphometrics"):
        make_app(tmp_path / "app", protocol="neuromorphometrics")
    with pytest.raises(UserError, match="--protocol neuromorphometrics: found a head for freesurfer alone"):
        load_workflow(bundle, device="cpu", protocol="neuromorphometrics")


def test_what_was_trained_is_kept(weights, tmp_path):
    bundle = make_app(tmp_path / "app")
    assert bundle == tmp_path / "app" / "model" / "fedsr_site" and (tmp_path / "app" / "main.py").is_file()
    (bundle / "models" / "model.pt").write_text("trained")
    (tmp_path / "app" / "main.py").write_text("of an earlier version")
    assert make_app(tmp_path / "app") == bundle and "LabelApp" in (tmp_path / "app" / "main.py").read_text()
    assert (bundle / "models" / "model.pt").read_text() == "trained"
    with pytest.raises(UserError) as caught:
        make_app(tmp_path / "app", weights)
    assert (caught.value.where, caught.value.expected) == (str(tmp_path / "app"), str(weights))
    assert caught.value.found == "an app made with weights of the bundle" and "--out" in caught.value.fix
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"app: found something else, expected an app of `fedsr label`.*--out"):
        make_app(tmp_path / "app")
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["thesis.txt"]


def test_weights_that_cannot_be_used_leave_no_app(tmp_path):
    with pytest.raises(UserError, match=r"none.pt: .*expected the weights"):
        make_app(tmp_path / "app", tmp_path / "none.pt")
    assert not (tmp_path / "app").exists()


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^127.0.0.1:{port}: found Address already in use.*--port"):
            check_port("127.0.0.1", port)


@pytest.mark.skipif(importlib.util.find_spec("monailabel") is not None, reason="MONAI Label is installed here")
def test_the_environment_of_training_says_where_to_go(tmp_path, capsys):
    assert main(["label", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("fedsr: MONAI Label: found none in this environment") and "make label-env" in message


def test_a_pacs_is_served_by_its_address(monkeypatch, tmp_path, capsys):
    started = []
    monkeypatch.setattr(server, "require_monai_label", lambda: None)
    monkeypatch.setattr(server, "make_app", lambda app, *_: app / "model")
    monkeypatch.setattr(os, "execve", lambda program, command, environment: started.append((command, environment)))
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", '{"PatientID": "7"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = "http://127.0.0.1:8042/dicom-web"
    with pytest.raises(UserError, match="--out: found nothing, expected a folder, for the scans of a PACS"):
        server.serve(address, port=port)
    server.serve(address, tmp_path / "app", port=port)
    ((command, environment),) = started
    assert command[command.index("--studies") + 1] == address
    assert environment["MONAI_LABEL_DICOMWEB_CACHE_PATH"] == str(tmp_path / "app" / "dicom")
    assert environment["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] == '{"PatientID": "7"}'  # the user's own goes first

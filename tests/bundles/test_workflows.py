"""The bundles' workflows on 32^3 voxels, in this process, and once as a user types them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from safetensors.torch import save_file

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError, plain_errors, user_error
from fedsr_monai.networks import FedSRNet
from fedsr_monai.spatial.nifti import write_volume
from fedsr_monai.transforms.remove_strays import remove_strays

pytestmark = pytest.mark.slow


@pytest.fixture
def workflow(tmp_path):
    """Make a workflow of a bundle that writes to a folder of the test."""

    def make(bundle: str, run_id: str, files: str, out: str = "out", **values) -> ConfigWorkflow:
        root = bundle_path(bundle)
        common = {
            "bundle_root": str(root),
            "output_dir": str(tmp_path / out),
            "ckpt_path": str(tmp_path / out / "model.pt"),
            "device": "$torch.device('cpu')",
        }
        made = ConfigWorkflow(
            config_file=[str(root / "configs" / f"{file}.json") for file in files.split()],
            logging_file=False,
            workflow_type="infer" if run_id == "inference" else "train",
            run_id=run_id,
            **common | values,
        )
        made.initialize()
        return made

    return make


@pytest.fixture
def model(tmp_path) -> Path:
    """Random weights without an atlas, as those that ship are."""
    torch.manual_seed(3)
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def history(path: Path) -> list[dict[str, str]]:
    with open(path / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(first, second, prefix) -> bool:
    keys = [key for key in first if key.startswith(prefix)]
    assert keys
    return all(torch.equal(first[key], second[key]) for key in keys)


def test_training_at_one_site(workflow, site_folder, tmp_path):
    made = workflow("fedsr_encoder", "training", "train", dataset_dir=str(site_folder()), epochs=1, val_interval=1)
    made.run()
    rows = history(tmp_path / "out")
    assert [(row["site"], row["epoch"], row["iteration"]) for row in rows] == [("clinic", "1", "2")]
    assert all(
        np.isfinite(float(rows[0][key]))
        for key in ("loss", "similarity", "smoothness", "dice", "exact", "mutual_information")
    )
    assert 0 <= made.evaluator.state.metrics["val_mean_dice"] <= 1
    saved = weights(tmp_path / "out" / "model.pt")
    assert saved["atlas_label"].shape == (1, 1, 32, 32, 32) and saved["atlas_label"].any()
    assert any(name.startswith("events.out") for name in os.listdir(tmp_path / "out"))


def test_a_site_without_validation_and_every_switch_off(workflow, site_folder, tmp_path):
    made = workflow(
        "fedsr_encoder", "run", "train", dataset_dir=str(site_folder(validation=False)),
        epochs=1, epoch_length=1, val_interval=1, scie=False, mutual_information=None, random_atlas=None, fused=False,
        cosine=True,
    )  # fmt: skip
    made.run()
    made.evaluator.run()  # nothing to do, as under a federation that validates
    assert made.evaluator.state.metrics == {}
    assert "mutual_information" not in history(tmp_path / "out")[0]
    assert not any("scie" in key for key in weights(tmp_path / "out" / "model.pt"))


def test_several_sites_pooled(workflow, site_folder):
    folders = ",".join(str(site_folder(name)) for name in ("a", "b"))
    made = workflow("fedsr_encoder", "training", "train", dataset_dir=folders)
    assert len(made.train_dataset) == 4


class Killed(Exception):
    pass


def test_stopped_and_resumed_is_not_stopped(workflow, site_folder, tmp_path):
    settings = {"dataset_dir": str(site_folder()), "epochs": 2, "epoch_length": 1, "val_interval": 1, "cosine": True}
    workflow("fedsr_encoder", "training", "train", **settings).run()
    stopped = workflow("fedsr_encoder", "training", "train", out="again", **settings)

    @stopped.trainer.on(Events.EPOCH_STARTED(once=2))
    def kill() -> None:
        raise Killed

    with pytest.raises(RuntimeError):
        stopped.run()
    workflow("fedsr_encoder", "training", "train", out="again", resume=True, **settings).run()
    assert same(weights(tmp_path / "out" / "model.pt"), weights(tmp_path / "again" / "model.pt"), "")
    assert history(tmp_path / "out") == history(tmp_path / "again")


def test_a_site_fits_its_heads_to_what_the_server_sent(workflow, site_folder, model, tmp_path):
    shared = {key: value + 0.01 for key, value in weights(model).items() if key.startswith(("encoder.", "sa."))}
    save_file(shared, tmp_path / "round_0001.safetensors")
    made = workflow(
        "fedsr_site", "training", "train", dataset_dir=str(site_folder()), global_weights=str(tmp_path / "round_0001.safetensors"),
        epochs=1, epoch_length=1, val_interval=1,
    )  # fmt: skip
    start = {key: value.clone() for key, value in made.parser.get_parsed_content("network").state_dict().items()}
    made.run()
    saved = weights(tmp_path / "out" / "model.pt")
    assert same(shared, saved, "encoder.") and same(shared, saved, "sa.")
    assert not same(start, saved, "registration.") and not same(start, saved, "segmentation.")
    # From a whole network the heads come along.
    made = workflow("fedsr_site", "training", "train", dataset_dir=str(site_folder()), global_weights=str(model))
    assert same(
        weights(model),
        made.parser.get_parsed_content("network").state_dict(),
        ("encoder.", "registration.", "segmentation."),
    )


def test_labels_that_a_person_made_are_exact(workflow, site_folder, model, tmp_path):
    folder = site_folder(labelled_training=True)
    made = workflow(
        "fedsr_site", "training", "train", dataset_dir=str(folder), global_weights=str(model), heads=["segmentation"],
        epochs=1, epoch_length=1, val_interval=1,
    )  # fmt: skip
    made.run()
    row = history(tmp_path / "out")[0]
    assert "pseudo" not in row and "similarity" not in row and float(row["exact"]) > 0
    assert same(weights(model), weights(tmp_path / "out" / "model.pt"), "registration.")


def test_weights_that_are_missing_or_of_another_network_are_never_random(workflow, site_folder, model, tmp_path):
    folder = str(site_folder())
    state = weights(model)
    del state["encoder.stages.0.conv.weight"]
    torch.save(state, tmp_path / "bad.pt")
    cases = [
        (tmp_path / "none.pt", r"none.pt: .*expected the weights of a network"),
        (
            tmp_path / "bad.pt",
            r"bad.pt: encoder.stages.0.conv.weight: found nothing .*1 keys.*, expected float32 \[8, 1, 3, 3, 3\]",
        ),
    ]
    for path, message in cases:
        values = {"dataset_dir": folder, "ckpt_path": str(path)}
        for bundle, run, files, more in (
            ("fedsr_site", "training", "train", {"global_weights": str(path)}),
            ("fedsr_site", "inference", "inference", {}),
            ("fedsr_encoder", "inference", "inference", {}),
            ("fedsr_encoder", "evaluating", "train evaluate", {}),
        ):
            with pytest.raises(RuntimeError) as caught:
                workflow(bundle, run, files, **values | more).run()
            with pytest.raises(UserError, match=message):
                raise user_error(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.parametrize("bundle", ["fedsr_encoder", "fedsr_site"])
def test_evaluating_writes_the_tables(workflow, site_folder, model, tmp_path, bundle):
    made = workflow(bundle, "evaluating", "train evaluate", dataset_dir=str(site_folder()), ckpt_path=str(model))
    made.run()
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"unregistered", "registration", "segmentation"} and len(rows) == 3 * 13
    assert {row["case"] for row in rows} == {"test3"}
    dice = [float(row["dice"]) for row in rows if row["task"] == "segmentation"]
    assert made.evaluator.state.metrics["val_mean_dice"] == pytest.approx(np.mean(dice), abs=1e-4)


@pytest.mark.parametrize("bundle", ["fedsr_encoder", "fedsr_site"])
def test_inference_labels_the_scans_of_a_site(workflow, site_folder, model, tmp_path, bundle):
    folder = site_folder()
    ids = {"dataset_dir": str(folder), "ckpt_path": str(model), "section": "training"}
    workflow(bundle, "inference", "inference", **ids, amp=False).run()  # compared with float32 below
    outputs = sorted(path.name for path in (tmp_path / "out").iterdir())
    files = [f"training{i}_dseg.{suffix}" for i in range(2) for suffix in ("nii.gz", "tsv")]
    assert outputs == ["labels.ctbl", "labels_lut.txt", *files, "volumes.csv"]
    scan = nib.load(folder / "images" / "training0.nii.gz")
    result = nib.load(tmp_path / "out" / "training0_dseg.nii.gz")
    assert np.array_equal(result.affine, scan.affine) and result.get_data_dtype() == np.uint8
    network = FedSRNet().eval()
    network.load_state_dict(weights(model))
    with torch.no_grad():
        logits = network(torch.from_numpy(scan.get_fdata(dtype=np.float32))[None, None])[0]
    expected = remove_strays(logits).argmax(dim=0).numpy()
    assert (np.asarray(result.dataobj) == expected).mean() > 0.999  # the percentile of the intensities differs a little
    assert len(np.unique(expected)) > 3


def test_as_a_user_types_it(site_folder, model, tmp_path):
    root = bundle_path("fedsr_site")
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--meta_file", "configs/metadata.json"]
    command += ["--config_file", "configs/train.json", "--logging_file", "configs/logging.conf", "--bundle_root", "."]
    command += [
        "--dataset_dir",
        str(site_folder()),
        "--output_dir",
        str(tmp_path / "out"),
        "--ckpt_path",
        str(tmp_path / "out" / "m.pt"),
    ]
    command += ["--global_weights", str(model), "--epochs", "1", "--epoch_length", "1", "--heads", "['segmentation']"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "training: epoch 1/1, loss" in done.stdout
    assert [row["iteration"] for row in history(tmp_path / "out")] == ["1"]
    assert set(weights(tmp_path / "out" / "m.pt")) == set(weights(model))


@pytest.mark.parametrize(
    ("run", "option", "line"),
    [
        ("training --config_file configs/train.json", "--dataset_dir", "no such folder, expected a site folder"),
        (
            "inference --config_file configs/inference.json --dataset#data []",
            "--ckpt_path",
            "expected the weights of a network",
        ),
    ],
    ids=["no site", "no weights"],
)
def test_a_mistake_ends_in_one_line(tmp_path, run, option, line):
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        *run.split(),
        option,
        "/nowhere",
        "--output_dir",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=bundle_path("fedsr_site"), capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fedsr: /nowhere: ") and line in last


def test_other_programs_show_errors_as_ever(monkeypatch, capsys):
    before = sys.excepthook
    plain_errors()
    assert sys.excepthook is before
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="monai.bundle.__main__"))
    monkeypatch.setattr(sys, "excepthook", before)
    plain_errors()
    try:
        raise RuntimeError("a defect")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    assert "Traceback" in capsys.readouterr().err


def test_as_monai_label_trains_on_corrected_labels(workflow, phantom, model, tmp_path):
    """No site folder, labelled scans on their own grid, a loader before the bundle's handlers; `model.pt` is written
    again.
    """
    affine = standard_grid(6.0, (32, 32, 32)).affine @ np.array(
        [[0, 0, -1, 31], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    )
    items = []
    for number in range(2):
        volumes = {"image": phantom[0][0].numpy() * 900, "label": phantom[1][0].numpy()}
        items.append({key: str(tmp_path / f"{key}{number}.nii.gz") for key in volumes})
        for key, volume in volumes.items():
            write_volume(items[-1][key], np.ascontiguousarray(volume.transpose(1, 2, 0)[:, :, ::-1]), affine)
    before = weights(model)
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(model),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    handlers = ConfigParser.load_config_file(str(bundle_path("fedsr_site") / "configs" / "train.json"))["train"][
        "handlers"
    ]
    made = workflow(
        "fedsr_site", "run", "train", global_weights=str(model), ckpt_path=str(model), spacing=6.0, spatial_shape=[32, 32, 32],
        **{"train#trainer#max_epochs": 1, "train#dataset#data": items, "validate#dataset#data": [], "train#handlers":
        [loader, *handlers]},
    )  # fmt: skip
    item = made.train_dataset[0]
    assert item["image"].shape == item["label"].shape == (1, 32, 32, 32)
    assert torch.equal(item["label"].as_tensor(), phantom[1].float())  # turned and flipped, yet nothing lost
    made.run()
    after = weights(model)
    assert same(before, after, "encoder.") and not same(before, after, "segmentation.")
    assert after["atlas_label"].shape == (1, 1, 32, 32, 32) and len(after["atlas_label"].unique()) == 14
    assert set(after) == set(FedSRNet().state_dict())  # MONAI Label compares the keys, and goes on with random weights

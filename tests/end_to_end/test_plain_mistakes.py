"""Plain mistakes, each of which ends in one clear line and exit status 2, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.cli import main
from fedsr_monai.networks import FedSRNet
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
FEDERATE = "federate @site --out @new --rounds 1 --override epoch_length=1 "
MISTAKES = {
    # options of any command
    "report @run --out @a --out @b": "--out: found the option twice",
    "federate @site --out @new --timeout nan --processes": "--timeout: found 'nan', expected a number",
    "simulate @new --spacing inf": "--spacing: found 'inf', expected a number",
    "report @run extra": "report: found 'extra'",
    # values of the bundle's ids
    "federate @site --out @new --override epoch_length=1.5": "overrides: epoch_length: found 1.5, expected a whole number",
    "federate @site --out @new --override epoch_length=0": "overrides: epoch_length: found 0, expected a whole number",
    FEDERATE + "device=cuda": "device: found 'cuda' and no GPU",
    FEDERATE + "device=gpu": "device: found 'gpu'",
    FEDERATE + "learning_rate=abc": "overrides: learning_rate: found 'abc', expected a number",
    FEDERATE + "learning_rate=-1": "overrides: learning_rate: found -1, expected a number from",
    FEDERATE + "registration_lr=-1": "overrides: registration_lr: found -1, expected a number from",
    FEDERATE + "encoder_lr=-1": "overrides: encoder_lr: found -1, expected a number from",
    FEDERATE + "learning_rate=NaN": "overrides: learning_rate: found nan, expected a number",
    FEDERATE + "batch_size=0": "overrides: batch_size: found 0, expected a whole number of at least 1",
    FEDERATE + "train#dataloader#batch_size=0": "overrides: train#dataloader#batch_size: found 0",
    FEDERATE + "val_interval=0": "overrides: val_interval: found 0",
    FEDERATE + "num_workers=-1": "overrides: num_workers: found -1",
    FEDERATE + "scie=7": "overrides: scie: found 7, expected true, false or one of gate, ",
    FEDERATE + "preset=huge": "overrides: preset: found 'huge', expected one of small, full",
    FEDERATE + "heads=registration": "overrides: heads: found 'registration', expected a list",
    FEDERATE + "random_atlas=5": "overrides: random_atlas: found 5, expected an object",
    FEDERATE + "dataset_dir=@site": "overrides: dataset_dir: found a value, expected none",
    FEDERATE + "epoch_length=2": "--override: found epoch_length twice",
    "personalise @site --out @new --override epochs=3": "overrides: epochs: found a value, expected none",
    "personalise @site --out @new --override batch_size=0": "overrides: batch_size: found 0",
    # numbers out of range
    "federate @site --out @new --rounds -1": "rounds: found -1, expected a whole number of at least 1",
    "federate @site --out @new --participation 2": "participation: found 2",
    "federate @site --out @new --timeout -1 --processes": "timeout: found -1",
    "federate @site --out @new --seed -1": "seed: found -1",
    "personalise @site --out @new --epochs 0": "epochs: found 0",
    "personalise @site --out @new --epoch_length -3": "epoch_length: found -3",
    "evaluate @run --figures -1": "figures: found -1",
    "segment @site/images/a.nii.gz --out @new --register --refine -1": "refine: found -1",
    "simulate @new --sites 0": "sites: found 0",
    "simulate @new --training -1": "training: found -1",
    "simulate @new --spacing -2 --shape 32 32 32": "grid: found (32, 32, 32) at -2 x -2 x -2 mm",
    "simulate @new --spacing 6 --shape 32 32": "grid: found (32, 32) at",
    "simulate @new --spacing 6 --shape 0 0 0": "grid: found (0, 0, 0) at",
    "simulate @new --spacing 6 --shape 32 32 32 --processes 0": "processes: found 0",
    "simulate @new --spacing 6 --shape 32 32 32 --seed -1": "seed: found -1",
    "prepare @site/images --out @new --spacing -2 --shape 32 32 32": "grid: found (32, 32, 32) at -2 x -2 x -2 mm",
    "demo --quick --out @new --sites 0": "sites: found 0",
    "benchmark @site --out @new --methods none --cases -1": "cases: found -1",
    "benchmark @site --out @new --methods none --refine -1": "--refine: found -1",
    "benchmark @site --out @new --methods syn": "methods: found 'syn', expected one of affine",
    "export-job @new --sites a b --rounds 0": "job: rounds: found 0",
    "export-job @new --sites a b --wait -5": "wait (seconds): found -5",
    # devices
    "evaluate @run --device cuda": "device: found 'cuda' and no GPU",
    "segment @site/images/a.nii.gz --out @new --device cuda": "device: found 'cuda' and no GPU",
    "benchmark @site --out @new --methods none --device tpu9": "device: found 'tpu9'",
    # files that are something else
    "evaluate @site --out @new --weights @integers.pt": "@integers.pt: found ",
    "evaluate @site --out @new --weights @list.pt": "@list.pt: found ",
    "evaluate @site --out @new --weights @site": "@site: found ",
    "segment @site/images/a.nii.gz --out @new --weights @integers.pt": "@integers.pt: found ",
    "personalise @site --out @new --weights @integers.pt": "@integers.pt: found ",
    "federate @site --out @new --from_weights @integers.pt": "@integers.pt: found ",
    "evaluate @list": "@list/run.json: found JSON of type list",
    "evaluate @empty": "@empty/run.json: ",
    "evaluate @odd": "@odd/run.json: ",
    "report @list": "@list/run.json: found JSON of type list",
    "report @empty": "@empty",
    "report @odd": "@odd/run.json: ",
    "personalise @site --out @new --weights @list": "@list",
    "report @run --out @folder": "@folder: found that it cannot be written (Is a directory), expected a file",
    "report @file": "@file",
    "evaluate @site --out @file": "@file",
    "segment @site/images/a.nii.gz --out @file": "@file",
    "federate @site --out @file": "@file",
    "simulate @file": "@file",
    # names
    "federate @long --out @new": "@long/site.json: name: found ",
    f"export-job @new --sites {'x' * 300}": "sites: found the name 'xxx",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mistakes")
    image, label = np.zeros((2, 32, 32, 32), np.float32)
    for number in range(1, 14):
        image[8 + number, 8:24, 8:24], label[8 + number, 8:24, 8:24] = 0.1 + 0.05 * number, number
    for name in ("site", "long"):
        write_volume(root / name / "images/a.nii.gz", np.roll(image, 2, 0), AFFINE)
        write_volume(root / name / "images/b.nii.gz", np.roll(image, 1, 0), AFFINE)
        write_volume(root / name / "labels/b.nii.gz", np.roll(label, 1, 0).astype(np.uint8), AFFINE)
        test = [{"image": "images/b.nii.gz", "label": "labels/b.nii.gz"}]
        write_site(root / name, name, image, label.astype(np.uint8), AFFINE, [{"image": "images/a.nii.gz"}], test=test)
    spec = json.loads((root / "long/site.json").read_text())
    (root / "long/site.json").write_text(json.dumps(spec | {"name": "x" * 300}))
    record = {
        "bundle": {"path": str(bundle_path("fedsr_encoder"))},
        "sites": [{"name": "site", "path": str(root / "site")}],
    }
    (root / "run/sites/site").mkdir(parents=True)
    (root / "run/run.json").write_text(json.dumps(record))
    torch.save(FedSRNet("small").state_dict(), root / "run/sites/site/model.pt")
    for name, content in {"list": [], "empty": {}, "odd": record | {"sites": 3, "bundle": "x"}}.items():
        (root / name).mkdir()
        (root / name / "run.json").write_text(json.dumps(content))
    torch.save({1: torch.zeros(2), 2: torch.zeros(3)}, root / "integers.pt")
    torch.save([torch.zeros(2)], root / "list.pt")
    (root / "folder").mkdir()
    (root / "file").write_text("a letter to the editor")
    return root


@pytest.fixture
def time_limit():
    """Fail a test that hangs."""

    def stop(*_):
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_plain_mistake_is_one_line(root, capsys, line):
    if torch.cuda.is_available() and "no GPU" in MISTAKES[line]:
        pytest.skip("there is a GPU")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    try:
        assert main(line.replace("@", f"{root}/").split()) == 2
        error = capsys.readouterr().err
        assert error.startswith("fedsr: " + MISTAKES[line].replace("@", f"{root}/")), error
        assert error.count("\n") == 1 and len(error) < 1000, error
        assert not (root / "new").exists()
    finally:
        shutil.rmtree(root / "new", ignore_errors=True)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")}.keys() == before.keys()

from __future__ import annotations

import json

import pytest
import torch

from fedsr_monai import pretraining as module
from fedsr_monai.networks.weights import ATLAS_KEYS

pytestmark = pytest.mark.slow


def test_the_recipe_runs_and_goes_on(tmp_path, monkeypatch):
    sizes = {"epochs": {"segmentation": 1, "registration": 1}, "spacing": 6.0, "shape": (32, 32, 32), "steps": 2}
    counts = {"training": 1, "test": 1, "labelled": 2}
    monkeypatch.setattr(module, "PROFILES", ["adult-3t"])
    weights = module.pretrain(tmp_path / "out", **sizes, **counts)
    state = torch.load(weights, weights_only=True)
    assert not any(state[key].any() for key in ATLAS_KEYS)  # no site's atlas is passed on
    before = (tmp_path / "out/segmentation/sites/pooled/model.pt").stat().st_mtime_ns

    weights.unlink()
    again = torch.load(module.pretrain(tmp_path / "out", **sizes, **counts), weights_only=True)
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert (tmp_path / "out/segmentation/sites/pooled/model.pt").stat().st_mtime_ns >= before
    settings = json.loads((tmp_path / "out/segmentation/run.json").read_text())
    assert settings["overrides"]["random_atlas"]["_target_"].endswith("LabelledScans")
    assert json.loads((tmp_path / "out/evaluation/metrics.json").read_text())

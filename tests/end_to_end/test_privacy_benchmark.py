"""A small run of benchmarks/privacy.py: what its table is made of is still there, and acts as it says."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_table_of_differential_privacy_is_made(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sites, privacy = importlib.import_module("cached_sites"), importlib.import_module("privacy")
    for module in (sites, privacy):
        monkeypatch.setattr(module, "ROUNDS", 1)
        monkeypatch.setattr(module, "TRAINING", 1)
    monkeypatch.setattr(sites, "WARMING", 1)
    monkeypatch.setattr(sites, "STEPS", 4)  # of which some are on scans, which the SA features follow
    monkeypatch.setattr(sites, "VALIDATION", 1)
    monkeypatch.setattr(privacy, "EPSILONS", {"both": (8,)})
    monkeypatch.setattr(privacy.logging, "disable", lambda level: None)  # both would outlive this test
    monkeypatch.setattr(privacy.torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(sys, "argv", ["privacy.py", "--work", str(tmp_path), "--out", str(tmp_path / "privacy.csv")])
    privacy.main()
    with open(tmp_path / "privacy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["protected"] for row in rows] == ["nothing is sent", "none", "clip only", "both", "both"]
    noisy, barely_clipped = rows[3:]
    assert float(noisy["clip"]) > 0 and float(noisy["clip_sa"]) > 0
    assert float(barely_clipped["clip_sa"]) == pytest.approx(float(noisy["clip_sa"]) / 1000, rel=1e-3)
    # At epsilon 8 the encoder is replaced by noise; without noise it hardly moves in four steps.
    assert float(noisy["encoder_moved"]) > 1 > 0.1 > float(rows[1]["encoder_moved"]) > 0

"""A small run of benchmarks/fuzz.py, and that it notices what it looks for."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from fedsr_monai import __version__
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.flare.settings import file_digest, settings_from_job
from fedsr_monai.flare.site_config import read_site_config

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.slow
def test_damaged_files_are_refused():
    bad = []

    def report(target: str, mutation: str, ended: str, words: str) -> None:
        if ended not in ("refused", "read"):
            bad.append((target, mutation, ended, words))

    found = fuzz.fuzz(120, 7, report)
    assert bad == [] and sum(found.values()) == 120
    assert sum(count for (_, _, ended), count in found.items() if ended == "refused") > 60


def test_damaged_settings_of_flare_are_refused_or_sound(tmp_path):
    """A job, which a server sends, and the file of a site: one value replaced, removed or added each time."""
    bundle = bundle_path("fedsr_encoder")
    job = {"run": "first", "rounds": 3, "version": __version__, "bundle": "fedsr_encoder"}
    job |= {"bundle_digest": file_digest(bundle / "configs/train.json"), "min_sites": 2, "weights_digest": None}
    job |= {"overrides": {"learning_rate": 0.1, "heads": ["segmentation"], "registration_weights#dice": 2}}
    site = {"site": "/data/site", "state": "/data/state", "bundles": {"own": "/data/bundle"}, "policies": ["fedsr"]}
    site |= {"overrides": {"device": "cpu"}, "privacy": {"clip": 1.0, "noise": 2.0, "clip_sa": 1.0, "noise_sa": 2.0}}

    def read_job() -> None:
        settings_from_job(json.loads((tmp_path / "local/fedsr.json").read_text())).check_bundle(bundle)

    ended = Counter()
    (tmp_path / "local").mkdir()
    for number in range(300):
        content, read = ((job, read_job), (site, lambda: read_site_config(tmp_path, "a")))[number % 2]
        fuzz.write(tmp_path / "local/fedsr.json", content)
        fuzz.json_value(tmp_path / "local/fedsr.json", random.Random(f"settings {number}"))
        found, words = fuzz.outcome(read, True)
        assert found in ("refused", "read"), (number, words)
        ended[found] += 1
    assert min(ended.values()) > 30


def test_every_outcome_is_told_apart():
    def wrapped() -> None:
        try:
            raise UserError("site.json", "nothing", "a site")
        except UserError as error:
            raise RuntimeError("while instantiating") from error

    assert fuzz.outcome(wrapped, True)[0] == "refused"
    assert fuzz.outcome(lambda: {}["defect"], True)[0] == "traceback"
    assert fuzz.outcome(lambda: time.sleep(30), True, seconds=1)[0] == "hang"
    assert fuzz.outcome(lambda: None, may_be_valid=False)[0] == "silent"
    assert fuzz.outcome(lambda: None, may_be_valid=True)[0] == "read"

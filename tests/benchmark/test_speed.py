from __future__ import annotations

import csv
import subprocess

import pytest

from fedsr_monai.benchmark.speed import run_speed, timed, whole_inference
from fedsr_monai.networks import FedSRNet
from fedsr_monai.simulation.sites import simulate_sites
from fedsr_monai.sites.site import load_site


@pytest.mark.slow
def test_every_part_is_timed_and_the_network_stays_as_it_is(tmp_path, phantom):
    network = FedSRNet("small").set_atlas(*phantom)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = run_speed(tmp_path / "speed", network, 6.0, runs=2)
    assert [row["what"] for row in rows] == [
        "segmentation, network only", "registration, network only", "joint step, fused", "joint step, alternating"
    ]  # fmt: skip
    assert all(0 < row["min_seconds"] <= row["median_seconds"] <= row["max_seconds"] for row in rows)
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    with open(tmp_path / "speed.csv", newline="") as file:
        assert [row["what"] for row in csv.DictReader(file)] == [row["what"] for row in rows]


def test_warm_up_runs_are_not_counted():
    calls = []
    assert len(timed(lambda: calls.append(1), runs=3)) == 3
    assert len(calls) == 5


@pytest.mark.slow
def test_whole_inference_runs_the_bundle_and_fails_aloud(tmp_path):
    (site,) = simulate_sites(
        tmp_path, sites=1, training=1, validation=0, test=1, spacing=6.0, shape=(32, 32, 32), processes=1
    )
    whole_inference(load_site(site).test[0]["image"], "cpu")
    with pytest.raises(subprocess.CalledProcessError):
        whole_inference(tmp_path / "missing.nii.gz", "cpu")

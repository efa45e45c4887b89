from __future__ import annotations

import csv
import json

import pytest

from fedsr_monai.benchmark import accuracy
from fedsr_monai.benchmark.accuracy import run_accuracy, summary
from fedsr_monai.errors import UserError
from fedsr_monai.networks import FedSRNet
from fedsr_monai.simulation.sites import simulate_sites


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    return simulate_sites(
        root, sites=1, training=1, validation=0, test=2, spacing=6.0, shape=(32, 32, 32), processes=1
    )[0]


@pytest.mark.slow
def test_one_row_per_structure_case_and_method_and_nothing_is_measured_twice(site, tmp_path, monkeypatch):
    network = FedSRNet("small")
    result = run_accuracy([site], tmp_path / "accuracy", network, methods=(), cases=1)
    first = (tmp_path / "accuracy.csv").read_text()
    with open(tmp_path / "accuracy.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 13
    assert {name: found["cases"] for name, found in result.items()} == {
        "unregistered atlas": 1, "FedSR registration": 1, "FedSR segmentation": 1
    }  # fmt: skip
    assert 0 < result["unregistered atlas"]["dice"]["mean"] < 1
    assert json.loads((tmp_path / "accuracy.json").read_text()) == result

    monkeypatch.setattr(accuracy, "_network_rows", lambda *arguments: pytest.fail("measured again"))
    assert run_accuracy([site], tmp_path / "accuracy", network, methods=(), cases=1) == result
    assert (tmp_path / "accuracy.csv").read_text() == first


def test_missed_structures_count_in_the_mean():
    row = {"method": "m", "site": "s", "case": "c", "hd95_mm": 5.0, "seconds": 1.0, "folded_percent": 0.0}
    rows = [row | {"structure": "a", "dice": 0.8, "missed": 0}, row | {"structure": "b", "dice": 0.0, "missed": 1}]
    found = summary(rows)["m"]
    assert found["dice"]["mean"] == 0.4 and found["missed"] == 1


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"methods: found 'syn', expected one of affine, n4_syn"):
        run_accuracy(["nowhere"], tmp_path / "accuracy", None, methods=("syn",))
    assert not list(tmp_path.iterdir())

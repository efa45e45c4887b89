from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import MeanDice

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation import structure_rows, summarise
from fedsr_monai.evaluation.tables import METRIC_COLUMNS, read_measures
from fedsr_monai.files import write_csv, write_json
from fedsr_monai.labels import LABELS


def rows_of(site, case, task, dice):
    """Rows with the given Dice by structure; None stands for absent, 0 for missed."""
    return [
        {"site": site, "case": case, "task": task, "structure": name, "label": k, "jaccard": 0.5, "avd_ml": 1.0,
         "avd_percent": 1.0, "hd95_mm": 2.0, "asd_mm": 1.0, "dice": math.nan if value is None else value,
         "volume_ml": 1.0 if value else 0.0, "reference_ml": 0.0 if value is None else 1.0, "missed": int(value == 0)}
        for k, (name, value) in enumerate(dice.items(), start=1)
    ]  # fmt: skip


def test_structure_rows_has_one_row_per_structure():
    reference = np.zeros((12, 12, 12), np.uint8)
    reference[2:5, 2:5, 2:5], reference[6:9, 6:9, 6:9] = 6, 7
    prediction = np.where(reference == 7, 0, reference)
    rows = structure_rows(prediction, reference, (2.0, 2.0, 2.0))
    assert [row["structure"] for row in rows] == list(LABELS.values())[1:]
    by_name = {row["structure"]: row for row in rows}
    assert by_name["thalamus"]["dice"] == 1 and by_name["thalamus"]["reference_ml"] == pytest.approx(0.216)
    assert by_name["caudate"]["missed"] == 1 and by_name["caudate"]["dice"] == 0
    assert math.isnan(by_name["putamen"]["dice"]) and by_name["putamen"]["missed"] == 0


def test_structures_are_averaged_before_cases():
    rows = rows_of("a", "1", "unregistered", {"x": 0.2, "y": 0.6}) + rows_of(
        "a", "2", "unregistered", {"x": 1.0, "y": None}
    )
    task = summarise(rows)["sites"]["a"]["tasks"]["unregistered"]
    assert task["mean"]["dice"]["mean"] == pytest.approx(0.7)  # (0.4 + 1.0) / 2, where all rows together give 0.6
    assert task["mean"]["dice"]["sd"] == pytest.approx(np.std([0.4, 1.0], ddof=1))
    assert task["structures"]["y"]["dice"]["n"] == 1 and math.isnan(task["structures"]["y"]["dice"]["sd"])
    assert (task["cases"], task["missed"], task["absent"], task["spurious"]) == (2, 0, 1, 0)


def test_a_missed_structure_counts():
    rows = rows_of("a", "1", "registration", {"x": 0.0, "y": 0.8})
    task = summarise(rows)["all"]["tasks"]["registration"]
    assert task["mean"]["dice"]["mean"] == pytest.approx(0.4)
    assert task["missed"] == 1 and task["structures"]["x"]["missed"] == 1 and task["structures"]["y"]["missed"] == 0


def test_sites_and_tasks_are_apart_and_all_cases_equal():
    rows = [
        *rows_of("a", "1", "unregistered", {"x": 0.1}),
        *rows_of("b", "1", "unregistered", {"x": 0.4}),
        *rows_of("b", "2", "unregistered", {"x": 0.7}),
        *rows_of("b", "2", "segmentation", {"x": 0.9}),
    ]
    cases = [
        {
            "site": "b",
            "case": c,
            "seconds": 1.0,
            "ncc_unregistered": 0.5,
            "ncc_registration": n,
            "folded_percent": 0.0,
            "head_agreement": 0.8,
        }
        for c, n in (("1", 0.8), ("2", 0.9))
    ]
    summary = summarise(rows, cases)
    assert summary["sites"]["a"]["tasks"]["unregistered"]["mean"]["dice"]["mean"] == 0.1
    assert summary["all"]["tasks"]["unregistered"]["mean"]["dice"]["mean"] == pytest.approx(0.4)
    assert set(summary["sites"]["a"]["tasks"]) == {"unregistered"} and summary["sites"]["a"]["cases"] == {}
    assert summary["sites"]["b"]["cases"]["ncc_registration"]["mean"] == pytest.approx(0.85)


def test_csv_comes_back_as_it_was(tmp_path):
    rows = rows_of("a", "scan, one", "unregistered", {"x": 0.123456, "y": None})
    write_csv(tmp_path / "metrics.csv", METRIC_COLUMNS, rows)
    back = read_measures(tmp_path / "metrics.csv", METRIC_COLUMNS)
    assert back[0] == rows[0] and isinstance(back[0]["missed"], int)
    assert math.isnan(back[1]["dice"])


def test_csv_faults_are_named(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("site,case\na,1\n")
    with pytest.raises(UserError, match="columns site, case, expected also task, .*; evaluate again"):
        read_measures(path, METRIC_COLUMNS)
    path.write_text("site,missed\na,1\nb,\n")
    with pytest.raises(UserError, match=r"line 3 .*\['b', ''\].*numbers.*; evaluate again"):
        read_measures(path, ["site", "missed"])


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "metrics.json", {"a": [math.nan, 1.5, math.inf], 2: (True, None, "x")})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, None], "2": [True, None, "x"]}


def test_monais_mean_dice_counts_a_missed_structure():
    # The bundles take MONAI's handler for validation: it must agree with the conventions here.
    reference, prediction = torch.zeros(2, 1, 1, 6, 6, 6)
    reference[..., :3, :3, :3], reference[..., 3:, 3:, 3:] = 1, 2
    prediction[..., :3, :3, :3] = 1  # 2 is missed, 3 is absent
    handler = MeanDice(include_background=False, num_classes=4)
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine, "dice")
    assert engine.run([[prediction, reference]]).metrics["dice"] == pytest.approx(0.5)
    rows = structure_rows(prediction[0, 0].numpy(), reference[0, 0].numpy(), (1, 1, 1), {1: "a", 2: "b", 3: "c"})
    assert np.nanmean([row["dice"] for row in rows]) == pytest.approx(0.5)

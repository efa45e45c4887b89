"""A small evaluation and a small run, as the commands write them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from fedsr_monai.evaluation.tables import CASE_COLUMNS, METRIC_COLUMNS, TASKS, summarise
from fedsr_monai.files import write_csv, write_json
from fedsr_monai.labels import LABELS

SHAPE = (24, 28, 20)
DICE = {"unregistered": 0.5, "registration": 0.75, "segmentation": 0.875}


@pytest.fixture
def volumes():
    """A head with thalamus (6), caudate (7) and cortex (3), moved by a known deformation."""
    x, y, z = np.indices(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    label[((x - 12) / 9) ** 2 + ((y - 14) / 11) ** 2 + ((z - 10) / 8) ** 2 < 1] = 3
    label[7:12, 9:19, 6:14], label[13:18, 9:19, 6:14] = 6, 7
    image = (label / 14 + 0.3 * (label > 0)).astype(np.float16)
    ddf = np.zeros((3, *SHAPE), np.float16)
    ddf[0] = 2
    return {
        "image": image,
        "label": label,
        "segmentation": np.where(label == 7, 3, label).astype(np.uint8),
        "atlas_image": np.roll(image, 2, 0),
        "warped_image": image,
        "warped_label": label,
        "ddf": ddf,
        "spacing": np.array([2.0, 2.0, 3.0], np.float32),
    }


def metric_rows(site, case):
    for task, dice in DICE.items():
        for k, name in LABELS.items():
            if k:
                missed = int(task == "segmentation" and site == "north" and name == "amygdala")
                yield {
                    "site": site, "case": case, "task": task, "structure": name, "label": k, "missed": missed,
                    "dice": 0.0 if missed else dice, "jaccard": dice / 2, "avd_ml": 1.5, "avd_percent": 10.0,
                    "hd95_mm": 4.0, "asd_mm": 1.25, "volume_ml": 0.0 if missed else 9.0, "reference_ml": 10.0,
                }  # fmt: skip


@pytest.fixture
def evaluation(tmp_path):
    folder = tmp_path / "evaluation"
    pairs = [(site, case) for site in ("north", "south") for case in ("s1", "s2")]
    rows = [row for pair in pairs for row in metric_rows(*pair)]
    cases = [
        {
            "site": site,
            "case": case,
            "seconds": 0.5,
            "ncc_unregistered": 0.5,
            "ncc_registration": 0.8125,
            "folded_percent": 0.0625,
            "head_agreement": 0.875,
        }
        for site, case in pairs
    ]
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, rows)
    write_csv(folder / "cases.csv", CASE_COLUMNS, cases)
    data = {site: {"path": "/data", "section": "test", "simulated": False} for site in ("north", "south")}
    write_json(folder / "metrics.json", summarise(rows, cases) | {"data": data})
    assert tuple(DICE) == TASKS
    return folder


@pytest.fixture
def pictured(evaluation, volumes):
    """The evaluation with the volumes of one scan; its figures take a second."""
    (evaluation / "cases" / "north").mkdir(parents=True)
    np.savez_compressed(evaluation / "cases" / "north" / "s1.npz", **volumes)
    return evaluation


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    sites = [{"name": name, "path": str(tmp_path / name), "images": 5} for name in ("north", "south")]
    settings = {"policy": "fedsr", "rounds": 4, "seed": 7, "sites": sites, "versions": {"torch": "1.2.3"}}
    (folder / "run.json").write_text(json.dumps(settings))

    def table(name, columns, rows):
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns.split(","))
            writer.writerows(rows)

    table(
        "participation.csv",
        "round,site,status,reason,images,iterations,seconds,bytes_down,bytes_up",
        [
            (1, "north", "ok", "", 5, 10, 3.0, 1_000_000, 2_000_000),
            (1, "south", "ok", "", 5, 10, 4.0, 1_000_000, 2_000_000),
            (2, "north", "ok", "", 5, 10, 3.0, 1_000_000, 2_000_000),
            (2, "south", "rejected", "encoder.<weight> & more: not finite", 5, 0, 4.0, 1_000_000, 2_000_000),
        ],
    )
    table("rounds.csv", "round,seconds,server_seconds,loss", [(1, 10.0, 0.1, 2.5), (2, 10.0, 0.1, 1.5)])
    table(
        "history.csv",
        "round,site,epoch,iteration,loss,dice",
        [(1, "north", 1, 5, 3.0, 0.9), (1, "north", 2, 10, 2.0, ""), (1, "south", 1, 5, 2.5, 0.8),
         (2, "north", 3, 15, 1.0, 0.5), (2, "south", 2, 10, 1.0, 0.4)],
    )  # fmt: skip
    return folder

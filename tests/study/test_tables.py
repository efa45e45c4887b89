"""Tables cases.csv: what they hold, and how runs that were made elsewhere come in by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.tables import CASE_COLUMNS, METRIC_COLUMNS, read_measures
from fedsr_monai.files import read_csv, write_csv
from fedsr_monai.study import run as module
from fedsr_monai.study.plan import read_plan
from fedsr_monai.study.run import run_study
from fedsr_monai.study.tables import (
    MEASURED_COLUMNS,
    contrast_rows,
    measured_cases,
    read_cases,
    summarise,
)

PLAN = {
    "name": "x",
    "question": "y?",
    "sites": {"folders": ["given by --sites"]},
    "arms": {"good": {}, "bad": {}},
    "contrasts": [["good", "bad"]],
    "seeds": [0, 1, 2],
}
# Mean Dice over the two structures of a case, by arm and seed; the thalamus is 0.1 above it, the caudate 0.1 below.
DICE = {("good", 0): 0.8, ("good", 1): 0.82, ("good", 2): 0.81, ("bad", 0): 0.7, ("bad", 1): 0.71, ("bad", 2): 0.69}


def structures(site: str, cases: list[str], dice: float) -> list[dict]:
    return [
        dict.fromkeys(METRIC_COLUMNS, 1.0)
        | {"site": site, "case": case, "task": task, "structure": structure, "label": label, "missed": int(label == 1)}
        | {"dice": dice + (0.1 if label == 1 else -0.1), "hd95_mm": 2.0}
        for case in cases
        for task in ("unregistered", "registration", "segmentation")
        for label, structure in ((1, "thalamus"), (2, "caudate"))
    ]


@pytest.fixture
def study(tmp_path, site_folder, monkeypatch):
    """Return a function that runs the plan with given seeds without any training, and a list of what was trained."""
    site, trained = site_folder("clinic"), []

    def pretend(job):
        trained.append((job.arm, job.seed))
        folder = job.run / "evaluation"
        folder.mkdir(parents=True)
        rows = structures("clinic", ["test3"], DICE[job.arm, job.seed])
        write_csv(folder / "metrics.csv", METRIC_COLUMNS, rows)
        write_csv(
            folder / "cases.csv", CASE_COLUMNS, [dict.fromkeys(CASE_COLUMNS, 0.5) | {"site": "clinic", "case": "test3"}]
        )
        write_csv(job.run / "rounds.csv", ("seconds", "bytes_down", "bytes_up"), [])
        write_csv(job.run / "participation.csv", ("iterations",), [])
        (folder / "metrics.json").write_text("{}")
        (folder / "done").touch()

    monkeypatch.setattr(module, "run_job", pretend)
    monkeypatch.setattr(module, "write_report", lambda *args: None)

    def run(name: str, seeds: list[int], add: tuple[Path, ...] = ()) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(PLAN | {"seeds": seeds}))
        run_study(path, tmp_path / name, sites=[site], add=add)
        return tmp_path / name

    return run, trained


def test_seeds_of_two_machines_give_the_tables_of_one(study):
    run, trained = study
    whole = run("whole", [0, 1, 2])
    first = run("first", [0, 1])
    trained.clear()
    joined = run("joined", [0, 1, 2], add=(first / "cases.csv",))
    assert trained == [("good", 2), ("bad", 2)]
    for table in ("cases.csv", "summary.csv", "contrasts.csv"):
        assert (joined / table).read_text() == (whole / table).read_text()
    (contrast,) = [r for r in read_csv(joined / "contrasts.csv") if r["site"] == "all" and r["task"] == "segmentation"]
    assert float(contrast["difference"]) == pytest.approx(0.11) and contrast["seeds"] == "3"


def test_means_over_cases_are_those_over_structures():
    rows = [
        row | {"arm": arm, "seed": seed, "ncc": 0.5}
        for (arm, seed), dice in DICE.items()
        for row in structures("a", ["1", "2"], dice) + structures("b", ["1"], dice - 0.2)
    ]
    cases = measured_cases(rows)
    assert len(cases) == 6 * 3 * 3 and {row["missed"] for row in cases} == {1}
    (found,) = [r for r in summarise(cases) if (r["task"], r["site"], r["arm"]) == ("segmentation", "all", "good")]
    assert found["dice"] == pytest.approx(0.81 - 0.2 / 3) and found["missed"] == 9 and found["cases"] == 3
    assert summarise(cases) == summarise(rows)


def test_what_cannot_be_added_is_refused(study, tmp_path):
    run, _ = study
    table = run("first", [0, 1]) / "cases.csv"
    plan = read_plan(tmp_path / "first.json")
    rows = read_measures(table, MEASURED_COLUMNS)

    def written(name: str, content: list[dict]) -> Path:
        write_csv(tmp_path / name, MEASURED_COLUMNS, content)
        return tmp_path / name

    with pytest.raises(UserError, match="arm 'bad' with seed 0, which .*first/cases.csv has too"):
        read_cases([table, table], plan)
    with pytest.raises(UserError, match="arm: found 'other', expected some of good, bad"):
        read_cases([written("other.csv", [row | {"arm": "other"} for row in rows])], plan)
    fewer = [row for row in rows if row["seed"] != 1 or row["task"] != "registration"]
    with pytest.raises(UserError, match="2 measurements of arm 'bad' with seed 1"):
        read_cases([written("fewer.csv", fewer)], plan)
    elsewhere = written("elsewhere.csv", [row | {"case": "scan-99"} for row in rows])
    with pytest.raises(UserError, match="--add: found site 'clinic' with scan-99, expected clinic with test3"):
        run("joined", [0, 1, 2], add=(elsewhere,))
    assert contrast_rows(plan, rows)[0]["seeds"] == 2

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.networks.weights import read_weights
from fedsr_monai.sites.check import check_site
from fedsr_monai.sites.site import load_site
from fedsr_monai.study import run as module
from fedsr_monai.study.run import run_study

PLANS = Path(__file__).parents[2] / "studies"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_table_four_runs_resumes_and_adds_up(tmp_path, monkeypatch):
    train, calls = module._train, []

    def stopped(job):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((job.arm, job.seed))
        train(job)

    monkeypatch.setattr(module, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(PLANS / "table4.json", tmp_path / "study", quick=True)
    assert len({(row["arm"], row["seed"]) for row in rows(tmp_path / "study" / "results.csv")}) == 3

    monkeypatch.setattr(module, "_train", lambda job: (calls.append((job.arm, job.seed)), train(job)))
    run_study(PLANS / "table4.json", tmp_path / "study", quick=True, arms=["baseline"])
    assert len({(row["arm"], row["seed"]) for row in rows(tmp_path / "study" / "cases.csv")}) == 4  # all that are done
    page = (tmp_path / "study" / "report.html").read_text()
    assert "4 of 8 runs" in page and "+FL+MIL" in page and "+FL+MIL+SCIE" not in page  # which has no results yet
    report = run_study(PLANS / "table4.json", tmp_path / "study", quick=True)
    assert len(calls) == len(set(calls)) == 8  # four arms, two seeds, none twice

    results = rows(tmp_path / "study" / "results.csv")
    assert {row["arm"] for row in results} == {"baseline", "+FL", "+FL+MIL", "+FL+MIL+SCIE"}
    summary = {(row["task"], row["site"], row["arm"]): row for row in rows(tmp_path / "study" / "summary.csv")}
    by_hand = {}
    for row in results:
        if row["task"] == "segmentation" and row["arm"] == "+FL":
            by_hand.setdefault(row["seed"], {}).setdefault((row["site"], row["case"]), []).append(float(row["dice"]))
    means = [np.mean([np.nanmean(case) for case in cases.values()]) for cases in by_hand.values()]
    assert float(summary["segmentation", "all", "+FL"]["dice"]) == pytest.approx(np.mean(means), rel=1e-4)

    contrasts = [row for row in rows(tmp_path / "study" / "contrasts.csv") if row["site"] == "all"]
    assert len(contrasts) == 8 and all(float(row["p_holm"]) >= float(row["p"]) for row in contrasts)
    baseline, full = (float(summary["segmentation", "all", arm]["dice"]) for arm in ("baseline", "+FL+MIL+SCIE"))
    (difference,) = [
        float(row["difference"])
        for row in contrasts
        if (row["task"], row["arm"], row["reference"]) == ("segmentation", "+FL+MIL+SCIE", "baseline")
    ]
    assert difference == pytest.approx(full - baseline, abs=1e-5)
    for seed in (0, 1):  # what an arm switches off stays off when the heads are fitted
        fitted = (
            tmp_path
            / "study"
            / "runs"
            / "baseline"
            / f"seed-{seed}"
            / "personalised"
            / "adult-3t"
            / "personalised.json"
        )
        assert json.loads(fitted.read_text())["overrides"] == {
            "scie": False,
            "mutual_information": None,
            "learning_rate": 0.002,
        }
    page = report.read_text()
    assert "8 of 8 runs" in page and "+FL+MIL+SCIE" in page
    for heading in (
        "Contrasts of the plan",
        "Methods and sites",
        "Structures",
        "Training",
        "Errors of one scan",
        "Cost",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert {float(row["steps"]) for row in rows(tmp_path / "study" / "cost.csv")} == {2}
    assert all(math.isfinite(float(row["ncc"])) for row in results if row["task"] == "registration")


def test_a_folder_of_another_plan_is_left_alone(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"name": "another"}))
    with pytest.raises(UserError, match="a study of other settings"):
        run_study(PLANS / "table4.json", tmp_path, quick=True)


PLAN = {
    "name": "x",
    "question": "y?",
    "sites": {"anatomies": True},
    "arms": {"few": {"scans": 1}, "all": {}, "alone": {"policy": "local", "at": "unseen"}},
    "contrasts": [["few", "all"]],
    "seeds": [0],
    "unseen": ["young"],
}


def write_plan(folder: Path, **changes) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(PLAN | changes))
    return path


def test_arms_have_the_sites_and_scans_that_they_ask_for(tmp_path, site_folder, monkeypatch):
    folders, jobs = [site_folder("clinic"), site_folder("young")], {}

    def noted(job):
        jobs[job.arm] = job
        return "not trained here"

    monkeypatch.setattr(module, "run_job", noted)
    with pytest.raises(UserError, match="not trained here"):
        run_study(write_plan(tmp_path), tmp_path / "study", sites=folders)
    found = {arm: [load_site(folder) for folder in job.members] for arm, job in jobs.items()}
    assert {arm: [(site.name, len(site.training)) for site in sites] for arm, sites in found.items()} == {
        "few": [("clinic", 1)],
        "all": [("clinic", 2)],
        "alone": [("young", 2)],
    }
    assert [len(job.unseen) for job in (jobs["few"], jobs["all"], jobs["alone"])] == [1, 1, 0]
    assert check_site(found["few"][0].root) == []
    with pytest.raises(UserError, match="found 2 training scans, expected the 5 that an arm"):
        run_study(write_plan(tmp_path, arms={"few": {"scans": 5}, "all": {}}), tmp_path / "five", sites=folders)


def test_a_study_can_be_run_in_parts(tmp_path, site_folder, monkeypatch):
    folders, jobs = [site_folder("clinic"), site_folder("young")], []

    def noted(job):
        jobs.append((job.arm, job.seed))
        return "not trained here"

    monkeypatch.setattr(module, "run_job", noted)
    plan, out = write_plan(tmp_path, seeds=[0, 3]), tmp_path / "study"
    for part, expected in (
        ({"arms": ["all", "few"], "seeds": [3]}, [("few", 3), ("all", 3)]),
        ({"arms": ["alone"]}, [("alone", 0), ("alone", 3)]),
        ({"seeds": [0]}, [("few", 0), ("all", 0), ("alone", 0)]),
    ):
        with pytest.raises(UserError, match="not trained here"):
            run_study(plan, out, sites=folders, **part)
        assert jobs == expected
        jobs.clear()
    with pytest.raises(UserError, match="--arms: found 'fewer', expected one of few, all, alone"):
        run_study(plan, out, sites=folders, arms=["fewer"])
    with pytest.raises(UserError, match="--seeds: found 1, expected one of 0, 3"):
        run_study(plan, out, sites=folders, seeds=[1])


@pytest.mark.parametrize(("at", "fitted"), [({}, ["clinic", "young"]), ({"at": "unseen"}, ["young"])])
def test_the_plan_says_which_sites_fit_their_heads(tmp_path, site_folder, monkeypatch, at, fitted):
    folders, found = [site_folder("clinic"), site_folder("young")], []
    for name in ("federate", "models_of_sites", "evaluate_models"):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: [])
    model = SimpleNamespace(site=load_site(folders[0]), weights="model.pt")
    monkeypatch.setattr(module, "models_of_run", lambda run: [model])

    def note(site, run, out, **settings):
        found.append(Path(out).name)
        assert settings["epochs"] == 2 and "at" not in settings

    monkeypatch.setattr(module, "personalise", note)
    arms = {"few": {"personalise": True}, "all": {}}
    path = write_plan(tmp_path, arms=arms, personalise={"epochs": 2, "epoch_length": 3} | at)
    study = module.read_plan(path)
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    job = module.Job(study, "few", 0, (str(folders[0]),), (str(folders[1]),), tmp_path / "run")
    module._train(job)
    assert found == fitted


def test_semi_real_sites_need_the_folder_of_their_people(tmp_path):
    with pytest.raises(UserError, match="no folder of label maps, .* name the folder with --anatomies"):
        run_study(write_plan(tmp_path), tmp_path / "study")
    with pytest.raises(UserError, match="sites: found it and anatomies"):
        run_study(write_plan(tmp_path), tmp_path / "study", anatomies=tmp_path, sites=[tmp_path])


@pytest.mark.slow
def test_a_run_that_fails_is_named_at_once_and_the_others_finish(tmp_path, monkeypatch, capsys):
    plan = json.loads((PLANS / "policies.json").read_text())
    plan |= plan.pop("quick") | {
        "arms": {"good": {"policy": "local"}, "bad": {"policy": "local", "overrides": {"no_such_id": 1}}},
        "contrasts": [["good", "bad"]],
    }
    plan["arms"] = dict(reversed(plan["arms"].items()))  # the bad one first
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    train, said = module._train, []

    def listen(job):
        if job.arm == "good":
            said.append(capsys.readouterr().err)
        train(job)

    monkeypatch.setattr(module, "_train", listen)
    with pytest.raises(UserError, match="bad/seed-0.*no_such_id"):
        run_study(path, tmp_path / "study")
    assert "bad/seed-0: found" in said[0] and "no_such_id" in said[0]
    assert {row["arm"] for row in rows(tmp_path / "study" / "summary.csv")} == {"good"}


@pytest.mark.slow
def test_an_arm_may_be_a_baseline_or_begin_with_the_encoder_of_one_or_with_another_policy(tmp_path):
    plan = json.loads((PLANS / "figure4.json").read_text())
    small = plan.pop("quick") | {"rounds": 2}
    common = {"policy": "fedsr", "start": {"policy": "fedavg", "rounds": 1}}
    arms = {"synthseg": small["arms"]["synthseg"], "deepatlas": {"baseline": "deep_atlas"}, "common": common}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan | small | {"arms": arms, "contrasts": [["synthseg", "deepatlas"]]}))
    run_study(path, tmp_path / "study")
    runs = tmp_path / "study" / "runs"
    begun = json.loads((runs / "synthseg" / "seed-0" / "run.json").read_text())
    assert begun["from_weights"]["path"].endswith("pretraining/encoder.pt")
    pretrained = read_weights(begun["from_weights"]["path"])
    trained = read_weights(runs / "synthseg" / "seed-0" / "sites" / "adult-3t" / "model.pt")
    of_encoder = [key for key in trained if key.startswith("encoder.")]
    assert all(np.array_equal(trained[key], pretrained[key]) for key in of_encoder)  # fixed
    assert json.loads((runs / "deepatlas" / "seed-0" / "run.json").read_text())["baseline"] == "deep_atlas"
    assert {row["arm"] for row in rows(tmp_path / "study" / "results.csv")} == set(arms)

    begun = json.loads((runs / "common" / "seed-0" / "run.json").read_text())
    assert begun["from_weights"]["path"].endswith("start/server/round_0001.safetensors")
    assert (begun["policy"], begun["rounds"]) == ("fedsr", 1)
    # The heads that were shared in the first round are what each site goes on with in the second.
    shared = read_tensors(begun["from_weights"]["path"])
    assert any(key.startswith("segmentation.") for key in shared)
    steps = {row["arm"]: (row["rounds"], row["steps"]) for row in rows(tmp_path / "study" / "cost.csv")}
    assert steps["common"] == ("2", "4")
    assert steps["synthseg"] == ("3", "5")  # a round of one step is pretraining
    assert "common" in (tmp_path / "study" / "report.html").read_text()

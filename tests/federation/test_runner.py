from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.federation.algo import FedSRAlgo
from fedsr_monai.federation.executors import SequentialExecutor, SiteJob
from fedsr_monai.federation.process_executor import ProcessExecutor
from fedsr_monai.federation.records import sites_left_out
from fedsr_monai.federation.round import draw_sites
from fedsr_monai.federation.runner import federate
from fedsr_monai.federation.settings import RunSettings
from fedsr_monai.federation.storage import read_tensors
from tests.helpers.miniature import federate_quietly, write_bundle, write_sites

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("runner")
    write_bundle(root / "bundle")
    write_sites(root / "data", {"a": 3, "b": 2, "c": 1})
    return root


@pytest.fixture(scope="module")
def arguments(place):
    return {"sites": [str(place / "data" / name) for name in "abc"], "bundle": str(place / "bundle"), "rounds": 3}


@pytest.fixture(scope="module")
def whole(arguments, place):
    """An uninterrupted run that others are compared with."""
    return federate(out=place / "whole", **arguments)


def numbers(run: Path):
    """All that a run computed: global tensors, every site's network, every loss."""
    state = json.loads((run / "server" / "state.json").read_text())
    tensors = {f"server {key}": value for key, value in read_tensors(run / "server" / state["file"]).items()}
    for path in sorted((run / "sites").glob("*/model.pt")):
        model = torch.load(path, weights_only=True)
        tensors |= {f"{path.parent.name} {key}": value for key, value in model.items()}
    return state["round"], tensors, (run / "history.csv").read_text()


def assert_same(first: Path, second: Path):
    (round_1, tensors_1, history_1), (round_2, tensors_2, history_2) = numbers(first), numbers(second)
    assert round_1 == round_2 and list(tensors_1) == list(tensors_2)
    assert [key for key in tensors_1 if not torch.equal(tensors_1[key], tensors_2[key])] == []
    assert history_1 == history_2


def table(path: Path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_the_readme_says(whole):
    settings = json.loads((whole / "run.json").read_text())
    assert [(site["name"], site["images"]) for site in settings["sites"]] == [("a", 3), ("b", 2), ("c", 1)]
    assert (settings["policy"], settings["rounds"], settings["seed"], settings["min_sites"]) == ("fedsr", 3, 0, 2)
    assert settings["versions"]["torch"] == torch.__version__
    rows = table(whole / "participation.csv")
    assert [(row["round"], row["site"], row["status"]) for row in rows] == [
        (str(r), s, "ok") for r in (1, 2, 3) for s in "abc"
    ]
    assert [row["images"] for row in rows[:3]] == [row["iterations"] for row in rows[:3]] == ["3", "2", "1"]
    size = (whole / "server" / "round_0003.safetensors").stat().st_size
    assert {int(row["bytes_down"]) for row in rows} == {int(row["bytes_up"]) for row in rows} == {size}
    rounds = table(whole / "rounds.csv")
    assert [int(row["bytes_up"]) for row in rounds] == [3 * size] * 3
    assert all(0 < float(row["server_seconds"]) < float(row["seconds"]) and float(row["loss"]) > 0 for row in rounds)
    history = table(whole / "history.csv")
    assert list(history[0]) == ["round", "site", "epoch", "iteration", "loss", "registration", "segmentation"]
    assert [(row["round"], row["site"], row["epoch"], row["iteration"]) for row in history[:4]] == [
        ("1", "a", "1", "3"), ("1", "b", "1", "2"), ("1", "c", "1", "1"), ("2", "a", "2", "6"),
    ]  # fmt: skip
    assert float(history[-1]["loss"]) < float(history[2]["loss"])


def test_sites_share_the_encoder_and_keep_their_heads(whole):
    tensors = numbers(whole)[1]
    for key in ("encoder.0.weight", "sa.segmentation.0"):
        assert all(torch.equal(tensors[f"server {key}"], tensors[f"{site} {key}"]) for site in "abc")
    assert not torch.equal(tensors["a segmentation.weight"], tensors["b segmentation.weight"])
    assert "server segmentation.weight" not in tensors and "server atlas_image" not in tensors


def test_a_finished_run_again_changes_nothing_and_more_rounds_go_on(whole, arguments, tmp_path):
    run = federate(out=tmp_path / "run", **{**arguments, "rounds": 1})
    federate(out=run, **{**arguments, "rounds": 1})
    federate(out=run, **arguments)
    assert_same(run, whole)


MOMENTS = [
    "sites/a/state_0000.pt",
    "server/state.json",
    "sites/a/state_0001.pt",
    "sites/b/.state_0001.*.partial.pt",
    "server/.round_0001.*.partial.safetensors",
    "participation.csv",
    "sites/c/state_0002.pt",
    "sites/b/model.pt",
]


multiprocessing.set_forkserver_preload(["tests.helpers.miniature", "fedsr_monai.federation.runner"])


def test_a_run_killed_again_and_again_ends_in_the_same_numbers(whole, arguments, tmp_path):
    context = multiprocessing.get_context("forkserver")
    run, killed = tmp_path / "run", 0
    for moment in MOMENTS:
        process = context.Process(target=federate_quietly, args=({**arguments, "out": str(run)},))
        process.start()
        while not any(run.glob(moment)) and process.is_alive():
            time.sleep(0.0005)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        for path in run.rglob("*.json"):
            if not path.name.startswith("."):
                json.loads(path.read_text())
    assert killed >= len(MOMENTS) - 3
    assert_same(federate(out=run, **arguments), whole)


def test_a_process_a_site_gives_the_same_bits(whole, arguments, tmp_path):
    run = federate(out=tmp_path / "run", processes=True, **arguments)
    assert_same(run, whole)
    assert not list(run.rglob("up.safetensors")) and not list(run.rglob("down.safetensors"))


def test_order_of_the_sites_does_not_matter(whole, arguments, tmp_path):
    assert_same(federate(out=tmp_path / "run", **{**arguments, "sites": arguments["sites"][::-1]}), whole)


def test_uniform_and_image_weights_differ(whole, arguments, tmp_path):
    run = federate(out=tmp_path / "run", weighting="uniform", **arguments)
    key = "server encoder.0.weight"
    assert not torch.equal(numbers(run)[1][key], numbers(whole)[1][key])


@pytest.mark.parametrize("policy", ["fedrep", "fedavg", "local", "pooled"])
def test_policies(arguments, tmp_path, policy):
    run = federate(out=tmp_path / "run", policy=policy, **arguments)
    tensors = numbers(run)[1]
    sent = {key.split(" ")[1].split(".")[0] for key in tensors if key.startswith("server")}
    assert sent == {"fedrep": {"encoder"}, "fedavg": {"encoder", "registration", "sa", "segmentation"}}.get(
        policy, set()
    )
    rows = table(run / "participation.csv")
    if policy == "pooled":
        assert {(row["site"], row["images"], row["iterations"]) for row in rows} == {("pooled", "6", "6")}
    if policy in ("local", "pooled"):
        assert {(row["bytes_up"], row["bytes_down"]) for row in rows} == {("0", "0")}
    if policy == "local":
        assert not torch.equal(tensors["a encoder.0.weight"], tensors["b encoder.0.weight"])
    if policy == "fedavg":
        assert torch.equal(tensors["a segmentation.weight"], tensors["b segmentation.weight"])


def test_partial_participation_is_drawn_by_seed_and_written_down(arguments, tmp_path):
    run = federate(out=tmp_path / "run", participation=0.67, seed=3, **{**arguments, "rounds": 4})
    rows = table(run / "participation.csv")
    for round in range(4):
        asked = [row["site"] for row in rows if row["round"] == str(round + 1) and row["status"] == "ok"]
        assert asked == draw_sites(["c", "b", "a"], 2, 3, round)
    absent = [row for row in rows if row["status"] == "absent"]
    assert len(absent) == 4 and {row["reason"] for row in absent} == {"not drawn for this round"}
    assert len(list(run.glob("sites/*/model.pt"))) == 3
    assert_same(federate(out=tmp_path / "again", participation=0.67, seed=3, **{**arguments, "rounds": 4}), run)


FAIL = {"fail": "$@output_dir + '/fail'"}  # a file in the site's own folder says how


def to_fail(run: Path, **sites: str) -> None:
    for site, what in sites.items():
        (run / "sites" / site).mkdir(parents=True)
        (run / "sites" / site / "fail").write_text(what.replace("_", " "))


def test_a_site_that_fails_is_named_and_comes_back(arguments, tmp_path):
    to_fail(tmp_path / "run", b="raise 2")
    run = federate(out=tmp_path / "run", overrides=FAIL, **arguments)
    rows = table(run / "participation.csv")
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "ok", "failed", "ok", "ok", "ok", "ok"]
    assert rows[4]["reason"] == "RuntimeError: the scanner room is flooded"
    assert rows[4]["bytes_up"] == "0"
    assert sites_left_out(run) == ["b is missing in round 2 (failed, RuntimeError: the scanner room is flooded)"]
    assert [row["epoch"] for row in table(run / "history.csv") if row["site"] == "b"] == ["1", "2"]


def test_a_process_that_dies_is_named_and_started_anew(arguments, tmp_path):
    to_fail(tmp_path / "run", b="die 2")
    run = federate(out=tmp_path / "run", overrides=FAIL, processes=True, **arguments)
    rows = table(run / "participation.csv")
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "ok", "failed", "ok", "ok", "ok", "ok"]
    assert rows[4]["reason"] == "its process ended with exit code -9"

    to_fail(tmp_path / "turn", b="raise 2")
    assert_same(federate(out=tmp_path / "turn", overrides=FAIL, **arguments), run)


def test_a_process_that_hangs_is_stopped_named_and_started_anew(arguments, tmp_path, place):
    to_fail(tmp_path, b="hang 2")
    common = {"bundle_root": arguments["bundle"], "settings": RunSettings(3, overrides=FAIL)}
    jobs = [SiteJob(site, str(place / "data" / site), str(tmp_path / "sites" / site), **common) for site in "ab"]
    pool = ProcessExecutor(jobs)
    try:
        tensors = pool.initial()
        assert [answer.status for answer in pool.train("ab", 0, tensors)] == ["ok", "ok"]
        hung = pool.running["b"][0]
        pool.timeout = 10.0  # only now: the processes have started, however slow the machine
        answers = {answer.site: answer for answer in pool.train("ab", 1, tensors)}
        assert (answers["a"].status, answers["b"].status) == ("ok", "timeout")
        assert answers["b"].reason == "no answer within 10 s" and not answers["b"].tensors
        assert not hung.is_alive()
        pool.timeout = None
        assert {answer.status for answer in pool.train("ab", 2, tensors)} == {"ok"}
    finally:
        pool.close()
    assert not pool.running


def test_the_sites_processes_end_with_a_killed_run_which_then_resumes(arguments, tmp_path, whole):
    context = multiprocessing.get_context("forkserver")
    to_fail(tmp_path / "run", b="hang 2")
    run = {**arguments, "out": str(tmp_path / "run"), "processes": True, "overrides": FAIL}
    process = context.Process(target=federate_quietly, args=(run,))
    process.start()
    while (tmp_path / "run" / "sites" / "b" / "fail").exists():
        time.sleep(0.01)
    children = descendants(process.pid)
    assert len(children) >= 4  # three sites and the server that forks them
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.time() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.time() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert_same(federate(**run), whole)


def descendants(pid: int) -> list[int]:
    """All processes below `pid` (Linux)."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (
            lambda key, value: value * float("nan"),
            "encoder.0.bias: found NaN or Inf in 4 of 4 values, expected none (3 more)",
        ),
        (lambda key, value: value * 1000, "encoder.0.bias: found an update of norm "),
        (lambda key, value: value[:1], "encoder.0.bias: found float32 [1], expected float32 [4] (3 more)"),
    ],
)
def test_a_hostile_site_is_rejected_by_name_and_the_others_go_on(arguments, tmp_path, monkeypatch, lie, reason):
    honest = FedSRAlgo.get_weights

    def get_weights(self, extra=None):
        result = honest(self, extra)
        if self.client_name == "c" and result.statistics:
            result.weights = {key: lie(key, value) for key, value in result.weights.items()}
        return result

    monkeypatch.setattr(FedSRAlgo, "get_weights", get_weights)
    run = federate(out=tmp_path / "run", **{**arguments, "rounds": 1})
    rows = table(run / "participation.csv")
    assert [row["status"] for row in rows] == ["ok", "ok", "rejected"]
    assert f"site 'c': {reason}" in rows[2]["reason"]

    monkeypatch.setattr(FedSRAlgo, "get_weights", honest)
    to_fail(tmp_path / "absent", c="raise 1")
    absent = federate(out=tmp_path / "absent", overrides=FAIL, **{**arguments, "rounds": 1})
    first, second = (read_tensors(path / "server" / "round_0001.safetensors") for path in (run, absent))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_too_few_answers_is_an_error_that_loses_nothing(arguments, tmp_path, whole):
    run = federate(out=tmp_path / "run", **{**arguments, "rounds": 1})
    broken = {**arguments, "sites": arguments["sites"], "rounds": 2}
    for site in "bc":
        state = run / "sites" / site / "state_0001.pt"
        torch.save(torch.load(state, weights_only=True) | {"round": 9}, state.with_name("state_0009.pt"))
        state.rename(tmp_path / f"{site}.pt")
        state.with_name("state_0000.pt").unlink()
    with pytest.raises(UserError) as caught:
        federate(out=run, **broken)
    text = str(caught.value)
    assert text.startswith(
        f"round 2: found 1 acceptable results (a; b: failed: {run}/sites/b/state_0009.pt: found a state that is ahead"
    )
    assert "expected at least 2 (min_sites); fix what the other sites report" in text and "\n" not in text
    assert [row["status"] for row in table(run / "participation.csv")] == ["ok", "ok", "ok", "ok", "failed", "failed"]
    for site in "bc":
        (run / "sites" / site / "state_0009.pt").unlink()
        (tmp_path / f"{site}.pt").rename(run / "sites" / site / "state_0001.pt")
    assert_same(federate(out=run, **arguments), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"seed": 1},
            r"run.json: seed: found 0, expected 1; give the settings that the run began with to resume it",
        ),
        ({"policy": "fedrep"}, r"run.json: policy: found \"fedsr\", expected \"fedrep\"; "),
        ({"weighting": "uniform"}, r"run.json: weighting: found \"images\", expected \"uniform\"; "),
        ({"local_epochs": 2}, r"run.json: local_epochs: found 1, expected 2; "),
        (
            {"overrides": {"epochs": 2}},
            r"run.json: overrides: found \{\}, expected \{\"epochs\": 2\}",
        ),
        ({"rounds": 2}, r"run.json: rounds: found 3, expected at most 2; give at least as many rounds"),
        ({"sites": 2}, r"run.json: sites: found "),
    ],
)
def test_other_settings_on_the_same_folder_are_refused_by_key(whole, arguments, change, message):
    if "sites" in change:
        change = {"sites": arguments["sites"][: change["sites"]]}
    before = (whole / "run.json").read_bytes()
    with pytest.raises(UserError, match=message):
        federate(out=whole, **{**arguments, **change})
    assert (whole / "run.json").read_bytes() == before


def test_a_run_whose_settings_are_lost_is_not_continued(whole, arguments, tmp_path):
    (tmp_path / "server").mkdir()
    shutil.copy(whole / "server" / "state.json", tmp_path / "server")
    with pytest.raises(UserError, match="run.json: found no such file, expected the settings of the run; restore it"):
        federate(out=tmp_path, **arguments)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "^rounds: found 0, expected a whole number of at least 1; correct it$"),
        ({"rounds": "many"}, "^rounds: found 'many', expected a whole number of at least 1; correct it$"),
        (
            {"policy": "fedprox"},
            "^policy: found 'fedprox', expected one of fedsr, fedrep, fedper, fedavg, local, pooled",
        ),
        ({"weighting": "median"}, "^weighting: found 'median', expected one of images, uniform"),
        ({"participation": 0}, "^participation: found 0, expected a fraction above 0 and up to 1"),
        ({"min_sites": 4}, "^min_sites: found 4, expected 1 to 3, the sites asked in a round"),
        ({"timeout": 5}, "^timeout: found one without processes, expected both; add --processes"),
        ({"sites": []}, "^sites: found none, expected at least one site folder; name them with --sites$"),
        ({"sites": ["/nowhere"]}, "^/nowhere: found no such folder, expected a site folder"),
        ({"bundle": "fedsr_decoder"}, "^bundle: found no fedsr_decoder/configs/train.json, expected a bundle"),
        (
            {"overrides": {"epoch": 3}},
            "^overrides: epoch: found no such id in .*train.json, .*; did you mean 'epochs'\\?$",
        ),
        ({"overrides": {"epochs": {1}}}, "^overrides: found a value that is not plain JSON"),
        ({"from_weights": "none.pt"}, "^none.pt: found no such file, expected "),
    ],
)
def test_bad_arguments_are_one_line_and_leave_no_folder(arguments, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        federate(out=tmp_path / "run", **{**arguments, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_two_sites_of_one_name_are_refused(arguments, tmp_path, place):
    write_sites(tmp_path / "data", {"a": 1})
    with pytest.raises(
        UserError, match=r"found the name 'a', which .*/data/a has too, expected one site per name; change 'name'"
    ):
        federate(out=tmp_path / "run", **{**arguments, "sites": [*arguments["sites"], str(tmp_path / "data" / "a")]})


def test_starting_weights_reach_every_site(whole, arguments, tmp_path):
    weights = whole / "sites" / "a" / "model.pt"
    run = federate(out=tmp_path / "run", from_weights=weights, **{**arguments, "rounds": 1, "overrides": {"epochs": 1}})
    start = torch.load(weights, weights_only=True)
    first = torch.load(run / "sites" / "b" / "state_0000.pt", weights_only=True)["network"]
    assert all(torch.equal(first[key], start[key]) for key in first)
    sent = read_tensors(run / "server" / "round_0000.safetensors")
    assert all(torch.equal(sent[key], start[key]) for key in sent)


def test_a_run_that_fails_at_its_start_does_not_keep_its_folder(whole, arguments, tmp_path):
    """The settings of a run count from its server's first checkpoint on, and a site's first state goes with them."""
    other = torch.load(whole / "sites" / "a" / "model.pt", weights_only=True)
    torch.save({**other, "encoder.0.bias": torch.ones(9)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="encoder.0.bias"):
        federate(out=tmp_path / "run", from_weights=tmp_path / "other.pt", **arguments)
    SequentialExecutor(
        [
            SiteJob(
                "a", arguments["sites"][0], str(tmp_path / "run/sites/a"), arguments["bundle"], RunSettings(3, seed=9)
            )
        ]
    ).initial()
    assert (tmp_path / "run/sites/a/state_0000.pt").exists()  # of another seed
    assert_same(federate(out=tmp_path / "run", **arguments), whole)

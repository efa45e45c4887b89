"""Whole rounds through executor, aggregator and controller, beside `fedsr federate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import FullModelShareableGenerator
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.privacy_manager import PrivacyService

from fedsr_monai.errors import UserError
from fedsr_monai.federation import federate
from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.flare.controller import FedSRController
from fedsr_monai.spatial.nifti import write_volume
from tests.helpers.miniature import AFFINE, SHAPE, write_sites
from tests.helpers.stage import Stage

pytestmark = pytest.mark.slow

FAIL = {"fail": "$@output_dir + '/fail'"}  # a file in the site's own folder says how


def differing(run: Path, reference: Path, round: int = 3) -> list[str]:
    ours, theirs = (read_tensors(folder / "server" / f"round_{round:04d}.safetensors") for folder in (run, reference))
    assert list(ours) == list(theirs)
    return [key for key in theirs if not torch.equal(ours[key], theirs[key])]


def status(rows: list[dict[str, str]]) -> list[str]:
    return [row["status"] for row in rows]


def part(reply: Shareable, name: str) -> dict[str, np.ndarray]:
    """The arrays of an answer, to be changed in place."""
    return from_shareable(reply).data[name].data


def test_three_rounds_end_in_the_bits_of_fedsr_federate(stage, reference, table):
    run = stage()
    for _ in range(3):
        assert run.round() == {"a": True, "b": True, "c": True}
    assert differing(run.out, reference) == []
    rows, expected = (table(folder / "participation.csv") for folder in (run.out, reference))
    for key in ("round", "site", "status", "reason", "images", "iterations", "bytes_down"):
        assert [row[key] for row in rows] == [row[key] for row in expected]
    assert (run.out / "history.csv").read_text() == (reference / "history.csv").read_text()
    sent = sum(value.nbytes for value in part(run.ask("a", "train", run.task()), "weights").values())
    assert int(rows[0]["bytes_up"]) == sent + 2 * 4 * 4  # float64 differences, two SA vectors of 4 in float32


def test_a_new_process_each_round_changes_nothing(stage, reference):
    run = stage()
    for _ in range(3):
        for name in run.names:
            run.restart(name)
        run.round()
    assert differing(run.out, reference) == []


def test_the_real_network_begins_with_the_first_sites_sa_features(tmp_path):
    """The bundle that ships sets its SA vectors from a site's atlas, which the server has not."""
    images = {"a": 2, "b": 1}
    folders = write_sites(tmp_path / "data", images, shape=(32, 32, 32))
    overrides = {"epoch_length": 1, "val_interval": 100}
    reference = federate(folders, tmp_path / "reference", 2, overrides=overrides, seed=4)
    run = Stage(tmp_path / "stage", tmp_path / "data", images, rounds=2, overrides=overrides, seed=4)
    run.begin()
    assert any(key.startswith("sa.") and value.any() for key, value in run.persistor.server.tensors.items())
    for _ in range(2):
        run.round()
    assert differing(run.out, reference, 2) == []
    for name in run.names:
        assert run.ask(name, "save_model", run.task()).get_return_code() == ReturnCode.OK
        ours = torch.load(run.root / name / "fedsr/run/sites" / name / "model.pt", weights_only=True)
        theirs = torch.load(reference / "sites" / name / "model.pt", weights_only=True)
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


def test_a_bad_start_is_refused_and_the_next_site_asked(tmp_path):
    images = {"a": 1, "b": 1}
    write_sites(tmp_path / "data", images, shape=(32, 32, 32))
    run = Stage(tmp_path / "stage", tmp_path / "data", images, rounds=1)
    run.persistor.load(run.context())
    honest = run.ask("a", "initial_features", Shareable())
    for change in (lambda v: v * 1e6, lambda v: v * np.nan, lambda v: v[:1], lambda v: v.astype(np.float64)):
        reply = run.send(honest)
        values = part(reply, "sa")
        values["sa.registration.0"] = change(values["sa.registration.0"])
        assert not run.aggregator.begin_run("a", reply, run.context()) and not run.persistor.begun
    assert not run.aggregator.begin_run("a", Shareable(), run.context())
    assert (
        run.aggregator.begin_run("b", run.ask("b", "initial_features", Shareable()), run.context())
        and run.persistor.begun
    )


def test_wait_does_not_bound_a_sites_first_answer(monkeypatch):
    """A site builds its network before it answers; `wait` is how long the others have once enough have answered."""
    asked = []
    monkeypatch.setattr(
        ScatterAndGather, "broadcast_and_wait", lambda self, task, **options: asked.append(task.timeout)
    )
    monkeypatch.setattr(FedSRController, "connected", lambda self: (["a", "b"], {}))
    monkeypatch.setattr(FedSRController, "system_panic", lambda self, reason, fl_ctx: asked.append(reason))
    for options in ({}, {"wait_time_after_min_received": 900}, {"train_timeout": 60}):
        controller = FedSRController(rounds=1, **{"wait_time_after_min_received": 5} | options)
        controller.persistor = SimpleNamespace(begun=False)
        assert not controller.begin_run(Signal(), FLContext())
    end = "no site gave initial SA features: see the log of each site"
    assert asked == [600, 600, end, 900, 900, end, 60, 60, end]


def test_a_site_that_raises_is_named_and_comes_back(stage, federated, tmp_path, table):
    run = stage(own={"overrides": FAIL})
    flag = run.root / "b/fedsr/run/sites/b/fail"
    flag.parent.mkdir(parents=True)
    flag.write_text("raise 2")
    assert [run.round() for _ in range(3)][1] == {"a": True, "b": False, "c": True}
    rows = table(run.out / "participation.csv")
    assert status(rows) == ["ok", "ok", "ok", "ok", "failed", "ok", "ok", "ok", "ok"]
    assert rows[4]["reason"] == "RuntimeError at the site; see its log"

    twin = tmp_path / "twin"
    (twin / "sites" / "b").mkdir(parents=True)
    (twin / "sites" / "b" / "fail").write_text("raise 2")
    federated(twin, 3, overrides=FAIL)
    assert differing(run.out, twin) == []


def without(name: str, key: str):
    def change(reply: Shareable) -> None:
        del part(reply, name)[key]

    return change


def times(factor: float):
    def change(reply: Shareable) -> None:
        values = part(reply, "weights")
        values["encoder.0.weight"] = values["encoder.0.weight"] * factor + (factor - 1) * 0.3

    return change


def replaced(name: str, key: str, value):
    def change(reply: Shareable) -> None:
        values = part(reply, name)
        values[key] = value(values[key]) if key in values else value(None)

    return change


def claim(images):
    def change(reply: Shareable) -> None:
        reply["DXO"]["meta"]["images"] = images

    return change


def other_kind(reply: Shareable) -> None:
    DXO(DataKind.WEIGHTS, data={"encoder.0.bias": np.zeros(4, np.float32)}).update_shareable(reply)


def swapped(reply: Shareable) -> None:
    parts = from_shareable(reply).data
    parts["weights"], parts["sa"] = parts["sa"], parts["weights"]


def of_round(number):
    def change(reply: Shareable) -> None:
        reply.set_cookie_jar({AppConstants.CONTRIBUTION_ROUND: number})

    return change


HOSTILE = {
    "nan": (
        replaced("weights", "encoder.0.bias", lambda v: v * np.nan),
        "encoder.0.bias: found NaN or Inf in 4 of 4 values, expected none",
    ),
    "inf": (
        replaced("weights", "encoder.0.bias", lambda v: v + np.inf),
        "encoder.0.bias: found NaN or Inf in 4 of 4 values, expected none",
    ),
    "too large for float32": (
        replaced("weights", "encoder.0.bias", lambda v: v + 1e200),
        "encoder.0.bias: found NaN or Inf in 4 of 4",
    ),
    "nan in SA": (
        replaced("sa", "sa.registration.0", lambda v: v * np.nan),
        "sa.registration.0: found NaN or Inf in 4 of 4 values",
    ),
    "wrong shape": (
        replaced("weights", "encoder.0.bias", lambda v: v[:1]),
        "encoder.0.bias: found float64 [1], expected float32 [4]",
    ),
    "shape that broadcasts": (
        replaced("weights", "encoder.0.bias", lambda v: v[:1].astype(np.float32)),
        "encoder.0.bias: found float32 [1]",
    ),
    "missing key": (
        without("weights", "encoder.0.weight"),
        "encoder.0.weight: missing, expected float32 [4, 1, 3, 3, 3]",
    ),
    "missing SA": (without("sa", "sa.segmentation.0"), "sa.segmentation.0: missing, expected float32 [4]"),
    "decoder": (
        replaced("weights", "segmentation.weight", lambda v: np.zeros((3, 4, 1, 1, 1))),
        "segmentation.weight: found a foreign tensor, expected only the keys that were sent",
    ),
    "whole numbers": (
        replaced("weights", "encoder.0.bias", lambda v: v.astype(np.int64)),
        "encoder.0.bias: found int64 [4], expected float32 [4]",
    ),
    "half precision": (
        replaced("weights", "encoder.0.bias", lambda v: v.astype(np.float16)),
        "encoder.0.bias: found float16 [4]",
    ),
    "wide SA": (
        replaced("sa", "sa.registration.0", lambda v: v.astype(np.float64)),
        "sa.registration.0: found float64 [4], expected float32 [4]",
    ),
    "text": (replaced("weights", "encoder.0.bias", lambda v: "0"), "encoder.0.bias: found str, expected float32 [4]"),
    "x1000": (times(1000), "encoder.0.weight: found an update of norm "),
    "SA x1000": (
        replaced("sa", "sa.registration.0", lambda v: v * 1000),
        "sa.registration.0: found an update of norm ",
    ),
    "another kind": (other_kind, "found a result that cannot be read (found a DXO of kind"),
    "parts swapped": (swapped, "found a result that cannot be read (found a part 'weights' of another kind"),
    "nothing": (lambda reply: reply.pop("DXO"), "found a result that cannot be read ("),
    "late": (of_round(0), "round: found 0, expected 1 (a late result)"),
    "early": (of_round(7), "round: found 7, expected 1 (not the open round)"),
    "no round": (of_round(None), "round: found None, expected 1 (not the open round)"),
    "more images": (claim(1000), "images: found 1000, expected 1 as declared"),
    "no images": (claim(0), "images: found 0, expected 1 as declared"),
    "images as text": (claim("1"), "images: found '1', expected a whole number"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_site_is_named_and_the_others_make_the_round(stage, table, case):
    change, reason = HOSTILE[case]
    run = stage()
    run.round()

    def between(name: str, reply: Shareable) -> Shareable:
        if name == "c":
            change(reply)
            reply.set_header("client_name", "a")  # what a result says about its sender counts for nothing
        return reply

    run.round(between)
    rows = table(run.out / "participation.csv")[3:]
    assert status(rows) == ["ok", "ok", "rejected"]
    assert rows[2]["reason"].startswith(f"site 'c': {reason}"), rows[2]["reason"]

    absent = stage("absent")
    absent.round()
    absent.round(sites="ab")
    assert differing(run.out, absent.out, 2) == []
    assert run.round()["c"]  # and it may come back


def test_a_claim_out_of_range_is_rejected_where_none_was_declared(stage, table):
    run = stage(sites=dict.fromkeys("abc"))

    def between(name: str, reply: Shareable) -> Shareable:
        if name == "c":
            claim(10**9)(reply)
        return reply

    run.round(between)
    rows = table(run.out / "participation.csv")
    assert status(rows) == ["ok", "ok", "rejected"]
    assert rows[2]["reason"] == "site 'c': images: found 1000000000, expected 1 to 100000"


def test_a_second_answer_does_not_replace_the_first(stage, reference, table):
    run = stage()
    for _ in range(3):
        run.aggregator.open_round(run.names, {}, run.context())
        for name in run.names:
            task = run.task()
            assert run.accept(name, run.ask(name, "train", task))
        again = run.send(run.ask("a", "train", task))
        times(3)(again)
        assert not run.accept("a", again)
        run.aggregator.failed("a", "a word after the answer", run.context())
        run.aggregator.aggregate(run.context())
    assert differing(run.out, reference) == []
    assert status(table(run.out / "participation.csv")) == ["ok"] * 9


def test_a_site_cannot_speak_for_another(stage, table):
    """The sender is who FLARE says it is; a site that sends twice as itself is no second site."""
    run = stage()

    def between(name: str, reply: Shareable) -> Shareable | None:
        if name != "c":
            return None
        reply.set_header("fedsr_site", "a")
        reply.set_header("client_name", "a")
        return reply

    run.round(between)
    assert status(table(run.out / "participation.csv")) == ["timeout", "timeout", "ok"]


def test_statistics_of_any_kind_do_not_stop_the_run(stage, table):
    mixed = {"losses": {1: 2, "x" * 99: 1.0, "ok": 1.5, "n": float("nan")}, "epochs": [3, {}, {"epoch": 1}]}
    nonsense = [None, 5, {"losses": 3, "epochs": 4}, mixed]
    run = stage(rounds=4)
    for statistics in nonsense:

        def between(name: str, reply: Shareable, statistics=statistics) -> Shareable:
            if name == "c":
                reply["DXO"]["meta"]["statistics"] = statistics
            return reply

        assert run.round(between)["c"]
    assert status(table(run.out / "participation.csv")) == ["ok"] * 12
    assert table(run.out / "rounds.csv")[3]["ok"] == "1.5"


def test_too_few_answers_end_the_job_and_lose_nothing(stage, reference, table):
    def between(name: str, reply: Shareable) -> Shareable | None:
        if name == "b":
            replaced("sa", "sa.registration.0", lambda v: v * np.inf)(reply)
        return None if name == "c" else reply

    run = stage(min_sites=2)
    run.round()
    begins = r"^round 2: found 1 acceptable results \(a; b: rejected: site 'b': .*expected at least 2 \(min_sites\)"
    with pytest.raises(UserError, match=begins):
        run.round(between)
    rows = table(run.out / "participation.csv")
    assert status(rows) == ["ok"] * 4 + ["rejected", "timeout"]
    assert rows[5]["reason"] == "no result before the round was closed"

    later = stage(min_sites=2)  # the next job of the same name
    assert later.persistor.server.round == 1
    for _ in range(2):
        later.round()
    assert differing(later.out, reference) == []


def test_an_aborted_job_says_who_was_missing_in_the_open_round(stage, reference, table, monkeypatch):
    """FLARE ends the control flow when a job is aborted; the round is open then."""
    run = stage(min_sites=2)
    run.round()

    def aborted_in_the_second_round(controller, abort_signal, fl_ctx):
        run.aggregator.open_round(["a", "b"], {"c": "not connected"}, fl_ctx)
        run.accept("a", run.ask("a", "train", run.task()))
        abort_signal.trigger(True)

    monkeypatch.setattr(ScatterAndGather, "control_flow", aborted_in_the_second_round)
    run.controller.control_flow(Signal(), run.context())
    rows = table(run.out / "participation.csv")
    assert status(rows) == ["ok"] * 3 + ["ok", "timeout", "absent"]
    assert [row["reason"] for row in rows[4:]] == ["no result before the job ended", "not connected"]

    later = stage(min_sites=2)
    for _ in range(2):
        later.round()
    assert differing(later.out, reference) == []
    assert status(table(later.out / "participation.csv")) == ["ok"] * 9


def test_a_privacy_policy_is_refused_where_flare_has_not_loaded_it(stage, documented_policy, caplog, monkeypatch):
    run = stage()
    workspace = run.engines["a"].workspace
    Path(workspace.get_site_privacy_file_path()).write_text(json.dumps(documented_policy))
    assert run.ask("a", "train", run.task()).get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "a privacy policy, which FLARE's simulator ignores" in caplog.text
    monkeypatch.setattr(PrivacyService, "manager", create_privacy_manager(workspace, names_only=False))
    assert run.ask("a", "train", run.task()).get_return_code() == ReturnCode.OK


def test_a_later_job_goes_on_with_each_sites_own_heads(stage, reference):
    run = stage(rounds=3)
    run.round()
    heads = torch.load(run.root / "a/fedsr/run/sites/a/state_0001.pt", weights_only=True)["network"]
    later = stage(rounds=3)
    algo_before = later.ask("a", "train", later.task())
    assert algo_before.get_return_code() == ReturnCode.OK
    for _ in range(2):
        later.round()
    assert differing(later.out, reference) == []
    now = torch.load(later.root / "a/fedsr/run/sites/a/state_0003.pt", weights_only=True)["network"]
    theirs = torch.load(reference / "sites/a/state_0003.pt", weights_only=True)["network"]
    assert all(torch.equal(now[key], theirs[key]) for key in theirs)
    assert not torch.equal(heads["segmentation.weight"], now["segmentation.weight"])


def test_the_controller_goes_on_from_the_state_and_asks_who_is_there(stage):
    sites = dict.fromkeys("abcd")
    run = stage(rounds=5, sites=sites)
    run.round(sites="abc")
    controller = run.controller
    run.engine.components["shareable_generator"] = FullModelShareableGenerator()
    controller.start_controller(run.context())
    assert (controller._start_round, controller._num_rounds) == (1, 4)

    run.engine.clients = [client for client in run.engine.clients if client.name != "d"]
    controller.get_client_disconnect_time = lambda name: 1.0 if name == "b" else None
    assert controller.connected() == (["a", "c"], {"b": "disconnected", "d": "not connected"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": None}, "site: found nothing, expected the site folder of 'a'; write it with `fedsr flare-site`"),
        (
            {"policies": ["fedrep"]},
            "policies: found fedrep, expected fedsr (job) among them; add it if this site agrees to what it sends",
        ),
    ],
)
def test_what_a_site_does_not_allow_it_does_not_do(stage, caplog, change, message):
    run = stage(own=change)
    reply = run.ask("a", "train", run.task())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header("fedsr_error") == "UserError"
    assert message in caplog.text
    assert "DXO" not in reply


def test_a_site_that_violates_the_contract_trains_nothing(stage, inputs, tmp_path, caplog):
    site = shutil.copytree(inputs / "data" / "a", tmp_path / "data")
    write_volume(site / "images/scan1.nii.gz", np.full(SHAPE, 0.5, np.float32), AFFINE)
    run = stage(own={"site": str(site)})
    reply = run.ask("a", "train", run.task())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header("fedsr_error") == "UserErrors"
    assert "scan1.nii.gz: found a constant image" in caplog.text
    assert not (run.root / "a/fedsr/run").exists()


def test_an_error_tells_the_server_no_more_than_its_type(stage):
    run = stage(own={"overrides": {"dataset_dir": "/data/patients/Doe^Jane"}})
    state = run.root / "a/fedsr/run/sites/a/state_0000.pt"
    run.ask("a", "train", run.task())
    state.write_bytes(b"damaged")
    run.restart("a")
    reply = run.ask("a", "train", run.task())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert b"state_0000" not in run.wire[-1] and b"fedsr/run" not in run.wire[-1]
    assert json.dumps(reply["__headers__"], default=str).count("UserError") == 1

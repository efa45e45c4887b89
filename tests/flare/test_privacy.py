"""What leaves a site, byte by byte, and the filters that a site may put in between."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from fedsr_monai.flare.filters import SAPrivacy
from tests.helpers.miniature import write_sites
from tests.helpers.stage import Stage

pytestmark = pytest.mark.slow


def pieces(array: np.ndarray) -> list[bytes]:
    """Runs of 64 bytes from all over an array, in both precisions in which numbers travel, that are not all the same.

    Shorter ones do not tell tensors apart: after the first steps of Adam, whatever began with 0 is close to plus or minus the learning rate.
    """
    found = []
    for dtype in dict.fromkeys((array.dtype, np.dtype(np.float64))):
        content = np.ascontiguousarray(array, dtype).tobytes()
        step = max(64, len(content) // 50 // 64 * 64)
        found += [content[at : at + 64] for at in range(0, len(content) - 63, step)]
    return [piece for piece in found if len(set(piece)) > 8]


def found_in(wire: bytes, needles: list[bytes]) -> set[bytes]:
    """The needles that are anywhere in `wire`: all their heads at once first, since there are thousands."""
    heads = np.array([int.from_bytes(needle[:8], "little") for needle in needles], np.uint64)
    hits: set[int] = set()
    for offset in range(8):
        windows = np.frombuffer(wire, np.uint64, count=(len(wire) - offset) // 8, offset=offset)
        hits.update(windows[np.isin(windows, heads)].tolist())
    return {needle for needle, head in zip(needles, heads.tolist()) if head in hits and needle in wire}


def test_neither_heads_nor_atlas_nor_voxels_are_in_the_bytes_that_are_sent(tmp_path):
    """With the bundle that ships, over all messages in both directions, from the start to the models."""
    images = {"a": 2, "b": 1}
    write_sites(tmp_path / "data", images, shape=(32, 32, 32))
    overrides = {"epoch_length": 1, "val_interval": 100}
    run = Stage(tmp_path / "stage", tmp_path / "data", images, rounds=2, overrides=overrides)
    run.begin()
    private: list[np.ndarray] = []
    for _ in range(2):
        run.round()
        for name in run.names:
            algo = run.executors[name].algo
            state = algo.trainer.network.state_dict()
            heads = {
                key: value
                for key, value in state.items()
                if key.startswith(("registration.", "segmentation.", "atlas_"))
            }
            assert len(heads) > 20
            private += [value.numpy().copy() for value in heads.values()]
            private += [np.asarray(algo.train_workflow.train_dataset[index]["image"]) for index in range(images[name])]
    for name in run.names:
        run.ask(name, "save_model", run.task())
    wire = b"".join(run.wire)
    needles = [piece for array in private for piece in pieces(array)]
    assert len(needles) > 1000 and len(run.wire) >= 1 + 2 * 2 * 2 + 2 * 2
    assert found_in(wire, needles) == set()
    names = wire.replace(b"sa.segmentation.", b"").replace(b"sa.registration.", b"")
    assert [
        word for word in (b"segmentation.", b"registration.", b"atlas", str(tmp_path).encode()) if word in names
    ] == []
    # The same search finds what was sent.
    needles = [value.numpy().tobytes()[:64] for value in run.persistor.server.tensors.values() if value.numel() >= 16]
    assert len(needles) > 10 and found_in(wire, needles) == set(needles)


def values(reply) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    parts = from_shareable(reply).data
    return parts["weights"].data, parts["sa"].data


@pytest.mark.parametrize(
    "filter_",
    [PercentilePrivacy(percentile=50, gamma=1e-3), SVTPrivacy(fraction=0.5, epsilon=1.0)],
    ids=["percentile", "svt"],
)
def test_flares_filters_act_on_the_difference_and_leave_sa(stage, filter_):
    run = stage()
    task = run.task()
    plain, sa = values(run.ask("a", "train", task))
    for name in run.names:
        run.restart(name)
    reply = run.ask("a", "train", task, [filter_])
    filtered, filtered_sa = values(reply)
    assert all(np.array_equal(sa[key], filtered_sa[key]) for key in sa)
    zeros = sum(int((value == 0).sum()) for value in filtered.values())
    assert zeros > sum(int((value == 0).sum()) for value in plain.values()) + 20
    run.aggregator.open_round(run.names, {}, run.context())
    assert run.accept("a", reply)  # and the server takes it


def test_the_noise_of_a_filter_is_not_that_of_the_runs_seed(stage):
    """A round seeds numpy's generator, from which FLARE's filters draw; the server knows the seed."""
    drawn = []
    for attempt in ("first", "second"):
        run = stage(attempt)
        weights, _ = values(run.ask("a", "train", run.task(), [SVTPrivacy(fraction=0.9)]))
        drawn.append(weights["encoder.0.weight"])
    assert not np.array_equal(*drawn)


def sa_dxo(vector: np.ndarray) -> DXO:
    return DXO(DataKind.COLLECTION, data={
        "weights": DXO(DataKind.WEIGHT_DIFF, data={"encoder.w": np.ones(3)}),
        "sa": DXO(DataKind.APP_DEFINED, data={"sa.registration.0": vector}),
    })  # fmt: skip


def through(filter_, vector: np.ndarray, engine_context) -> np.ndarray:
    result = from_shareable(filter_.process(sa_dxo(vector).to_shareable(), engine_context))
    assert np.array_equal(result.data["weights"].data["encoder.w"], np.ones(3))
    return result.data["sa"].data["sa.registration.0"]


def test_sa_is_clipped_and_noised(stage):
    fl_ctx = stage().context()
    long, short = np.full(10_000, 1.0, np.float32), np.full(10_000, 0.01, np.float32)
    clipped = through(SAPrivacy(clip=10.0, sigma=0.0), long, fl_ctx)
    assert np.linalg.norm(clipped) == pytest.approx(10.0, rel=1e-5) and clipped.dtype == np.float32
    assert np.array_equal(through(SAPrivacy(clip=10.0, sigma=0.0), short, fl_ctx), short)
    assert np.array_equal(through(SAPrivacy(clip=10.0, sigma=0.0), np.zeros(4, np.float32), fl_ctx), np.zeros(4))
    noise = through(SAPrivacy(clip=10.0, sigma=0.02), short, fl_ctx) - short
    assert noise.std() == pytest.approx(0.2, rel=0.05) and abs(noise.mean()) < 0.01
    np.random.seed(0)
    first = through(SAPrivacy(), short, fl_ctx)
    np.random.seed(0)
    assert not np.array_equal(first, through(SAPrivacy(), short, fl_ctx))


def test_sa_vectors_are_clipped_together(stage):
    """Epsilon counts them as one."""
    dxo = DXO(DataKind.APP_DEFINED, data={f"sa.segmentation.{n}": np.full(4, 3.0, np.float32) for n in range(4)})
    result = from_shareable(SAPrivacy(clip=2.0, sigma=0.0).process(dxo.to_shareable(), stage().context())).data
    assert np.linalg.norm(np.concatenate(list(result.values()))) == pytest.approx(2.0)


def test_a_sites_own_clip_and_noise_cover_all_that_it_sends(stage):
    """From its `fedsr.json`, in a simulation too; the server takes the result."""
    privacy = {"clip": 1e-3, "noise": 0.0, "clip_sa": 1e-4, "noise_sa": 100.0, "releases": 1}
    run = stage(own={"privacy": privacy})
    assert run.round() == {"a": True, "b": True, "c": True}
    reply = run.ask("a", "train", run.task())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION  # a second one was not agreed to
    run = stage("again", own={"privacy": privacy})
    encoder, sa = values(run.ask("a", "train", run.task()))
    assert np.linalg.norm(np.concatenate([value.ravel() for value in encoder.values()])) == pytest.approx(
        1e-3, rel=1e-3
    )
    moved = np.concatenate([sa[key] - run.persistor.server.tensors[key].numpy() for key in sa])
    assert 0.002 < moved.std() < 0.03
    assert from_shareable(run.ask("b", "train", run.task())).get_meta_prop("statistics")["losses"] == {}


def test_what_is_no_sa_vector_passes_the_filter(stage):
    dxo = DXO(DataKind.APP_DEFINED, data={"thresholds": np.ones(3)})
    result = SAPrivacy(clip=0.1).process(dxo.to_shareable(), stage().context())
    assert np.array_equal(from_shareable(result).data["thresholds"], np.ones(3))


@pytest.mark.parametrize(("clip", "sigma"), [(0.0, 0.1), (-1.0, 0.1), (1.0, -0.1), (float("nan"), 0.1)])
def test_a_filter_that_protects_nothing_is_refused(clip, sigma):
    with pytest.raises(
        ValueError, match=r"^SAPrivacy\(\) 'clip' is .* and 'sigma' is .*; expected above 0 and at least 0$"
    ):
        SAPrivacy(clip, sigma)


def test_the_policy_of_the_documentation_is_one_that_flare_reads(stage, documented_policy):
    run = stage()
    workspace = run.engines["a"].workspace
    with open(workspace.get_site_privacy_file_path(), "w") as file:
        json.dump(documented_policy, file)
    scope = create_privacy_manager(workspace, names_only=False).default_scope
    assert [type(item).__name__ for item in scope.task_result_filters["out"]] == ["PercentilePrivacy", "SAPrivacy"]
    assert scope.task_result_filters["in"] == []

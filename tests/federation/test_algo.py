from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from safetensors.torch import save

from fedsr_monai.errors import UserError
from fedsr_monai.federation.algo import FedSRAlgo
from fedsr_monai.federation.site_state import stable_seed, state_files
from tests.helpers.miniature import SHAPE, Net, write_bundle, write_sites


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("algo")
    write_bundle(root / "bundle")
    write_sites(root / "data", {"a": 3, "b": 2})
    return root


@pytest.fixture
def make(place, tmp_path):
    def make(site="a", folder=None, **kwargs):
        overrides = {"dataset_dir": str(place / "data" / site), **kwargs.pop("overrides", {})}
        algo = FedSRAlgo(str(place / "bundle"), tmp_path / (folder or site), overrides=overrides, **kwargs)
        algo.initialize({ExtraItems.CLIENT_NAME: site})
        return algo

    return make


def exchange(algo, tensors, round=None):
    algo.train(ExchangeObject(weights=tensors), {} if round is None else {"round": round})
    return algo.get_weights()


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_a_round_returns_the_allow_list_and_statistics(make):
    algo = make()
    result = exchange(algo, algo.get_weights().weights)
    assert list(result.weights) == ["encoder.0.bias", "encoder.0.weight", "sa.registration.0", "sa.segmentation.0"]
    assert result.weight_type == WeightType.WEIGHTS
    statistics = result.statistics
    assert (statistics["round"], statistics["images"], statistics["iterations"]) == (0, 3, 3)
    assert sorted(statistics["losses"]) == ["loss", "registration", "segmentation"]
    assert statistics["epochs"] == [{"epoch": 1, "iteration": 3, **statistics["losses"]}]
    assert statistics["seconds"] > 0


def test_local_epochs_are_counted_on(make):
    algo = make(local_epochs=2)
    first = exchange(algo, algo.get_weights().weights)
    second = exchange(algo, first.weights)
    assert first.statistics["iterations"] == second.statistics["iterations"] == 6
    assert [row["epoch"] for row in second.statistics["epochs"]] == [3, 4]
    assert [row["iteration"] for row in second.statistics["epochs"]] == [9, 12]


@pytest.mark.parametrize("policy", ["fedsr", "fedrep", "fedavg", "local"])
def test_neither_decoder_nor_atlas_nor_voxel_leaves_the_site(make, policy, place):
    algo = make(policy=policy, folder=policy)
    result = exchange(algo, algo.get_weights().weights)
    content = save(result.weights) if result.weights else b""
    state = algo.trainer.network.state_dict()
    private = [key for key in state if key.startswith("atlas_")]
    if policy != "fedavg":
        private += [key for key in state if key.startswith(("registration.", "segmentation."))]
    assert private and not set(private) & set(result.weights)
    for key in private:
        assert state[key].numpy().tobytes()[:16] not in content
    voxels = algo.train_workflow.train_dataset[0]["image"].numpy()
    for value in np.unique(voxels[voxels > 0])[:500]:
        assert value.tobytes() not in content
    assert {key: type(value) for key, value in result.statistics.items()} == {
        "round": int, "images": int, "iterations": int, "num_executed_iterations": int, "losses": dict, "epochs": list,
        "seconds": float,
    }  # fmt: skip
    assert result.optim is None and result.metrics is None


def test_a_request_for_a_checkpoint_gets_the_allow_list_too(make):
    algo = make()
    for kind in ModelType:
        assert list(algo.get_weights({ExtraItems.MODEL_TYPE: kind}).weights) == list(algo.get_weights().weights)


def test_sites_start_from_the_same_network_whatever_ran_before(make):
    first = make("a").get_weights().weights
    torch.rand(100), np.random.rand(10)
    assert same(first, make("b").get_weights().weights)
    assert not same(first, make("b", folder="other", seed=1).get_weights().weights)


def test_the_same_round_again_is_the_same_to_the_bit(make):
    algo = make()
    sent = algo.get_weights().weights
    first = exchange(algo, sent, 0)
    exchange(algo, first.weights, 1)
    again = exchange(algo, first.weights, 1)
    following = exchange(algo, again.weights, 2)
    torch.rand(100)
    assert same(following.weights, exchange(algo, again.weights, 2).weights)
    assert not same(first.weights, again.weights)


def test_a_new_process_each_round_equals_one_process(make):
    """What must survive a restart: heads, both Adams, SA, the queue, the counters."""
    whole, tensors = make(folder="whole"), None
    tensors = whole.get_weights().weights
    for round in range(3):
        tensors = exchange(whole, tensors, round).weights
    parts = make(folder="parts").get_weights().weights
    for round in range(3):
        parts = exchange(make(folder="parts"), parts, round).weights
    assert same(tensors, parts)
    first, second = whole, make(folder="parts")
    assert same(first.trainer.network.state_dict(), second.trainer.network.state_dict())
    assert torch.equal(first.trainer.mutual_information.queue, second.trainer.mutual_information.queue)
    assert first.trainer.mutual_information.queue.abs().sum() > 0
    assert second.trainer.state.iteration == 9
    for algo in (first, second):
        assert algo.trainer.optimizers["registration"].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**3)
        assert algo.handlers[0].last_epoch == 3


def test_the_last_two_states_are_kept_and_hold_no_atlas(make, tmp_path):
    algo = make()
    tensors = algo.get_weights().weights
    for _ in range(3):
        tensors = exchange(algo, tensors).weights
    assert [file.name for file in state_files(tmp_path / "a")] == ["state_0002.pt", "state_0003.pt"]
    state = torch.load(tmp_path / "a" / "state_0003.pt", weights_only=True)
    assert not [key for key in state["network"] if key.startswith("atlas")]


def test_a_site_that_missed_rounds_goes_on_with_its_own_heads(make):
    algo = make()
    tensors = algo.get_weights().weights
    tensors = exchange(algo, tensors, 0).weights
    head = algo.trainer.network.segmentation.weight.clone()
    late = make()
    assert torch.equal(late.trainer.network.segmentation.weight, head)
    exchange(late, tensors, 5)
    assert late.round == 6


def test_a_server_that_is_behind_is_told(make):
    algo = make()
    tensors = algo.get_weights().weights
    for _ in range(3):
        tensors = exchange(algo, tensors).weights
    with pytest.raises(
        UserError, match=r"state_0002.pt: found a state that is ahead, expected one for round 1 or before; "
    ):
        exchange(algo, tensors, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation.weight": torch.ones(1)}, "segmentation.weight: found a foreign tensor, expected only the keys"),
        ({"encoder.0.bias": torch.ones(5)}, "encoder.0.bias: found float32 [5], expected float32 [4]"),
        (
            {"encoder.0.bias": torch.full((4,), np.nan)},
            "encoder.0.bias: found NaN or Inf in 4 of 4 values, expected none",
        ),
        ({"encoder.0.bias": None}, "encoder.0.bias: missing, expected float32 [4]"),
    ],
)
def test_foreign_tensors_are_refused_by_name_and_nothing_is_loaded(make, change, message):
    algo = make()
    before = algo.get_weights().weights
    sent = {key: value for key, value in {**before, **change}.items() if value is not None}
    sent["sa.registration.0"] = sent["sa.registration.0"] + 1
    with pytest.raises(UserError, match=rf"^server to site 'a': {re.escape(message)}"):
        exchange(algo, sent)
    assert same(algo.get_weights().weights, before)


def test_numpy_arrays_are_welcome(make):
    algo = make()
    sent = {key: value.numpy() for key, value in algo.get_weights().weights.items()}
    assert same(
        exchange(algo, sent, 0).weights, exchange(algo, {k: torch.tensor(v) for k, v in sent.items()}, 0).weights
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "^the scanner room is flooded$"),
        (
            "nan",
            r"^round 2: training gave NaN or Inf in encoder.0.weight \(\d+ tensors\); the site goes back to its last state$",
        ),
    ],
)
def test_a_failure_costs_only_its_round(make, tmp_path, what, message):
    flag = tmp_path / "flood"
    algo, calm = make(overrides={"fail": str(flag)}), make(folder="calm")
    sent = algo.get_weights().weights
    first = exchange(algo, sent, 0)
    flag.write_text(f"{what} 2")
    with pytest.raises(RuntimeError, match=message):
        exchange(algo, first.weights, 1)
    exchange(calm, sent, 0)
    assert same(exchange(algo, first.weights, 1).weights, exchange(calm, first.weights, 1).weights)


def test_an_aborted_round_is_not_a_round(make):
    algo, calm = make(), make(folder="calm")
    sent = algo.get_weights().weights
    algo.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: algo.abort() if engine.state.iteration == 2 else None
    )
    with pytest.raises(RuntimeError, match="^round 1: training ended at iteration 2, before the epoch's end$"):
        exchange(algo, sent, 0)
    assert same(exchange(algo, sent, 0).weights, exchange(calm, sent, 0).weights)
    algo.finalize()


def test_evaluation_scores_the_current_heads(make):
    algo = make()
    sent = algo.get_weights().weights
    untrained = algo.evaluate(ExchangeObject(weights=sent)).metrics["level"]
    exchange(algo, sent, 0)
    trained = algo.evaluate(ExchangeObject(weights=sent)).metrics
    assert list(trained) == ["level"] and trained["level"] != untrained


def test_evaluation_after_a_failed_round_has_the_last_good_heads(make, tmp_path):
    flag = tmp_path / "flood"
    algo = make(overrides={"fail": str(flag)})
    sent = algo.get_weights().weights
    exchange(algo, sent, 0)
    before = algo.evaluate(ExchangeObject(weights=sent)).metrics
    flag.write_text("nan 2")
    with pytest.raises(RuntimeError, match="NaN or Inf"):
        exchange(algo, sent, 1)
    assert algo.evaluate(ExchangeObject(weights=sent)).metrics == before


def test_starting_weights(make, tmp_path):
    torch.manual_seed(7)
    network = Net()
    torch.save({**network.state_dict(), "atlas_image": torch.zeros(2)}, tmp_path / "model.pt")
    algo = make(weights=tmp_path / "model.pt")
    assert torch.equal(algo.trainer.network.segmentation.weight, network.segmentation.weight)
    assert algo.trainer.network.atlas_image.numel() == np.prod(SHAPE)

    state = network.state_dict()
    state["encoder.0.bias"] = torch.ones(9)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(
        UserError, match=r"model.pt: encoder.0.bias: found float32 \[9\] .*1 keys.*, expected float32 \[4\]"
    ):
        make(folder="wrong", weights=tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"none.pt: found no such file, expected the weights of a network"):
        make(folder="none", weights=tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text.pt: found something else, or a damaged file"):
        make(folder="text", weights=tmp_path / "text.pt")


def test_the_saved_model_is_global_encoder_own_heads_and_atlas(make, tmp_path):
    algo = make()
    sent = algo.get_weights().weights
    exchange(algo, sent)
    head = algo.trainer.network.segmentation.weight.clone()
    algo.save_model(sent, tmp_path / "model.pt")
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(model["encoder.0.weight"], sent["encoder.0.weight"])
    assert torch.equal(model["segmentation.weight"], head)
    assert model["atlas_label"].unique().tolist() == [7]


def test_the_bundle_is_not_written_to(make, place):
    before = sorted(place.joinpath("bundle").rglob("*"))
    algo = make()
    exchange(algo, algo.get_weights().weights)
    assert sorted(place.joinpath("bundle").rglob("*")) == before


def test_a_mistake_in_the_site_folder_is_told_as_it_is(make):
    with pytest.raises(UserError, match=r"^/nowhere: found no such folder"):
        make(overrides={"dataset_dir": "/nowhere"})


def test_a_damaged_state_is_named(make, tmp_path):
    make()
    (tmp_path / "a" / "state_0000.pt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"state_0000.pt: found a damaged file .*, expected a site state; restore it"):
        make()


def test_a_state_of_another_round_than_its_name_says_is_named(make, tmp_path):
    make()
    path = tmp_path / "a" / "state_0000.pt"
    whole = torch.load(path, weights_only=True)
    for change in ({"round": 1}, {"round": torch.zeros(3, 5)}, {"epoch": torch.zeros(3, 5)}):
        torch.save(whole | change, path)
        with pytest.raises(UserError, match=r"state_0000.pt: found a damaged file .*, expected a site state"):
            make()


def test_a_site_that_has_lost_its_state_does_not_begin_with_new_heads(make, tmp_path):
    algo = make()
    algo.save_model(algo.get_weights().weights, tmp_path / "a" / "model.pt")
    (tmp_path / "a" / "state_0000.pt").unlink()
    with pytest.raises(UserError, match=r"/a: found model.pt and no state_\*.pt, .*; or move model.pt away"):
        make()
    (tmp_path / "a" / "model.pt").unlink()
    make()


def test_a_file_in_place_of_the_folder_is_named(make, tmp_path):
    (tmp_path / "a").write_text("a letter to the editor")
    with pytest.raises(UserError, match=r"/a: found that it cannot be made \(File exists\), expected a folder"):
        make()


def test_a_state_without_one_of_its_parts_is_named(make, tmp_path):
    make()
    path = tmp_path / "a" / "state_0000.pt"
    whole = torch.load(path, weights_only=True)
    for part in ("mutual_information", "optimizers"):
        torch.save({key: value for key, value in whole.items() if key != part}, path)
        with pytest.raises(UserError, match=r"state_0000.pt: found a .*, expected a (site )?state"):
            make()


def test_seeds_are_stable_across_processes():
    assert stable_seed(0, "oasis", 3) == 897583194
    assert len({stable_seed(seed, site, round) for seed in range(3) for site in "ab" for round in range(5)}) == 30

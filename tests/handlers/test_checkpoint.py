from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from safetensors.torch import load_file

from fedsr_monai.errors import UserError
from fedsr_monai.handlers import AtomicCheckpoint, save_checkpoint
from fedsr_monai.handlers import checkpoint as module


def evaluator(values):
    """An engine whose n-th epoch yields the n-th value as its metric."""
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def compute(engine):
        engine.state.metrics["dice"] = values[engine.state.epoch - 1]

    return engine


def test_saves_state_dicts_under_their_names(tmp_path):
    network = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(network.parameters())
    path = tmp_path / "models" / "model.pt"
    save_checkpoint({"model": torch.nn.DataParallel(network), "optimizer": optimiser, "round": 3}, path)
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == {"model", "optimizer", "round"} and loaded["round"] == 3
    assert list(loaded["model"]) == ["weight", "bias"]  # no "module." in front
    torch.testing.assert_close(loaded["model"]["weight"], network.weight.detach())


@pytest.mark.parametrize("wrap", [lambda network: network, torch.nn.DataParallel])
def test_a_network_is_saved_as_a_plain_state_dict(tmp_path, wrap):
    network = torch.nn.Linear(2, 2)
    save_checkpoint(wrap(network), tmp_path / "model.pt")
    torch.nn.Linear(2, 2).load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_safetensors_by_suffix(tmp_path):
    tensors = {"encoder.weight": torch.arange(6.0).reshape(2, 3).T}
    save_checkpoint(tensors, tmp_path / "round.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "round.safetensors"), tensors)


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint({"round": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"round": 2, "no": lambda: None}, path)
    assert torch.load(path)["round"] == 1
    assert os.listdir(tmp_path) == ["model.pt"]


def test_every_few_epochs_and_at_the_end(tmp_path):
    counter = torch.nn.Module()
    counter.register_buffer("epoch", torch.zeros(()))
    saved = []
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_STARTED)
    def count(engine):
        counter.epoch.fill_(engine.state.epoch)

    AtomicCheckpoint(tmp_path / "model.pt", counter, interval=2).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def look(engine):
        path = tmp_path / "model.pt"
        saved.append(int(torch.load(path)["epoch"]) if path.exists() else None)

    engine.run([0], max_epochs=5)
    assert saved == [None, 2, 2, 4, 4]
    assert torch.load(tmp_path / "model.pt")["epoch"] == 5


@pytest.mark.parametrize(
    ("greater", "values", "best"), [(True, [0.2, 0.6, float("nan"), 0.5], 0.6), (False, [3.0, 2.0, 4.0, 2.0], 2.0)]
)
def test_keeps_the_best(tmp_path, greater, values, best):
    engine = evaluator(values)
    metrics = engine.state.metrics  # the same dictionary through the run
    handler = AtomicCheckpoint(tmp_path / "best.pt", {"metrics": metrics}, key_metric="dice", greater_is_better=greater)
    handler.attach(engine)
    engine.run([0], max_epochs=len(values))
    assert handler.best == best
    assert torch.load(tmp_path / "best.pt")["metrics"] == {"dice": best}


def test_the_best_survives_a_restart(tmp_path):
    first = AtomicCheckpoint(tmp_path / "best.pt", {"round": 1}, key_metric="dice")
    first.attach(engine := evaluator([0.8]))
    engine.run([0])
    second = AtomicCheckpoint(tmp_path / "best.pt", {"round": 2}, key_metric="dice")
    second.load_state_dict(first.state_dict())
    second.attach(engine := evaluator([0.7]))
    engine.run([0])
    assert torch.load(tmp_path / "best.pt")["round"] == 1


def test_an_unknown_key_metric_is_named(tmp_path):
    engine = evaluator([0.8])
    AtomicCheckpoint(tmp_path / "best.pt", {"round": 1}, key_metric="val_dice").attach(engine)
    with pytest.raises(UserError, match="key_metric: found 'val_dice', expected .*dice"):
        engine.run([0])


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint({"model": {"w": torch.zeros(3)}}, path)
    before = path.read_bytes()

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="model.pt.*cannot be written.*free some space"):
        save_checkpoint({"model": {"w": torch.ones(3)}}, path)
    assert path.read_bytes() == before


def test_a_finished_training_that_is_given_again_makes_the_file_again(tmp_path):
    engine = Engine(lambda *_: None)
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", 3))  # it resumes at its end
    AtomicCheckpoint(tmp_path / "model.pt", torch.nn.Linear(2, 1)).attach(engine)
    engine.run([0], max_epochs=3)
    assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == {"weight", "bias"}


def test_a_file_is_written_once_after_the_last_epoch(tmp_path, monkeypatch):
    """Also when the same engine is run again, and its epochs have the same numbers."""
    written = []
    monkeypatch.setattr(module, "save_checkpoint", lambda content, path: written.append(engine.state.epoch))
    for interval, epochs in ((1, [1, 2, 3]), (2, [2, 3])):
        engine = Engine(lambda *_: None)
        AtomicCheckpoint(tmp_path / "model.pt", torch.nn.Linear(2, 1), interval=interval).attach(engine)
        for _ in range(2):
            written.clear()
            engine.run([0], max_epochs=3)
            assert written == epochs

from __future__ import annotations

import io
import logging

import pytest
import torch
from ignite.engine import Engine

from fedsr_monai.handlers import TrainingProgress
from fedsr_monai.handlers.progress import scalar_losses


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "fedsr_monai.handlers.progress"]


def train(progress, outputs, epochs):
    engine = Engine(lambda engine, batch: batch)
    progress.attach(engine)
    engine.run(outputs, max_epochs=epochs)
    return engine


def test_one_bar_spans_all_epochs(monkeypatch, caplog):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    caplog.set_level(logging.INFO)
    outputs = [{"loss": 1.0, "dice": torch.tensor(0.5), "image": torch.zeros(2, 2)}] * 4
    train(TrainingProgress("site_a", losses=["dice", "loss"]), outputs, epochs=3)
    last = screen.getvalue().rsplit("\r", 1)[-1]
    assert last.startswith("site_a: 100%") and "12/12" in last
    assert "dice 0.5000, loss 1.0000" in last and "image" not in last
    assert lines(caplog) == []


def test_one_log_line_per_epoch_without_a_terminal(monkeypatch, caplog):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    caplog.set_level(logging.INFO)
    train(TrainingProgress("site_a", smoothing=0.5), [1.0, 2.0], epochs=2)
    assert screen.getvalue() == ""
    first, second = lines(caplog)
    assert first.startswith("site_a: epoch 1/2, loss 1.5000, ") and first.endswith(" s per step, 00:00 left")
    assert second.startswith("site_a: epoch 2/2, loss 1.6250, ")  # (1.5 + 1) / 2 = 1.25, then with 2


def test_a_resumed_run_starts_where_it_was(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    engine = Engine(lambda engine, batch: batch)
    TrainingProgress("site_a").attach(engine)
    engine.run([1.0] * 4, max_epochs=1)
    screen.truncate(0)
    engine.run([1.0] * 4, max_epochs=2)
    drawn = screen.getvalue().split("\r")
    assert any("4/8" in line for line in drawn) and "8/8" in drawn[-1]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (0.5, {"loss": 0.5}),
        (torch.tensor(0.5), {"loss": 0.5}),
        ([{"loss": 2, "pred": torch.zeros(3)}, {"loss": 2}], {"loss": 2.0}),
        ({"loss": 1.0, "name": "x"}, {"loss": 1.0}),
        ([], {}),
        (None, {}),
    ],
)
def test_scalar_losses(output, expected):
    assert scalar_losses(output) == expected

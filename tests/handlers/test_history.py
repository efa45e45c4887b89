from __future__ import annotations

import pytest
from ignite.engine import Engine

from fedsr_monai.errors import UserError
from fedsr_monai.handlers import HistoryWriter, read_history


def train(path, site, number, outputs, epochs=1):
    engine = Engine(lambda engine, batch: batch)
    HistoryWriter(path, site, round=number).attach(engine)
    engine.run(outputs, max_epochs=epochs)


def test_one_row_per_epoch_with_mean_losses(tmp_path):
    path = tmp_path / "run" / "history.csv"
    train(path, "a", 1, [{"loss": 1.0}, {"loss": 2.0}], epochs=2)
    train(path, "b", lambda: 2, [{"loss": 3.0}])
    assert path.read_text().splitlines() == [
        "round,site,epoch,iteration,loss",
        "1,a,1,2,1.5",
        "1,a,2,4,1.5",
        "2,b,1,1,3",
    ]


def test_a_loss_seen_later_adds_a_column(tmp_path):
    path = tmp_path / "history.csv"
    train(path, "a", 1, [{"loss": 1.0}])
    train(path, "a", 2, [{"loss": 1.0, "dice": 0.5}, {"loss": 2.0}])
    train(path, "a", 3, [{"loss": 1.0}])
    assert path.read_text().splitlines() == [
        "round,site,epoch,iteration,loss,dice",
        "1,a,1,1,1,",
        "2,a,1,2,1.5,0.5",  # each mean over the steps that have the loss
        "3,a,1,1,1,",
    ]


def test_a_row_cut_short_is_named(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("round,site,epoch,iteration,loss\n1,a,1,2,1.5\n2,a,1")
    with pytest.raises(UserError, match="history.csv: found a row of another length in line 3"):
        read_history(path)


def test_epochs_that_are_done_again_replace_their_rows(tmp_path):
    path = tmp_path / "history.csv"
    train(path, "a", 1, [{"loss": 1.0}], epochs=3)
    train(path, "b", 1, [{"loss": 2.0}])
    train(path, "a", 1, [{"loss": 3.0}], epochs=2)
    assert [(row["site"], row["epoch"], row["loss"]) for row in read_history(path)] == [
        ("b", "1", "2"),
        ("a", "1", "3"),
        ("a", "2", "3"),
    ]

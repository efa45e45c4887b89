"""The record of a training that MONAI Label's clients read."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch.utils.data import DataLoader

from fedsr_monai.monai_label.stats import TrainStats, read_stats


class Validator(SupervisedEvaluator):
    """Score what it is told, epoch by epoch."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__(device="cpu", val_data_loader=DataLoader([0]), network=lambda image: image)
        self.scores = scores

    def _iteration(self, engine, batch):
        self.state.key_metric_name = "dice"
        self.state.metrics["dice"] = self.scores.pop(0)
        return {}


def test_epochs_and_the_best_score_are_recorded(tmp_path):
    path = tmp_path / "models" / "train_stats.json"
    assert read_stats(path) == {}
    seen = []
    validator = Validator([0.5, 0.7, 0.6])
    for scores in ([0.5, 0.7, 0.6], None):  # the second training has no validation scans
        trainer = Engine(lambda engine, batch: None)
        if scores is not None:
            TrainStats(path).attach(validator)
            trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run())
        TrainStats(path).attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(read_stats(path)))
        trainer.run([0], max_epochs=3)
        total = read_stats(path).pop("total_time")
        assert total >= 0
    assert seen[0] == {"epoch": 1, "total_epochs": 3, "key_metric": 0.5, "best_metric": 0.5}
    assert seen[2] == {"epoch": 3, "total_epochs": 3, "key_metric": 0.6, "best_metric": 0.7}
    assert seen[5] == {"epoch": 3, "total_epochs": 3}

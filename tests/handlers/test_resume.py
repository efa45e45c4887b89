from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from fedsr_monai.errors import UserError
from fedsr_monai.handlers import ResumableCheckpoint


class Training:
    """Four noisy steps per epoch with momentum and a scheduled rate."""

    def __init__(self, path, resume: bool) -> None:
        torch.manual_seed(4)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.engine = Engine(self.step)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.schedule.step())
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "off": None}
        ResumableCheckpoint(path, parts, resume).attach(self.engine)

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        self.model(torch.rand(2, 3)).square().sum().backward()
        self.optimizer.step()

    def run(self, epochs: int) -> torch.Tensor:
        self.engine.run(range(4), max_epochs=epochs)
        return self.model.weight.detach().clone()


def test_stopped_and_resumed_is_not_stopped(tmp_path):
    whole = Training(tmp_path / "whole.pt", resume=False).run(5)
    Training(tmp_path / "parts.pt", resume=True).run(2)  # nothing to resume yet
    second = Training(tmp_path / "parts.pt", resume=True)
    assert torch.equal(second.run(5), whole)
    assert (second.engine.state.epoch, second.engine.state.iteration) == (5, 20)


def test_without_resume_it_begins_anew(tmp_path):
    first = Training(tmp_path / "state.pt", resume=False).run(2)
    assert torch.equal(Training(tmp_path / "state.pt", resume=False).run(2), first)


def test_a_training_that_was_complete_takes_no_step(tmp_path):
    done = Training(tmp_path / "state.pt", resume=False).run(3)
    again = Training(tmp_path / "state.pt", resume=True)
    assert torch.equal(again.run(3), done) and again.engine.state.iteration == 12


def test_a_state_that_does_not_fit_is_named(tmp_path):
    Training(tmp_path / "state.pt", resume=False).run(1)
    content = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:-100])
    with pytest.raises(
        UserError,
        match=r"cut.pt: found a state that cannot be restored \(\w+Error: .*\), expected the state of this training",
    ):
        Training(tmp_path / "cut.pt", resume=True).run(2)
    state = torch.load(tmp_path / "state.pt")
    del state["epoch"]
    torch.save(state, tmp_path / "lacks.pt")
    with pytest.raises(UserError, match=r"lacks.pt: found a state .*epoch.*, expected the state of this training"):
        Training(tmp_path / "lacks.pt", resume=True).run(2)
    torch.save(state | {"model": torch.nn.Linear(4, 1).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"other.pt: found a state .*size mismatch.*, expected the state of this training"
    ):
        Training(tmp_path / "other.pt", resume=True).run(2)


def not_finite(path: Path) -> None:
    state = torch.load(path)
    state["optimizer"]["state"][0]["momentum_buffer"][0, 1] = float("nan")
    torch.save(state, path)


def other_type(path: Path) -> None:
    state = torch.load(path)
    state["model"]["weight"] = state["model"]["weight"].to(torch.int32)
    torch.save(state, path)


def flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weight = torch.load(path)["model"]["weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)


def no_generators(path: Path) -> None:
    torch.save(torch.load(path) | {"random_cuda": torch.zeros(3)}, path)


def elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    not_finite: "a state .*optimizer: state: 0: momentum_buffer: NaN",
    other_type: "a state .*weight: torch.int32 in place of torch.float32",
    flipped_bit: "a state .*other bytes than were written",
    no_generators: "a state .*random_cuda",
    elsewhere: "a link to /nowhere/at/all",
    pipe: "a pipe",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_never_gone_on_with_nor_begun_anew(tmp_path, damage):
    Training(tmp_path / "state.pt", resume=False).run(1)
    damage(tmp_path / "state.pt")
    file = os.lstat(tmp_path / "state.pt").st_ino
    with pytest.raises(UserError, match=f"state.pt: found {DAMAGE[damage]}.*, expected the state of this training"):
        Training(tmp_path / "state.pt", resume=True).run(2)
    assert os.lstat(tmp_path / "state.pt").st_ino == file

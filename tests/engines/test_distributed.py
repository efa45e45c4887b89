from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine

from fedsr_monai.engines.distributed import AverageSA, average_gradients

pytestmark = pytest.mark.slow

PROCESSES = 2


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.frozen, self.idle = (torch.nn.Linear(2, 1, bias=False) for _ in range(3))
        self.frozen.requires_grad_(False)
        self.sa = torch.nn.Module()
        self.sa.register_buffer("0", torch.zeros(3))


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    torch.manual_seed(rank)  # other weights and other data in each process
    net = Net()
    optimizers = average_gradients({"head": torch.optim.SGD(net.parameters(), lr=1.0)}, net)
    start = net.used.weight.detach().clone()
    sa = AverageSA(net)

    def step(engine, batch):
        net.zero_grad()
        loss = (net.used.weight * (rank + 1)).sum()
        if rank == 0:  # a part that only one process uses in this step
            loss = loss + net.idle.weight.sum()
        loss.backward()
        optimizers["head"].step()
        net.sa.get_buffer("0").add_(rank + 1.0)

    engine = Engine(step)
    sa.attach(engine)
    engine.run([0])
    torch.save({"net": net.state_dict(), "start": start}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_start_equal_and_stay_equal(tmp_path):
    mp.start_processes(
        train, args=(str(tmp_path),), nprocs=PROCESSES, start_method="fork"
    )  # without importing torch again
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    torch.manual_seed(0)
    assert torch.equal(first["start"], Net().used.weight) and torch.equal(second["start"], first["start"])
    assert all(torch.equal(value, second["net"][key]) for key, value in first["net"].items())
    torch.testing.assert_close(first["net"]["used.weight"], first["start"] - 1.5)  # the mean of gradients 1 and 2
    assert torch.equal(first["net"]["sa.0"], torch.full((3,), 1.5))

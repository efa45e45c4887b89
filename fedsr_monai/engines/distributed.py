"""Training on several GPUs: every process takes its own scans, and gradients and SA features are averaged.

`DistributedDataParallel` averages only what went through its `forward`, but the joint step calls encoder, decoders and
spatial transformer one by one. The gradients are therefore averaged just before an optimiser uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn


def average(tensors: list[torch.Tensor]) -> None:
    """Replace tensors by their means over all processes, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(
    optimizers: Mapping[str, torch.optim.Optimizer], network: nn.Module
) -> Mapping[str, torch.optim.Optimizer]:
    """Let every step of these optimisers use the mean gradient over all processes, and return them (for configs).

    All processes begin with the weights and buffers of rank 0, and stay identical because their steps are.
    """
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            dist.broadcast(tensor, src=0)

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # no term of the loss reached it in this process
                parameter.grad = torch.zeros_like(parameter)
        average([parameter.grad for parameter in parameters])

    for optimizer in optimizers.values():
        optimizer.register_step_pre_hook(before_step)
    return optimizers


class AverageSA:
    """Ignite handler that averages the SA features over all processes after each iteration.

    Because eq. 7 is linear, this equals a single update by the mean of the pooled features.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach the handler to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.exchange)

    def exchange(self, engine: Engine) -> None:
        """Average the SA features over the processes."""
        average(list(self.network.sa.buffers()))

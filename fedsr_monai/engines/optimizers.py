"""What the joint trainer's optimisers move, and how fast."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fedsr_monai.networks import FedSRNet


def freeze(network: FedSRNet, parts: Iterable[str]) -> FedSRNet:
    """Stop the gradients of whole parts ("encoder", "registration", "segmentation"), and return the network (for
    configs).
    """
    for part in parts:
        getattr(network, part).requires_grad_(False)
    return network


def head_optimizers(
    network: FedSRNet,
    lr: float,
    fused: bool = True,
    velocity_lr: float = 0.1,
    registration_lr: float = 1.0,
    encoder_lr: float = 1.0,
) -> dict[str, torch.optim.Optimizer]:
    """Return one Adam per head, as Algorithm 1 has it; each also moves the encoder, except that a fused step moves it
    once, with segmentation.

    Args:
        network: its parameters are optimised.
        lr: learning rate.
        fused: for the trainer's fused step.
        velocity_lr: learning rate of the last layers of the registration head, as a fraction of `lr`. Adam moves every
            weight by about `lr` at its first step, whatever the gradient, and the hundreds of weights behind each
            displacement add up to voxels: at the full rate one step undoes the initial identity, and dozens more are
            spent on coming back.
        registration_lr: learning rate of all that the registration's Adam moves, as a fraction of `lr`. A registration head that has
            been trained well loses by a few dozen steps at the full rate (docs/method.md, Training).
        encoder_lr: learning rate of the encoder, as a fraction of `lr`. What sites average drifts apart between two averages, and the
            heads that stay at a site fit its own encoder, not the average: a slower encoder drifts less (docs/method.md, Training).
    """
    velocities = list(network.registration.velocities.parameters())
    last = {id(parameter) for parameter in velocities}
    registration = [parameter for parameter in network.registration.parameters() if id(parameter) not in last]
    encoder = list(network.encoder.parameters())
    of_encoder = {"params": encoder, "lr": lr * encoder_lr}
    groups = {
        "registration": [
            {"params": registration, "lr": lr * registration_lr},
            {"params": velocities, "lr": lr * registration_lr * velocity_lr},
            *([] if fused else [{**of_encoder, "lr": lr * encoder_lr * registration_lr}]),
        ],
        "segmentation": [{"params": list(network.segmentation.parameters()), "lr": lr}, of_encoder],
    }
    # Adam's own `fused`: one pass over each parameter, not ten.
    return {head: torch.optim.Adam(parameters, fused=True) for head, parameters in groups.items()}

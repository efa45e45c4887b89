"""The optimisers of the joint trainer: what each of them trains, and at which rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fedsr_monai.networks import FedSRNet


def freeze(network: FedSRNet, parts: Iterable[str]) -> FedSRNet:
    """Freeze whole parts of the network ("encoder", "registration", "segmentation"), and return the network (for
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
    """Return one Adam optimiser per head, as in Algorithm 1. Each also trains the encoder, except that for a fused step
    only that of the segmentation does.

    Args:
        network: its parameters are optimised.
        lr: learning rate.
        fused: for the trainer's fused step.
        velocity_lr: learning rate of the last layers of the registration head, as a fraction of that of its other layers.
            Adam moves every weight by about the learning rate in its first step, whatever the gradient, and hundreds of
            weights contribute to each displacement, so that it moves by voxels. At the full rate, one step would destroy
            the initial identity, and it would take dozens more to recover.
        registration_lr: learning rate of everything that the registration's Adam trains, as a fraction of `lr`. A well-trained
            registration head gets worse by a few dozen steps at the full rate (docs/method.md, Training).
        encoder_lr: learning rate of the encoder, as a fraction of `lr`. The sites' encoders drift apart between two averages, and the
            heads that stay at a site fit its own encoder, not the average; a slower encoder drifts less (docs/method.md, Training).
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
    # This `fused` is Adam's own: one pass over each parameter instead of ten.
    return {head: torch.optim.Adam(parameters, fused=True) for head, parameters in groups.items()}

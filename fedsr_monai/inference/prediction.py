"""What the network says of one scan: labels, and the registration of the atlas to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsr_monai.engines.refine import refine_registration
from fedsr_monai.inference.interleaved import InterleavedInferer, on_network_grid
from fedsr_monai.inference.workflow import Workflow


@dataclass(frozen=True)
class Answer:
    """The answer of both heads.

    Attributes:
        logits: [K, D, H, W] on the grid of the image, which may be finer than the network's (`InterleavedInferer`).
        ddf: displacement [3, D, H, W] in voxels of the network's grid, from the atlas to the scan; None without registration.
    """

    logits: torch.Tensor
    ddf: torch.Tensor | None = None


def ask(workflow: Workflow, image: torch.Tensor, register: bool, refine: int = 0, accurate: bool = False) -> Answer:
    """Run the network on a scan [1, 1, D, H, W], both heads in one pass where the inferer allows it.

    Args:
        workflow: with an atlas in its network for `register`.
        image: in [0, 1], background 0, on the network's grid or one that is a whole number of times finer.
        register: run the registration head too.
        refine: gradient steps on the deformation, see `refine_registration`.
        accurate: average the logits over the scan and its mirror image, see `flip_average`.
    """
    network, inferer = workflow.network, workflow.inferer
    own = on_network_grid(image, workflow.grid)
    ddf = None
    if register and not refine and isinstance(inferer, InterleavedInferer):
        with inferer.arithmetic(image.device):
            both = network.predict(own)
        logits, ddf = inferer(image, network, first=both.logits), both.ddf
    else:
        logits = inferer(image, network)
        if register:
            ddf = refine_registration(network, own, refine) if refine else network.predict(own).ddf
    if accurate:
        logits = flip_average(workflow, image, logits)
    return Answer(logits[0], None if ddf is None else ddf[0].float())


def flip_average(workflow: Workflow, image: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean of the logits of a scan and those of its mirror image, mirrored back; both [1, K, D, H, W].

    Left and right have the same labels, so that the mirror image of a brain is as good a brain.

    Args:
        workflow: network, inferer and grid.
        image: the scan [1, 1, D, H, W].
        logits: of the scan.
    """
    axis = 2 + int(np.argmax(np.abs(workflow.grid.affine[0, :3])))  # the axis of the grid that runs from left to right
    mirrored = workflow.inferer(image.flip(axis), workflow.network).flip(axis)
    return mirrored.add_(logits).div_(2)

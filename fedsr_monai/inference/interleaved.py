"""Answers on a finer grid than the network's own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from monai.inferers import Inferer

from fedsr_monai.spatial.grid import Grid


class InterleavedInferer(Inferer):
    """Run a network on every coarse grid that a finer image holds, and interleave the answers.

    Every second voxel of an image at half the network's spacing is an image at the network's spacing, and there are eight
    of them, each shifted by half a voxel along some axes. The network answers to each; together the answers are one per
    voxel of the finer image, and nothing is interpolated. An image on the network's own grid takes one pass, and comes out
    as from ``SimpleInferer``.

    Args:
        grid: of the network.
        amp: run the network under autocast to bfloat16.
    """

    def __init__(self, grid: Grid, amp: bool = False) -> None:
        super().__init__()
        self.grid, self.amp = grid, amp

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        first: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the logits, float32 [B, K, D, H, W], of an image [B, 1, D, H, W].

        Args:
            inputs: the image.
            network: from an image on its grid to logits.
            first: called in the place of the network with `on_network_grid(inputs, grid)`.
            args, kwargs: for the network.

        Raises:
            ValueError: the shape of the image is not a multiple of that of the grid.
        """
        image = inputs.as_subclass(torch.Tensor)  # a MetaTensor's affine would be that of none of the coarse grids
        factor = fineness(image, self.grid)
        result = None
        for offset in product(range(factor), repeat=3):
            lattice = (slice(None), slice(None), *(slice(start, None, factor) for start in offset))
            own = image[lattice].contiguous()
            with self.arithmetic(image.device):
                logits = network(own, *args, **kwargs) if first is None or any(offset) else first(own)
            logits = logits.float()
            if factor == 1:
                return logits
            if result is None:
                result = logits.new_empty(*logits.shape[:2], *image.shape[2:])
            result[lattice] = logits
            del logits  # not to stand beside those of the next pass
        assert result is not None
        return result

    def arithmetic(self, device: torch.device) -> torch.autocast:
        """Return the context that the network runs in."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp)


def fineness(image: torch.Tensor, grid: Grid) -> int:
    """Return how many voxels of an image [..., D, H, W] make one of the grid along each axis.

    Raises:
        ValueError: the image is on no such grid.
    """
    shape = tuple(image.shape[-3:])
    factor = shape[0] // grid.shape[0]
    if shape != tuple(factor * size for size in grid.shape) or factor < 1:
        raise ValueError(f"image of shape {shape}; expected {tuple(grid.shape)} or a multiple of it")
    return factor


def on_network_grid(volume: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the voxels of a volume [..., D, H, W] that lie on the network's own grid, [..., *grid.shape]."""
    factor = fineness(volume, grid)
    return volume if factor == 1 else volume[..., ::factor, ::factor, ::factor].contiguous()

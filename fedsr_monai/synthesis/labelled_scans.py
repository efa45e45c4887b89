"""Labelled scans instead of random atlases, for simulated anatomy, where labels are plentiful."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from monai.transforms import LoadImage

from fedsr_monai.spatial.reader import VolumeReader
from fedsr_monai.synthesis.draws import chance, pick, uniform


class LabelledScans:
    """Draw a labelled scan with a given probability, or else draw from another source; a replacement for `RandomAtlas`.

    The labels of the random atlas are deformed from an atlas on the coarse grid, which costs thin structures a few percent
    of their Dice. The labels of simulated subjects come from the 1 mm anatomy. Pretraining draws from both.

    Half of the scans are mirrored left to right (the labels merge both sides), and their contrast and noise vary a
    little, so that no scan is seen twice. All draws come from torch's global generator.

    Args:
        items: scans with `image` and `label`, as from `site_datalist`, on the atlas' grid.
        otherwise: source of all other draws, called with the same arguments.
        probability: probability of drawing a labelled scan.
        gamma: range of the exponent.
        noise: largest standard deviation of the added noise.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, str]],
        otherwise: Callable,
        probability: float = 0.85,
        gamma: tuple[float, float] = (0.85, 1.15),
        noise: float = 0.02,
    ) -> None:
        self.items, self.otherwise, self.probability = list(items), otherwise, probability
        self.gamma, self.noise = gamma, noise
        self._load = LoadImage(VolumeReader(), ensure_channel_first=True)

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, label: torch.Tensor, ddf: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a labelled image, [1, 1, D, H, W] float32 in [0, 1] and [1, 1, D, H, W] ids; arguments as for `RandomAtlas`."""
        if not chance(self.probability):
            return self.otherwise(image, label, ddf)
        item = self.items[pick(len(self.items))]
        scan, ids = (self._load(item[key]).as_tensor()[None].to(image.device) for key in ("image", "label"))
        if chance(0.5):
            scan, ids = scan.flip(2), ids.flip(2)
        brain = scan > 0
        scan = scan ** uniform(*self.gamma)
        if chance(0.5):
            scan = scan + float(torch.rand(())) * self.noise * torch.randn_like(scan)
        return scan.clamp(0, 1).float() * brain, ids.to(label.dtype)

"""The exactly labelled random atlas: new labelled images from the one that a site has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import GaussianFilter
from torch.nn import functional as F

from fedsr_monai.spatial.grid import FINE
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis.draws import uniform
from fedsr_monai.synthesis.random_appearance import RandomAppearance
from fedsr_monai.synthesis.random_deformation import RandomDeformation


def refined_label(label: torch.Tensor, factor: int = FINE, sigma: float = 0.5) -> torch.Tensor:
    """Refine a label map [1, 1, D, H, W] to a finer grid with the same corner voxels, by the largest smoothed fraction.

    Nearest sampling of this map approximates an argmax over the warped one-hot map, at a tenth of the cost. Measured
    against the true labels of subjects whose 1 mm anatomy is known (Dice over 13 structures at 2 mm): nearest on the
    plain map 0.908, on this one 0.936, argmax of the warped one-hot map 0.939. An even factor puts samples halfway
    between two voxels, where their labels tie and one of them always wins (0.905). Smoothing by ``sigma`` voxels removes
    the steps from the borders.
    """
    size = [(n - 1) * factor + 1 for n in label.shape[2:]]
    best, winner = torch.zeros(1, 1, *size, device=label.device), torch.zeros(1, 1, *size, device=label.device)
    smooth = GaussianFilter(3, sigma).to(label.device)
    for k in label.unique():  # one class at a time, in its box: all of them at once would take gigabytes
        mask = (label == k)[0, 0]
        voxels = mask.nonzero()
        first, last = voxels.amin(dim=0).tolist(), voxels.amax(dim=0).tolist()
        box = [slice(max(a - 2, 0), min(b + 3, n)) for a, b, n in zip(first, last, mask.shape)]
        fine = tuple(slice(b.start * factor, (b.stop - 1) * factor + 1) for b in box)
        soft = smooth(mask[tuple(box)].float()[None, None])
        soft = F.interpolate(soft, size=[f.stop - f.start for f in fine], mode="trilinear", align_corners=True)
        window = (slice(None), slice(None), *fine)
        better = soft > best[window]
        best[window] = torch.where(better, soft, best[window])
        winner[window] = torch.where(better, k.float(), winner[window])
    return winner


class RandomAtlas:
    """Deform the labelled atlas and image it anew; image and labels go through the same warp, so the pair is exact.

    This goes beyond the paper, and is the reason why few training steps go far: the pseudo-labels of eq. 3 are only as good
    as the registration, whereas these labels are correct by construction.

    Args:
        deformation, appearance: draw anatomy and scanner.
        registration_fraction: largest fraction of the current registration (a scan's ddf) that is composed in; the fraction
            is drawn from [0, this].
        fine_labels: pairs of atlas labels on the site's grid and the same labels on voxels a third the size, made at the
            atlas' own resolution (see `load_fine_labels`); an atlas that is not among them is refined (`refined_label`).
    """

    def __init__(
        self,
        deformation: RandomDeformation,
        appearance: RandomAppearance,
        registration_fraction: float = 1.0,
        fine_labels: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> None:
        self.deformation, self.appearance, self.registration_fraction = deformation, appearance, registration_fraction
        self.fine_labels = tuple(fine_labels)
        self._label: torch.Tensor | None = None
        self._refined: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, label: torch.Tensor, ddf: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a labelled image, [1, 1, D, H, W] float32 in [0, 1] and [1, 1, D, H, W] ids, from the atlas in the same form.

        ``ddf`` [1, 3, D/2, H/2, W/2] is the registration of the atlas to some scan of the site, in half-resolution
        voxels, or None.
        """
        if ddf is not None:
            ddf = ddf * uniform(0, self.registration_fraction)
        field = self.deformation(label, ddf)
        drawn = warp(self.appearance.contrast(image, label), field)
        return self.appearance.scan(drawn), warp(self._fine(label), field, mode="nearest")

    def _fine(self, label: torch.Tensor) -> torch.Tensor:
        # A site has one atlas, so its labels are looked up or refined once, and again only for another atlas.
        if self._label is None or not _equal(self._label, label):
            fine = next((fine for own, fine in self.fine_labels if _equal(_padded(own[None], label), label)), None)
            found = refined_label(label) if fine is None else _padded(fine[None], label, FINE)
            self._label, self._refined = label.clone(), found.to(label)
        assert self._refined is not None  # set with `_label`
        return self._refined


def _padded(own: torch.Tensor, label: torch.Tensor, factor: int = 1) -> torch.Tensor:
    """Zero-pad a label map [1, 1, D, H, W] that is `factor` times as fine as `label`, as the network has padded `label`."""
    missing = [(n - 1) * factor + 1 - m for n, m in zip(label.shape[2:], own.shape[2:])]
    return F.pad(own, [side for n in reversed(missing) for side in (0, n)]) if min(missing) >= 0 < max(missing) else own


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other), other)

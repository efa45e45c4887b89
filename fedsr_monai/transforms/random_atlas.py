"""The exactly labelled warped atlas: a new labelled image from the one that a site has."""

from __future__ import annotations

import torch

from fedsr_monai.networks.spatial import warp
from fedsr_monai.transforms.random_appearance import RandomAppearance
from fedsr_monai.transforms.random_deformation import RandomDeformation


class RandomAtlas:
    """Deforms the labelled atlas and images it anew; image and labels go through the same warp, so the pair is exact.

    Beyond the paper, and the reason why few steps go far: the pseudo-labels of eq. 3 are only as good as the registration, these are
    right by construction.

    Args:
        deformation, appearance: what draws anatomy and scanner.
        registration_share: how much of the current registration (a scan's ddf) is composed in: drawn from [0, this].
    """

    def __init__(self, deformation: RandomDeformation, appearance: RandomAppearance, registration_share: float = 1.0) -> None:
        self.deformation, self.appearance, self.registration_share = deformation, appearance, registration_share

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, label: torch.Tensor, ddf: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A labelled image, [1, 1, D, H, W] float32 in [0, 1] and [1, 1, D, H, W] ids, from the atlas in the same form.

        ``ddf`` [1, 3, D, H, W]: the registration of the atlas to some scan of the site, or None.
        """
        if ddf is not None:
            ddf = ddf * float(torch.empty(()).uniform_(0, self.registration_share))
        field = self.deformation(label, ddf)
        drawn = warp(self.appearance.contrast(image, label), field)
        return self.appearance.scan(drawn), warp(label.float(), field, mode="nearest").to(label.dtype)

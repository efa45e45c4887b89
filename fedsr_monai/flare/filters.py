"""A filter of SA vectors for FLARE's own privacy policy; FLARE's filters act only on weight differences and leave SA vectors alone."""

from __future__ import annotations

import secrets

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedsr_monai.federation.privacy import clip_and_noise
from fedsr_monai.flare.installed import Installed


class SAPrivacy(Installed, DXOFilter):
    """Clip the joint norm of all SA vectors and add Gaussian noise: f <- f min(1, clip / |f|) + N(0, (sigma clip)^2).

    It acts on what a site sends (`task_result_filters` of the site's `privacy.json`, direction out), and only on `sa.*`. The noise
    comes from the operating system's generator, not from the run's seed. `fedsr_monai.federation.privacy.epsilon(sigma, results)`
    applies to it, but FLARE does not count results. This filter acts on the vectors themselves. In contrast, `privacy` in the site's
    `fedsr.json` acts on their differences to what the server sent, and on the encoder too. These differences are far smaller, so
    the same epsilon needs less noise.

    Args:
        clip: largest norm |f| of all vectors taken as one; features are of order 1, so sqrt(all channels) leaves most unchanged.
        sigma: standard deviation of the noise in units of `clip`; 0 only clips.

    Raises:
        ValueError: `clip` is not above 0, or `sigma` is below 0.
    """

    def __init__(self, clip: float = 10.0, sigma: float = 0.01) -> None:
        super().__init__(supported_data_kinds=[DataKind.APP_DEFINED], data_kinds_to_filter=None)
        if not clip > 0 or not sigma >= 0:
            raise ValueError(f"SAPrivacy() 'clip' is {clip} and 'sigma' is {sigma}; expected above 0 and at least 0")
        self.clip = float(clip)
        self.sigma = float(sigma)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """Filter the DXO that holds `sa.*`; None for any other, which FLARE then leaves unchanged."""
        if not isinstance(dxo.data, dict) or not all(str(key).startswith("sa.") for key in dxo.data):
            return None
        generator = np.random.default_rng(secrets.randbits(256))
        noisy = clip_and_noise(dxo.data, self.clip, self.sigma, generator)
        dxo.data = {key: noisy[key].astype(value.dtype) for key, value in dxo.data.items()}
        return dxo

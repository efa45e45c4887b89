"""Filter SA vectors for privacy; FLARE's own filters act on weight differences and leave them alone."""

from __future__ import annotations

import secrets

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedsr_monai.flare.installed import Installed


class SAPrivacy(Installed, DXOFilter):
    """Clip each SA vector to a length and add Gaussian noise: f <- f min(1, clip / |f|) + N(0, (sigma clip)^2).

    It acts on what a site sends (`task_result_filters` of the site's `privacy.json`, direction out) and on `sa.*` only. The noise comes
    from the operating system's generator, not from the run's seed. It bounds what one result reveals; it does not account for
    a privacy budget over the rounds.

    Args:
        clip: largest length |f| of a vector; features are of order 1, so sqrt(channels) leaves most vectors unchanged.
        sigma: noise in units of `clip`; 0 only clips.

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
        dxo.data = {key: self.protect(value, generator) for key, value in dxo.data.items()}
        return dxo

    def protect(self, vector: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return one vector [C], clipped and with noise, in its own type."""
        values = vector.astype(np.float64)
        length = float(np.linalg.norm(values))
        values *= min(1.0, self.clip / length) if length > 0 else 1.0
        return (values + generator.normal(0.0, self.sigma * self.clip, values.shape)).astype(vector.dtype)

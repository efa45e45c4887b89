"""Differential privacy of what a site sends: clipping, Gaussian noise, a count of the results, and their total privacy loss.

The site itself clips and adds noise, so the guarantee holds against everybody, including the server (local differential privacy). A
result has two parts: the SA vectors, and all other shared tensors (under `fedsr` and `fedrep` the encoder). For each part, the
*difference* to what the server sent is clipped as one vector to the norm C, and noise with standard deviation z C is added to each value:

    sent + min(1, C / |d|) d + N(0, (z C)^2),    d = trained - sent.

The protected unit is a **site**: epsilon compares two sites that have nothing in common, neither scans nor labelled atlas nor heads.
Their clipped differences are at most 2 C apart, so one result is a Gaussian mechanism with noise z / 2 in units of its sensitivity, and
k results together are one with noise z / (2 sqrt(k)). This composition is exact, even if the server chooses adaptively what it sends.
A single scan of a site is protected at least as well, but no stronger bound holds for it: that would need clipping of every scan's
gradient (DP-SGD).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.fl.utils.exchange_object import ExchangeObject
from monai.fl.utils.filters import Filter

from fedsr_monai.checks import is_number, is_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.files import check_settings, is_there, read_json, write_json

LEDGER = "releases.json"
SENT = "sent"  # key of a filter's `extra`
DELTA = 1e-5
LEAST = {"clip": "above 0", "clip_sa": "above 0", "noise": "at least 0", "noise_sa": "at least 0"}


@dataclass(frozen=True)
class Privacy:
    """Say how far a site's result may be from what it was sent, and how much noise is added.

    Attributes:
        clip: largest norm of the difference in all shared tensors except the SA vectors.
        noise: standard deviation of their noise, in units of `clip`; 0 only clips, which promises nothing.
        clip_sa: largest norm of the difference in all SA vectors.
        noise_sa: standard deviation of their noise, in units of `clip_sa`.
        releases: the largest number of results that a site sends in a run; None for no limit.

    Raises:
        UserError: a value is not what it must be.
    """

    clip: float
    noise: float
    clip_sa: float
    noise_sa: float
    releases: int | None = None

    def __post_init__(self) -> None:
        for name, expected in LEAST.items():
            value = getattr(self, name)
            if not (is_number(value) and (value > 0 if name.startswith("clip") else value >= 0)):
                raise UserError(f"privacy: {name}", found=repr(value)[:60], expected=f"a number {expected}")
        if self.releases is not None and not is_whole_number(self.releases, 1):
            raise UserError(
                "privacy: releases", found=repr(self.releases)[:60], expected="a whole number of at least 1"
            )


def read_privacy(content: Mapping[str, Any] | None, where: str = "privacy") -> Privacy | None:
    """Return `Privacy` made from plain values; None if there are none.

    Args:
        content: the attributes of `Privacy` by name.
        where: what stands before the name in an error message.

    Raises:
        UserError: a value is missing, unknown or not what it must be.
    """
    if content is None:
        return None
    known = [*LEAST, "releases"]
    for name in sorted({*content, *LEAST}):
        if name not in known:
            raise UserError(f"{where}: {name}"[:100], found="an unknown key", expected=f"one of {', '.join(known)}")
        if name not in content:
            raise UserError(f"{where}: {name}", found="nothing", expected=f"a number {LEAST[name]}")
    return Privacy(**content)


class GaussianPrivacy(Filter):
    """Filter what a site sends, as one of MONAI's exchange filters: clip, add noise, remove losses, and record the release in the ledger.

    Losses, epochs and seconds are left out because they get no noise. The numbers of images and iterations stay, because they are
    considered public. The noise comes from the operating system's generator, not from the run's seed, which the server knows. A round that
    is requested twice therefore gets different noise, and counts twice.

    Args:
        privacy: clip norms and noise.
        folder: folder of the site's states; the ledger is kept there.
    """

    def __init__(self, privacy: Privacy, folder: str | Path) -> None:
        self.privacy = privacy
        self.path = Path(folder) / LEDGER

    def __call__(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Filter one result.

        Args:
            data: the tensors after the allow-list, and the statistics.
            extra: under `sent`, the tensors that the round began with: the only reference that the server already knows.

        Raises:
            UserError: there is nothing to compare with, the run was begun with other values, or the site has already sent as many
                results as it allows.
        """
        sent = (extra or {}).get(SENT)
        if sent is None:
            raise UserError(
                "privacy",
                found="a request for tensors before a round",
                expected="rounds only, as these tensors may come from the site's own atlas",
                fix="begin the run with weights that hold SA vectors (--from_weights, --start_from_bundle)",
            )
        self.count()
        generator = np.random.default_rng(secrets.randbits(256))
        statistics = {key: value for key, value in (data.statistics or {}).items() if key not in ("losses", "epochs")}
        return ExchangeObject(
            weights=protect(data.weights or {}, sent, self.privacy, generator),
            weight_type=data.weight_type,
            statistics={**statistics, "losses": {}, "epochs": [], "seconds": 0.0},
        )

    def count(self) -> None:
        """Add one release to the ledger before anything is sent: a crash in between leads to a count too high, never too low.

        Raises:
            UserError: see `__call__`.
        """
        settings = {key: value for key, value in asdict(self.privacy).items() if key != "releases"}
        begun = check_settings(self.path, settings, "run") if is_there(self.path) else {}
        done = begun.get("releases", 0)
        if not is_whole_number(done, 0):
            raise UserError(f"{self.path}: releases", found=repr(done)[:60], expected="a whole number")
        most = self.privacy.releases
        if most is not None and done >= most:
            fix = "raise 'releases' in the site's settings if it agrees to the larger epsilon (fedsr privacy)"
            raise UserError(self.path, found=f"{done} results sent", expected=f"at most {most} in a run", fix=fix)
        write_json(self.path, {**settings, "releases": done + 1})


def read_ledgers(run: str | Path) -> list[tuple[str, Privacy, int]]:
    """Return the name, settings and number of results of each site of a run with privacy.

    Args:
        run: folder of the run, or the folder in which a FLARE site keeps it; in either case the parent folder of `sites`.

    Raises:
        UserError: no site has a ledger, or one is damaged.
    """
    found = []
    for path in sorted(Path(run).glob(f"sites/*/{LEDGER}")):
        content = read_json(path, "the ledger of a site", "restore it from a copy")
        privacy = read_privacy(content, str(path))
        assert privacy is not None
        found.append((path.parent.name, privacy, privacy.releases or 0))
    if not found:
        raise UserError(run, found=f"no sites/*/{LEDGER}", expected="a run whose sites add noise (--privacy)")
    return found


def protect(
    trained: Mapping[str, torch.Tensor],
    sent: Mapping[str, torch.Tensor],
    privacy: Privacy,
    generator: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a result, clipped and with noise, each in its own type.

    Args:
        trained: tensors by key, after the round.
        sent: tensors by the same keys, before the round.
        privacy: clip norms and noise.
        generator: random generator for the noise.
    """
    result: dict[str, torch.Tensor] = {}
    for is_sa, clip, noise in (
        (False, privacy.clip, privacy.noise),
        (True, privacy.clip_sa, privacy.noise_sa),
    ):
        keys = [key for key in sorted(trained) if key.startswith("sa.") == is_sa]
        moves = {key: trained[key].double().numpy() - sent[key].double().numpy() for key in keys}
        for key, move in clip_and_noise(moves, clip, noise, generator).items():
            result[key] = (sent[key].double() + torch.from_numpy(move)).to(trained[key].dtype)
    return result


def clip_and_noise(
    values: Mapping[str, np.ndarray], clip: float, noise: float, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the arrays in float64, scaled so that their joint norm is at most `clip`, and with added noise N(0, (noise clip)^2).

    Args:
        values: arrays by key, of any shapes.
        clip: largest norm of all arrays taken as one vector.
        noise: standard deviation of the noise, in units of `clip`.
        generator: random generator for the noise.
    """
    norm = math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in values.values()))
    scale = min(1.0, clip / norm) if norm > 0 else 1.0
    return {
        key: value.astype(np.float64) * scale + generator.normal(0.0, noise * clip, value.shape)
        for key, value in values.items()
    }


def epsilon(noise: float, releases: int, delta: float = DELTA, sites: int = 1) -> float:
    """Return the epsilon at which the results of one site are (epsilon, delta)-differentially private.

    It compares two sites with arbitrary contents (see the top of this file). The value is exact (Balle and Wang 2018, computed by
    Google's dp-accounting), not a bound.

    Args:
        noise: z, in units of the clip norm; for two parts together see `joint_noise`.
        releases: number of the site's results that are seen, one per round.
        delta: probability with which the guarantee may fail.
        sites: 1 for those who see the site's own results, above all the server. n for one of n sites that sees only plain means of
            all n results with equal weights, none of them rejected, and that does not collude: the noise of the n - 1 others adds
            up, and one site's data count for 1 / n. This does not apply to `sa.*`, whose ascent uses single results, nor to
            robust rules.

    Raises:
        UserError: an argument is out of range, or dp-accounting is not installed.
    """
    _check(releases, delta, sites)
    if not (is_number(noise) and noise >= 0):
        raise UserError("noise", found=repr(noise), expected="a number of at least 0")
    unknown = max(1, sites - 1)  # a site knows its own noise
    return float(_accounting().get_epsilon_gaussian(noise * math.sqrt(unknown) / (2 * math.sqrt(releases)), delta))


def noise_for(epsilon: float, releases: int, delta: float = DELTA, parts: int = 1) -> float:
    """Return the smallest noise with which `releases` results are (epsilon, delta)-differentially private; see `epsilon`.

    Args:
        epsilon: epsilon of all parts together.
        releases, delta: see `epsilon`.
        parts: number of parts, each with this noise; 2 for encoder and SA vectors.

    Raises:
        UserError: an argument is out of range, or dp-accounting is not installed.
    """
    _check(releases, delta, parts)
    if not (is_number(epsilon) and epsilon > 0):
        raise UserError("epsilon", found=repr(epsilon), expected="a number above 0")
    return float(_accounting().get_sigma_gaussian(epsilon, delta)) * 2 * math.sqrt(releases * parts)


def joint_noise(*noises: float) -> float:
    """Return the joint noise of several parts: 1 / sqrt(sum of 1 / z^2), or 0 if any part has no noise."""
    return 0.0 if min(noises) == 0 else 1 / math.sqrt(math.fsum(noise**-2 for noise in noises))


def _check(releases: int, delta: float, count: int) -> None:
    if not is_whole_number(releases, 1):
        raise UserError("rounds", found=repr(releases), expected="a whole number of at least 1")
    if not (is_number(delta) and 0 < delta < 1):
        raise UserError("delta", found=repr(delta), expected="a number between 0 and 1")
    if not is_whole_number(count, 1):
        raise UserError("sites", found=repr(count), expected="a whole number of at least 1")


def _accounting() -> Any:
    try:
        import dp_accounting  # needed only to compute epsilon, which sites do not do
    except ImportError as error:
        fix = "run pip install 'fedsr-monai[privacy]'"
        raise UserError("dp-accounting", found="no such package", expected="it, for epsilon", fix=fix) from error
    return dp_accounting

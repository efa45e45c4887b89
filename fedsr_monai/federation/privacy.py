"""Differential privacy of what a site sends: clip, Gaussian noise, a count of the results, and what they add up to.

The site itself clips and adds noise, so the guarantee holds against everybody, the server included (the local model). A result has
two parts, the SA vectors and all other shared tensors, which is the encoder under `fedsr` and `fedrep`. Of each part the
*difference* to what the server sent is clipped as one vector to the norm C and gets noise of the standard deviation z C per value:

    sent + min(1, C / |d|) d + N(0, (z C)^2),    d = trained - sent.

The protected unit is a **site**: epsilon compares two sites that share nothing, neither scans nor labelled atlas nor heads. Their
clipped differences are at most 2 C apart, so one result is a Gaussian mechanism of noise z / 2 in units of its sensitivity, and k
results are one of z / (2 sqrt(k)): composition is exact, also where the server chooses what it sends. One scan of a site is protected
at least as well, and no better: a bound for a scan that is stronger than the site's needs clipping of every scan's gradient (DP-SGD).
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
    """Say how far a site's result may be from what it was sent, and how much noise it gets.

    Attributes:
        clip: largest norm of the difference in all shared tensors but the SA vectors.
        noise: standard deviation of their noise, in units of `clip`; 0 only clips, which promises nothing.
        clip_sa: largest norm of the difference in all SA vectors.
        noise_sa: standard deviation of their noise, in units of `clip_sa`.
        releases: the most results that a site sends in a run; None for any number.

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
    """Make `Privacy` from plain values; None where there are none.

    Args:
        content: the attributes of `Privacy` by name.
        where: before the name in a message.

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
    """Filter what a site sends, as one of MONAI's exchange filters: clip, noise, no losses, and one more release in the ledger.

    Losses, epochs and seconds are left out because they have no noise. The number of images and of iterations stays: it counts as
    public. The noise comes from the operating system's generator, not from the run's seed, which the server knows; so a round that is
    asked for twice gets different noise, and counts twice.

    Args:
        privacy: clip norms and noise.
        folder: of the site's states; the ledger is kept there.
    """

    def __init__(self, privacy: Privacy, folder: str | Path) -> None:
        self.privacy = privacy
        self.path = Path(folder) / LEDGER

    def __call__(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Filter one result.

        Args:
            data: the tensors after the allow-list, and the statistics.
            extra: under `sent`, what the round began with; nothing else is a reference that the server knows already.

        Raises:
            UserError: there is nothing to compare with, the run was begun with other values, or the site has sent as many
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
        """Add one release to the ledger, before anything is sent: a crash in between counts one too many, never one too few.

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
    """Return name, settings and number of results of each site of a run that has privacy.

    Args:
        run: folder of the run, or a FLARE site's folder of it: that above `sites`.

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
        trained: by key, after the round.
        sent: by the same keys, before the round.
        privacy: clip norms and noise.
        generator: of the noise.
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
    """Return arrays, scaled so that their joint norm is at most `clip`, with noise N(0, (noise clip)^2), in float64.

    Args:
        values: by key, any shapes.
        clip: largest norm of all of them as one vector.
        noise: in units of `clip`.
        generator: of the noise.
    """
    norm = math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in values.values()))
    scale = min(1.0, clip / norm) if norm > 0 else 1.0
    return {
        key: value.astype(np.float64) * scale + generator.normal(0.0, noise * clip, value.shape)
        for key, value in values.items()
    }


def epsilon(noise: float, releases: int, delta: float = DELTA, sites: int = 1) -> float:
    """Return the epsilon at which the results of one site are (epsilon, delta)-differentially private.

    Two sites with any contents are compared (see the top of this file). The value is exact (Balle and Wang 2018, by Google's
    dp-accounting), not a bound.

    Args:
        noise: z, in units of the clip norm; of two parts together see `joint_noise`.
        releases: results of the site that are seen, one per round.
        delta: probability that is left out.
        sites: 1 for those who see the site's own results, the server first of all. n for one of n sites, if it sees nothing but
            plain means of all n with equal weights, none rejected, and does not conspire: the noise of the n - 1 others adds up,
            and one site's data count for 1 / n. Not for `sa.*`, whose ascent looks at single results, nor under a robust rule.

    Raises:
        UserError: an argument is out of range, or dp-accounting is not installed.
    """
    _check(releases, delta, sites)
    if not (is_number(noise) and noise >= 0):
        raise UserError("noise", found=repr(noise), expected="a number of at least 0")
    unknown = max(1, sites - 1)  # a site knows its own noise
    return float(_accounting().get_epsilon_gaussian(noise * math.sqrt(unknown) / (2 * math.sqrt(releases)), delta))


def noise_for(epsilon: float, releases: int, delta: float = DELTA, parts: int = 1) -> float:
    """Return the least noise with which `releases` results are (epsilon, delta)-differentially private; see `epsilon`.

    Args:
        epsilon: of all parts together.
        releases, delta: see `epsilon`.
        parts: with the same noise each; 2 for encoder and SA vectors.

    Raises:
        UserError: an argument is out of range, or dp-accounting is not installed.
    """
    _check(releases, delta, parts)
    if not (is_number(epsilon) and epsilon > 0):
        raise UserError("epsilon", found=repr(epsilon), expected="a number above 0")
    return float(_accounting().get_sigma_gaussian(epsilon, delta)) * 2 * math.sqrt(releases * parts)


def joint_noise(*noises: float) -> float:
    """Return the noise that parts with these noises have together: 1 / sqrt(sum of 1 / z^2), 0 if one of them has none."""
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
        import dp_accounting  # only who asks for epsilon needs it; sites do not
    except ImportError as error:
        fix = "run pip install 'fedsr-monai[privacy]'"
        raise UserError("dp-accounting", found="no such package", expected="it, for epsilon", fix=fix) from error
    return dp_accounting

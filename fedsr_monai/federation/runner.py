"""`fedsr federate`: the whole federation on one machine, resumable at any time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fedsr_monai.bundle_overrides import check_overrides
from fedsr_monai.bundle_path import bundle_path, training_files
from fedsr_monai.checks import is_number
from fedsr_monai.errors import UserError
from fedsr_monai.federation.executors import Executor, SequentialExecutor, SiteJob
from fedsr_monai.federation.initial_weights import estimator, initial_tensors, missing_sa
from fedsr_monai.federation.privacy import Privacy, read_privacy
from fedsr_monai.federation.process_executor import ProcessExecutor
from fedsr_monai.federation.records import begin, write_tables
from fedsr_monai.federation.round import draw_sites, play_round
from fedsr_monai.federation.server import Server
from fedsr_monai.federation.settings import RunSettings
from fedsr_monai.files import sha256
from fedsr_monai.networks.weights import read_weights
from fedsr_monai.progress import Progress
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.site import Site, load_site

# Ids of the bundle's configuration that a run sets itself.
GIVEN = ("bundle_root", "dataset_dir", "output_dir", "initial_weights", "resume", "rank", "world_size")


def federate(
    sites: Sequence[str | Path],
    out: str | Path,
    rounds: int,
    bundle: str | Path = "fedsr_encoder",
    policy: str | None = None,
    local_epochs: int = 1,
    weighting: str = "images",
    min_sites: int | None = None,
    timeout: float | None = None,
    processes: bool = False,
    participation: float = 1.0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    from_weights: str | Path | None = None,
    aggregation: str = "mean",
    privacy: Mapping[str, Any] | None = None,
    baseline: str | None = None,
) -> Path:
    """Run Algorithm 1, or one of the policies it is compared with, over site folders on this machine.

    In every round the server sends what `policy` shares, the sites train, and the server aggregates what they return. The run
    folder always holds the last complete round. The same command with the same `out` resumes from there, and gives the same
    numbers as a run that was never interrupted (to the bit on a CPU with the same number of threads).

    Args:
        sites: site folders.
        out: run folder (see the README): run.json, server/, sites/, participation.csv, rounds.csv, history.csv.
        rounds: communication rounds in total. A finished run continues if it is given more; if the learning rate is scheduled over
            the run, the result differs from that of a run with this number from the start.
        bundle: folder or name of the bundle that the sites run.
        policy: fedsr, fedrep, fedper, fedavg, local (nothing is exchanged) or pooled (one client with all images); by default
            fedsr, and pooled with a baseline.
        local_epochs: epochs per round at each site.
        weighting: weights of the sites, by number of `images` or `uniform`.
        min_sites: the fewest acceptable results that complete a round; by default half of the sites asked.
        timeout: seconds that a site has for a round; only with `processes`.
        processes: run one process per site, all at once, instead of one site after the other. Scripts that set this need the usual
            `if __name__ == "__main__":`, because each process imports them.
        participation: fraction of the sites asked in a round, drawn anew for each round.
        seed: seed of all random numbers, except the noise of `privacy`.
        overrides: values for ids of the bundle's configuration, for example `{"train#trainer#epoch_length": 10}`.
        from_weights: checkpoint that all sites start from instead of random weights.
        aggregation: the server's rule: mean, median, trimmed_mean, clipped_mean or krum (docs/security.md).
        privacy: `clip`, `noise`, `clip_sa`, `noise_sa` (and `releases`) of `fedsr_monai.federation.privacy.Privacy`: each site clips what
            it sends and adds noise. None for neither. If the policy shares SA features, this needs `from_weights`.
        baseline: a method that is trained in place of FedSR: deep_atlas, brbs, bi_jros, tbi_one_shot, u_resnet or synthseg
            (docs/baselines.md).

    Returns:
        `out`. Every site's network is in `sites/<name>/model.pt` as a plain state dict.

    Raises:
        UserError: an argument is wrong, a site folder violates the contract (all violations are named), `out` holds a run with
            other settings, or too few sites returned acceptable results.

    Examples:
        >>> import fedsr_monai as fm
        >>> run = fm.federate(["sites/adult-3t"], "run", rounds=1, overrides={"epoch_length": 1})
        >>> (run / "sites" / "adult-3t" / "model.pt").is_file()
        True
    """
    out = Path(out)
    overrides = dict(overrides or {})
    noise = read_privacy(privacy)
    if policy is None:
        policy = "fedsr" if baseline is None else "pooled"
    least = 1 if min_sites is None else min_sites
    settings = RunSettings(rounds, policy, local_epochs, seed, weighting, aggregation, least, overrides, baseline)
    _check_arguments(timeout, processes, participation)
    loaded = _load_sites(sites)
    root = bundle_path(bundle)
    check_overrides(training_files(root, baseline), overrides, GIVEN)
    if from_weights is not None:
        read_weights(from_weights)  # refused before the folder of the run is made
    names = ["pooled"] if settings.exchange.pools_images else [site.name for site in loaded]
    asked = max(1, round(participation * len(names)))
    if not 1 <= settings.min_sites <= asked:
        raise UserError("min_sites", found=str(min_sites), expected=f"1 to {asked}, the sites asked in a round")
    if min_sites is None:
        settings = RunSettings(**{**asdict(settings), "min_sites": math.ceil(asked / 2)})

    initial = None if noise is None else _public_tensors(root, settings, from_weights)
    ensure_fit(loaded)
    jobs = _jobs(loaded, out / "sites", root, settings, from_weights, noise)
    record = {
        **asdict(settings),
        "sites": [{"name": job.name, "path": job.dataset_dir, "images": job.images} for job in jobs],
        "participation": participation,
        "bundle": {"name": root.name, "path": str(root), "train.json": sha256(root / "configs" / "train.json")},
        "from_weights": from_weights and {"path": str(from_weights), "sha256": sha256(from_weights)},
        "privacy": noise and asdict(noise),
        "timeout": timeout,
        "processes": processes,
    }
    begin(out, record)
    executor: Executor = ProcessExecutor(jobs, timeout) if processes else SequentialExecutor(jobs)
    try:
        server = Server(
            out / "server",
            executor.initial() if initial is None else initial,
            policy=policy,
            weighting=weighting,
            aggregation=aggregation,
            min_sites=settings.min_sites,
            mutual_information=estimator(root, {"seed": seed, **overrides}, baseline),
            declared_images={job.name: job.images for job in jobs},
        )
        server.begin()
        write_tables(out, server.history)
        done = min(rounds, server.round) * asked
        with Progress(total=rounds * asked, initial=done, desc=policy, unit="site") as bar:
            while server.round < rounds:
                drawn = draw_sites(names, asked, seed, server.round)
                play_round(server, executor, drawn, names, out, bar)
        executor.save_models(server.send())
    finally:
        executor.close()
    return out


def _check_arguments(timeout: float | None, processes: bool, participation: float) -> None:
    if not (is_number(participation) and 0 < participation <= 1):
        raise UserError("participation", found=repr(participation), expected="a fraction above 0 and up to 1")
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise UserError("timeout", found=repr(timeout), expected="seconds above 0")
    if timeout is not None and not processes:
        raise UserError(
            "timeout",
            found="one without processes",
            expected="both",
            fix="add --processes, as a site in this process cannot be stopped",
        )


def _public_tensors(root: Path, settings: RunSettings, weights: str | Path | None) -> dict[str, torch.Tensor]:
    """Return the tensors that a run with privacy begins with, none of which may come from a site.

    Raises:
        UserError: SA vectors would have to come from a site, or nothing is exchanged that could be protected.
    """
    if not settings.exchange.exchanges:
        found = f"the policy {settings.policy!r}, which exchanges nothing"
        raise UserError("privacy", found=found, expected="one that exchanges", fix="leave one of them out")
    tensors = initial_tensors(
        root, settings.policy, settings.seed, settings.site_overrides(), weights, settings.baseline
    )
    if missing_sa(tensors):
        found = "SA vectors that would come from one site's labelled atlas"
        fix = "give --from_weights, such as a bundle's models/model.pt"
        raise UserError("privacy", found=found, expected="weights that hold SA vectors", fix=fix)
    return tensors


def _load_sites(sites: Sequence[str | Path]) -> list[Site]:
    loaded = [load_site(path) for path in ([sites] if isinstance(sites, (str, Path)) else sites)]
    if not loaded:
        raise UserError("sites", found="none", expected="at least one site folder", fix="name them with --sites")
    by_name: dict[str, Site] = {}
    for site in loaded:
        if site.name in by_name:
            raise UserError(
                site.root,
                found=f"the name {site.name!r}, which {by_name[site.name].root} has too",
                expected="one site per name",
                fix="change 'name' in its site.json",
            )
        by_name[site.name] = site
    return [by_name[name] for name in sorted(by_name)]


def _jobs(
    sites: Sequence[Site],
    folder: Path,
    root: Path,
    settings: RunSettings,
    weights: str | Path | None,
    privacy: Privacy | None,
) -> list[SiteJob]:
    start = None if weights is None else str(Path(weights).absolute())

    def job(name: str, dataset_dir: str, images: int) -> SiteJob:
        return SiteJob(name, dataset_dir, str(folder / name), str(root), settings, images, start, privacy=privacy)

    if settings.exchange.pools_images:
        return [job("pooled", ",".join(str(site.root) for site in sites), sum(len(site.training) for site in sites))]
    return [job(site.name, str(site.root), len(site.training)) for site in sites]

"""`fedsr federate`: the whole federation on one machine, resumable at any moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fedsr_monai.bundle_path import bundle_path, check_overrides
from fedsr_monai.errors import UserError
from fedsr_monai.federation.exchange import allowed_prefixes
from fedsr_monai.federation.executors import SequentialExecutor, SiteJob
from fedsr_monai.federation.initial_weights import estimator
from fedsr_monai.federation.process_executor import ProcessExecutor
from fedsr_monai.federation.records import begin, digest, write_tables
from fedsr_monai.federation.round import draw_sites, play_round
from fedsr_monai.federation.server import Server
from fedsr_monai.sites.site import Site, load_site


def federate(
    sites: Sequence[str | Path],
    out: str | Path,
    rounds: int,
    bundle: str | Path = "fedsr_encoder",
    policy: str = "fedsr",
    local_epochs: int = 1,
    weighting: str = "images",
    min_sites: int | None = None,
    timeout: float | None = None,
    processes: bool = False,
    participation: float = 1.0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    from_weights: str | Path | None = None,
) -> Path:
    """Run Algorithm 1, or one of the policies it is compared with, over site folders on this machine.

    Every round the server sends what `policy` shares, the sites train, and the server averages what they return. The run folder
    always holds the last complete round: the same command on the same `out` goes on from there and ends in the same
    numbers as a run that was never stopped (to the bit on a CPU with the same number of threads).

    Args:
        sites: site folders.
        out: run folder (see the README): run.json, server/, sites/, participation.csv, rounds.csv, history.csv.
        rounds: communication rounds in all; a finished run goes on when it is given more (with a learning rate scheduled over the
            run, it is then not the run that had them from the start).
        bundle: folder or name of the bundle that the sites run.
        policy: fedsr, fedrep, fedavg, local (nothing is exchanged) or pooled (one client with all images).
        local_epochs: epochs a round at each site.
        weighting: of the average, by number of `images` or `uniform`.
        min_sites: fewest acceptable answers that make a round; by default half of those asked.
        timeout: seconds that a site has for a round; only with `processes`.
        processes: run a process a site, all at once, instead of one site after the other. Scripts that set this need the usual
            `if __name__ == "__main__":`, because each process imports them.
        participation: share of the sites asked in a round, drawn anew each round.
        seed: of everything random.
        overrides: values for ids of the bundle's configuration, for example `{"train#trainer#epoch_length": 10}`.
        from_weights: checkpoint that all sites start from instead of random weights.

    Returns:
        `out`. Every site's network is in `sites/<name>/model.pt` as a plain state dict.

    Raises:
        UserError: an argument or site is wrong, `out` holds a run with other settings, or too few sites answered.

    Examples:
        >>> import fedsr_monai as fm
        >>> run = fm.federate(["sites/adult-3t"], "run", rounds=1, overrides={"epoch_length": 1})
        >>> (run / "sites" / "adult-3t" / "model.pt").is_file()
        True
    """
    out = Path(out)
    _check_arguments(rounds, local_epochs, weighting, timeout, processes, participation)
    allowed_prefixes(policy)
    loaded = _load_sites(sites)
    root = bundle_path(bundle)
    overrides = {"seed": seed, **(overrides or {})}
    check_overrides([root / "configs" / "train.json"], overrides)
    folder = out / "sites"
    common = {
        "bundle_root": str(root),
        "policy": policy,
        "local_epochs": local_epochs,
        "seed": seed,
        # A schedule over the bundle's `epochs` spans the run, not the round.
        "overrides": {"epochs": rounds * local_epochs, **overrides},
        "weights": None if from_weights is None else str(Path(from_weights).absolute()),
    }
    jobs = [
        SiteJob(site.name, str(site.root), str(folder / site.name), len(site.training), **common) for site in loaded
    ]
    if policy == "pooled":
        paths = ",".join(job.dataset_dir for job in jobs)
        jobs = [SiteJob("pooled", paths, str(folder / "pooled"), sum(job.images for job in jobs), **common)]
    asked = max(1, round(participation * len(jobs)))
    min_sites = math.ceil(asked / 2) if min_sites is None else min_sites
    if not 1 <= min_sites <= asked:
        raise UserError(
            f"min_sites: found {min_sites}, expected 1 to {asked}, the sites asked in a round; choose one of these"
        )
    if from_weights is not None and not Path(from_weights).is_file():
        raise UserError(f"{from_weights}: not found, expected the weights to start from; give the path of a model.pt")

    settings = {
        "policy": policy,
        "rounds": rounds,
        "seed": seed,
        "sites": [{"name": job.name, "path": job.dataset_dir, "images": job.images} for job in jobs],
        "weighting": weighting,
        "min_sites": min_sites,
        "local_epochs": local_epochs,
        "participation": participation,
        "bundle": {"name": root.name, "path": str(root), "train.json": digest(root / "configs" / "train.json")},
        "overrides": overrides,
        "from_weights": from_weights and {"path": str(from_weights), "sha256": digest(from_weights)},
        "timeout": timeout,
        "processes": processes,
    }
    begin(out, settings)
    pool = ProcessExecutor(jobs, timeout) if processes else SequentialExecutor(jobs)
    try:
        server = Server(
            out / "server",
            pool.initial(),
            policy=policy,
            weighting=weighting,
            min_sites=min_sites,
            mutual_information=estimator(root, overrides),
            declared_images={job.name: job.images for job in jobs},
        )
        server.begin()
        write_tables(out, server.history)
        with tqdm(
            total=rounds * asked, initial=min(rounds, server.round) * asked, desc=policy, unit="site", disable=None
        ) as bar:
            while server.round < rounds:
                drawn = draw_sites([job.name for job in jobs], asked, seed, server.round)
                play_round(server, pool, drawn, jobs, out, bar)
        pool.save_models(server.send())
    finally:
        pool.close()
    return out


def _check_arguments(rounds, local_epochs, weighting, timeout, processes, participation) -> None:
    for name, value in (("rounds", rounds), ("local_epochs", local_epochs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}: found {value!r}, expected a whole number of at least 1; correct it")
    if weighting not in ("images", "uniform"):
        raise UserError(f"weighting: found {weighting!r}, expected images or uniform; choose one of them")
    if not 0 < participation <= 1:
        raise UserError(f"participation: found {participation!r}, expected a share above 0 and up to 1; correct it")
    if timeout is not None and not timeout > 0:
        raise UserError(f"timeout: found {timeout!r}, expected seconds above 0; correct it")
    if timeout is not None and not processes:
        raise UserError(
            "timeout: found one without processes, expected both; add --processes, a site in this process cannot be stopped"
        )


def _load_sites(sites: Sequence[str | Path]) -> list[Site]:
    if isinstance(sites, (str, Path)):
        sites = [part for part in str(sites).split(",") if part]
    loaded = [load_site(path) for path in sites]
    if not loaded:
        raise UserError("sites: found none, expected at least one site folder; name them with --sites")
    by_name: dict[str, Site] = {}
    for site in loaded:
        if site.name in by_name:
            raise UserError(
                f"{site.root}: found the name {site.name!r}, which {by_name[site.name].root} has too, expected one site a name; "
                "change 'name' in its site.json"
            )
        by_name[site.name] = site
    return [by_name[name] for name in sorted(by_name)]

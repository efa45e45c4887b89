"""`fedsr federate`: the federated phase."""

from __future__ import annotations

from fedsr_monai.commands.arguments import parse_overrides
from fedsr_monai.commands.site_folders import expand_sites


def federate(
    sites: list[str],
    out: str,
    rounds: int = 20,
    local_epochs: int = 1,
    policy: str | None = None,
    weighting: str = "images",
    participation: float = 1.0,
    min_sites: int | None = None,
    processes: bool = False,
    timeout: float | None = None,
    from_weights: str | None = None,
    bundle: str = "fedsr_encoder",
    override: list[str] | None = None,
    seed: int = 0,
    aggregation: str = "mean",
    privacy: list[str] | None = None,
    baseline: str | None = None,
) -> None:
    """Train one encoder across several sites, each on its own scans.

    By default a site sends only the encoder and the site-aggregated (SA) features, and keeps its two heads, its
    optimisers and its data. After each round the run folder holds a complete state. The same command on the same folder
    resumes from it and ends with the same numbers as a run that was never stopped.

    Args:
        sites: site folders, or a folder that holds them
        out: run folder
        rounds: communication rounds in total; to continue a finished run, give a larger number
        local_epochs: epochs that a site trains in each round
        policy: what is exchanged: fedsr (encoder and SA features), fedrep (encoder; heads are trained first), fedper
            (encoder; heads are trained together with it), fedavg (everything but the atlas), local (nothing), pooled
            (one training on all images); by default fedsr, and pooled with --baseline
        weighting: weights of the sites in the aggregation: images (by their number of images) or uniform
        participation: fraction of the sites asked in each round, above 0 and up to 1
        min_sites: smallest number of acceptable results that completes a round; by default half of the sites asked
        processes: run one process per site, all at once, instead of one site after the other
        timeout: seconds that a site has for a round; needs --processes
        from_weights: checkpoint that all sites start from, instead of random weights
        bundle: folder or name of the bundle that the sites train
        override: values for ids of the bundle's train.json, as ID=VALUE
        seed: seed of all random numbers
        aggregation: the server's aggregation rule: mean, or one that limits the influence of a hostile site: median,
            trimmed_mean, clipped_mean, krum
        privacy: differential privacy for what each site sends, as clip=C noise=Z clip_sa=C noise_sa=Z (see `fedsr
            privacy`); needs --from_weights
        baseline: train another method instead of FedSR: deep_atlas, brbs, bi_jros, tbi_one_shot, u_resnet, synthseg

    Example:
        fedsr federate sites --out runs/first --rounds 20 --override learning_rate=0.0005
    """
    from fedsr_monai.federation.records import sites_left_out
    from fedsr_monai.federation.runner import federate as run

    run(
        expand_sites(sites),
        out,
        rounds,
        bundle=bundle,
        policy=policy,
        local_epochs=local_epochs,
        weighting=weighting,
        min_sites=min_sites,
        timeout=timeout,
        processes=processes,
        participation=participation,
        seed=seed,
        overrides=parse_overrides(override or []),
        from_weights=from_weights,
        aggregation=aggregation,
        privacy=parse_overrides(privacy, "privacy") if privacy else None,
        baseline=baseline,
    )
    left_out = "".join(f"; {line}" for line in sites_left_out(out))
    print(f"{out}: done{left_out}; next: fedsr evaluate {out}, then fedsr report {out}")

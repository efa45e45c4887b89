"""`fedsr export-job`: write a job for NVIDIA FLARE."""

from __future__ import annotations

from fedsr_monai.commands.arguments import parse_overrides
from fedsr_monai.errors import UserError


def export_job(
    out: str,
    sites: list[str] | None = None,
    rounds: int = 20,
    run: str | None = None,
    local_epochs: int = 1,
    policy: str = "fedsr",
    weighting: str = "images",
    min_sites: int | None = None,
    wait: int = 600,
    timeout: int = 0,
    start_from_bundle: bool = False,
    bundle: str = "fedsr_encoder",
    override: list[str] | None = None,
    seed: int = 0,
    aggregation: str = "mean",
) -> None:
    """Write an NVIDIA FLARE job for a run across hospitals: three JSON files without code or paths.

    The package must be installed at every site, and each site names its own data (see flare-site). A later job with the
    same --run resumes after the last complete round.

    Args:
        out: folder for the job
        sites: names of the sites in FLARE, as NAME or NAME=SCANS (number of training scans as agreed beforehand;
            another number is rejected); by default all connected sites
        rounds: communication rounds in total
        run: name of the run, under which server and sites keep its state; by default the name of the job's folder
        local_epochs: epochs that a site trains each round
        policy: what is exchanged: fedsr (encoder and SA features), fedrep (encoder; heads are trained first), fedper
            (encoder; heads are trained together with it), fedavg (everything but the atlas)
        weighting: weights of the sites in the average: images (by their number of images) or uniform
        min_sites: smallest number of acceptable results that completes a round; by default half of the sites
        wait: seconds that the remaining sites have once min_sites have answered
        timeout: seconds that a round may take in total; 0 for no limit
        start_from_bundle: begin with the weights that come with the bundle, instead of random ones
        bundle: name of the bundle that the sites have installed
        override: numbers and words for ids of the bundle's train.json, as ID=VALUE
        seed: seed of all random numbers
        aggregation: the server's aggregation rule: mean, or one that limits the influence of a hostile site: median,
            trimmed_mean, clipped_mean, krum

    Example:
        fedsr export-job jobs/first --sites hospital-a=24 hospital-b=31 --rounds 20
    """
    from fedsr_monai.flare.job import export_job as write

    print(
        write(
            out,
            named_sites(sites or []),
            rounds,
            run=run,
            bundle=bundle,
            policy=policy,
            local_epochs=local_epochs,
            weighting=weighting,
            min_sites=min_sites,
            wait=wait,
            timeout=timeout,
            start_from_bundle=start_from_bundle,
            overrides=parse_overrides(override or []),
            seed=seed,
            aggregation=aggregation,
        )
    )


def named_sites(texts: list[str]) -> dict[str, int | None]:
    """Parse `NAME` and `NAME=SCANS` into numbers of scans by name.

    Raises:
        UserError: a number of scans is not a whole number, or a name is given twice.
    """
    sites: dict[str, int | None] = {}
    for text in (part.strip() for word in texts for part in word.split(",") if part.strip()):
        name, equals, count = text.partition("=")
        if not name or name in sites or (equals and not count.isdigit()):
            raise UserError("--sites", found=repr(text), expected="each site once, as NAME or NAME=SCANS")
        sites[name] = int(count) if equals else None
    return sites

"""Commands that train: the federated phase and the personalised one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsr_monai.commands.places import expand_sites
from fedsr_monai.errors import UserError


def federate(
    sites: list[str],
    out: str,
    rounds: int = 20,
    local_epochs: int = 1,
    policy: str = "fedsr",
    weighting: str = "images",
    participation: float = 1.0,
    min_sites: int | None = None,
    processes: bool = False,
    timeout: float | None = None,
    from_weights: str | None = None,
    bundle: str = "fedsr_encoder",
    override: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Train one encoder over several sites, each beside its own scans; only encoder and site-aggregated features travel.

    Every site keeps its two heads, its optimisers and its data. After each round the run folder holds a complete state; the same
    command on the same folder goes on from it, and ends in the numbers of a run that was never stopped.

    Args:
        sites: site folders, or a folder that holds them
        out: run folder
        rounds: communication rounds in all; give more to a finished run to continue it
        local_epochs: epochs a site trains each round
        policy: what is exchanged: fedsr (encoder and SA features), fedrep (encoder), fedavg (everything but the atlas),
            local (nothing), pooled (one training on all images)
        weighting: of the sites in the average: images (by their number) or uniform
        participation: share of the sites asked each round, above 0 and up to 1
        min_sites: fewest good answers that make a round; by default half of those asked
        processes: run a process a site, all at once, instead of one site after the other
        timeout: seconds that a site has for a round; needs --processes
        from_weights: checkpoint that all sites start from, instead of random weights
        bundle: folder or name of the bundle that the sites train
        override: values for ids of the bundle's train.json, as ID=VALUE
        seed: of everything random

    Example:
        fedsr federate sites --out runs/first --rounds 20 --override learning_rate=0.0005
    """
    from fedsr_monai.fl.runner import federate as run

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
        overrides=overrides(override or []),
        from_weights=from_weights,
    )
    print(f"{out}: done; next: fedsr evaluate {out}, then fedsr report {out}")


def personalise(
    sites: list[str],
    weights: str | None = None,
    out: str | None = None,
    epochs: int = 20,
    epoch_length: int | None = None,
    search: bool = False,
    bundle: str = "fedsr_site",
    override: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Fit the heads to a site's own unlabelled scans, encoder and SA features frozen; a site that was not in the run joins here.

    A site of the run goes on from its own heads, a new one from those that the run began with. With --search the weights of the loss
    terms are found while the heads learn (bilevel optimisation); their history is in the training's log.

    Args:
        sites: site folders, or a folder that holds several
        weights: folder of a run, or a file of weights; by default the weights that come with the bundle
        out: folder for the results, one folder a site in it; by default personalised/ in the run's folder, where evaluate looks
        epochs: in all; the learning rate falls to 0 over them
        epoch_length: steps an epoch; by default one a scan
        search: search for the weights of the loss terms; needs two training scans or more
        bundle: folder or name of the bundle
        override: values for ids of the bundle's train.json, as ID=VALUE
        seed: of everything random

    Example:
        fedsr personalise sites/paediatric --weights runs/first --search
    """
    from fedsr_monai.data.site import load_site
    from fedsr_monai.evaluation import PERSONALISED
    from fedsr_monai.personalise import personalise as run

    if out is None:
        if weights is None or not Path(weights, "run.json").is_file():
            raise UserError("personalise needs --out where --weights is no folder of a run: name a folder for the results")
        out = str(Path(weights) / PERSONALISED)
    for folder in expand_sites(sites):
        target = Path(out) / load_site(folder).name
        print(run(folder, weights, target, epochs, search, overrides(override or []), seed, epoch_length, bundle))


def overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`ID=VALUE` texts as a mapping; a value is read as JSON, or else as the text that it is.

    Raises:
        UserError: a text has no equals sign.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--override: found {text!r}, expected ID=VALUE, for example learning_rate=0.0005: correct it")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values

"""`fedsr personalise`: the personalised phase."""

from __future__ import annotations

from pathlib import Path

from fedsr_monai.commands.arguments import parse_overrides
from fedsr_monai.commands.site_folders import expand_sites
from fedsr_monai.errors import UserError


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
    no_guard: bool = False,
    no_sizes: bool = False,
) -> None:
    """Fit the heads to a site's own unlabelled scans, with encoder and SA features frozen; a site that was not in the run joins here.

    A site of the run continues with its own heads; a new site starts with those that the run began with. With --search,
    the weights of the loss terms are learnt together with the heads (bilevel optimisation); their history is in the
    training's log.

    Args:
        sites: site folders, or a folder that holds several
        weights: folder of a run, or a file of weights; by default the weights that come with the bundle
        out: folder for the results, with one subfolder per site; by default personalised/ in the run's folder, where
            evaluate looks for them
        epochs: number of epochs in total; the learning rate falls to 0 over them
        epoch_length: steps per epoch; by default one per scan
        search: search for the weights of the loss terms; needs two training scans or more
        bundle: folder or name of the bundle
        override: values for ids of the bundle's train.json, as ID=VALUE
        seed: seed of all random numbers
        no_guard: always keep the trained weights; otherwise those that the training began with, or the mean of both,
            are kept where they promise more (agreement.json says why)
        no_sizes: leave the sizes of structures as trained; otherwise the biases of the segmentation head are adjusted
            so that the deep grey matter that the network labels in the site's atlas has the sizes that it has in the
            atlas labels (sizes.json)

    Example:
        fedsr personalise sites/paediatric --weights runs/first --search
    """
    from fedsr_monai.evaluation.run import PERSONALISED
    from fedsr_monai.personalisation import personalise as run
    from fedsr_monai.sites.site import load_site

    if out is None:
        if weights is None or not Path(weights, "run.json").is_file():
            expected = "it where --weights is not the folder of a run"
            raise UserError("--out", found="nothing", expected=expected, fix="name a folder for the results")
        out = str(Path(weights) / PERSONALISED)
    for folder in expand_sites(sites):
        target = Path(out) / load_site(folder).name
        settings = parse_overrides(override or [])
        path = run(
            folder, weights, target, epochs, search, settings, seed, epoch_length, bundle, not no_guard, not no_sizes
        )
        print(path)

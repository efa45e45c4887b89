"""`fedsr evaluate`: measure networks on labelled scans."""

from __future__ import annotations

from pathlib import Path

from fedsr_monai.commands.site_folders import expand_sites


def evaluate(
    sources: list[str],
    weights: str | None = None,
    out: str | None = None,
    section: str = "test",
    figures: int = 1,
    device: str | None = None,
    bundle: str | None = None,
    sa: str = "learned",
) -> None:
    """Measure segmentation and registration on labelled scans: Dice, Jaccard, HD95, ASD, volumes, NCC, folds.

    Given the folder of a run, measures each site's final network on that site's scans, as well as the weights that the
    run began with and the networks before they were personalised. Given site folders, measures one set of weights on
    all of them, each with its own atlas.

    Args:
        sources: folder of a run, or site folders
        weights: checkpoint to measure on site folders; by default the one that comes with the bundle fedsr_site
        out: folder for the tables; by default evaluation/ in the run's folder
        section: list of scans in site.json: training, validation or test
        figures: number of scans per site whose volumes are kept for the figures of the report
        device: cpu, cuda or cuda:N; by default the first GPU, if there is one
        bundle: folder of the bundle that the run trains, if it does not come with the package
        sa: SA features to measure with: learned, or, to see whether the network uses them, permuted (channels in random
            order), zero, atlas (their initial values) or site (the mean over the site's own training scans)

    Example:
        fedsr evaluate runs/first
        fedsr evaluate sites --weights model.pt --out evaluations/shipped
    """
    from fedsr_monai.evaluation.run import evaluate as run
    from fedsr_monai.evaluation.run import summary_lines
    from fedsr_monai.evaluation.sa_variants import LEARNED, effect_lines
    from fedsr_monai.evaluation.stages import comparison_lines

    is_run = Path(sources[0], "run.json").is_file()
    folders = sources if is_run else expand_sites(sources)
    summary = run(folders, out, weights, section, device, figures, bundle=bundle, sa=sa)
    evaluation = Path(sources[0]) / "evaluation"
    folder = Path(out or (evaluation if sa == LEARNED else evaluation / f"sa-{sa}"))
    lines = summary_lines(summary)
    if is_run:
        lines += comparison_lines(folder) if sa == LEARNED else effect_lines(evaluation, folder, sa)
    print("\n".join(lines))
    print(folder)

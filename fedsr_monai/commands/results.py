"""Commands that use what was trained: evaluation, segmentation of scans, the report."""

from __future__ import annotations

from pathlib import Path

from fedsr_monai.commands.places import expand_sites
from fedsr_monai.errors import UserError


def evaluate(
    sources: list[str],
    weights: str | None = None,
    out: str | None = None,
    section: str = "test",
    figures: int = 1,
    device: str | None = None,
) -> None:
    """Measure segmentation and registration on labelled scans: Dice, Jaccard, HD95, ASD, volumes, NCC, folds.

    Given the folder of a run, each site's final network is measured on that site's scans. Given site folders, one set of
    weights is measured on all of them, each with its own atlas.

    Args:
        sources: folder of a run, or site folders
        weights: checkpoint to measure on site folders; by default the one that comes with the bundle fedsr_site
        out: folder of the tables; by default evaluation/ in the run's folder
        section: list of scans in site.json: training, validation or test
        figures: scans a site whose volumes are kept for the figures of the report
        device: cpu or cuda; by default cuda where there is one

    Example:
        fedsr evaluate runs/first
        fedsr evaluate sites --weights model.pt --out evaluations/shipped
    """
    from fedsr_monai.evaluation import evaluate_models, models_of_run, models_of_sites, summary_lines

    run = Path(sources[0])
    if (run / "run.json").is_file():
        if len(sources) > 1 or weights:
            raise UserError(
                f"{run}: is the folder of a run, expected it alone and without --weights: evaluate runs one by one, "
                "or name site folders"
            )
        models, folder = models_of_run(run), Path(out or run / "evaluation")
    else:
        if out is None:
            raise UserError("evaluate needs --out for site folders: name a folder for the tables")
        models, folder = models_of_sites(expand_sites(sources), weights), Path(out)
    summary = evaluate_models(models, folder, section, device, figures)
    print("\n".join(summary_lines(summary)))
    print(folder)


def segment(
    scans: list[str],
    out: str,
    register: bool = False,
    site: str | None = None,
    weights: str | None = None,
    bundle: str = "fedsr_site",
    refine: int = 0,
    raw: bool = False,
    masks: list[str] | None = None,
    device: str | None = None,
) -> None:
    """Label 13 structures in scans, each on the scan's own grid: the same workflow as the bundle's inference.

    Writes <scan>_dseg.nii.gz and a table of the labels; with --register also <scan>_atlas-dseg.nii.gz, the atlas labels
    carried over, and <scan>_warp.nii.gz, the deformation as ITK, ANTs and 3D Slicer apply it. In the folder, volumes.csv has a
    row a label map, in millilitres, labels.ctbl is the colour table for 3D Slicer and labels_lut.txt that for FreeSurfer. A scan
    that is refused does not stop the others.

    Args:
        scans: NIfTI files at any spacing and orientation; skull-stripped and roughly in the atlas' space, or any with --raw
        out: folder for the results
        register: run the registration too
        site: site folder whose atlas and grid are used, with the weights of that site
        weights: checkpoint; by default the one that comes with the bundle
        bundle: folder or name of the bundle
        refine: with --register, gradient steps that improve each deformation by itself (some seconds each scan)
        raw: scans as they came from the scanner: find the brain, correct the bias field and lay it on the atlas first, and draw
            that as <scan>_alignment.png; the results lie in the scan's own space all the same. Needs the extra "itk"
        masks: with --raw, brain masks of the scans, in their order; without them the brain is searched
        device: cpu or cuda; by default cuda where there is one

    Example:
        fedsr segment scan1.nii.gz scan2.nii.gz --out labels --register
        fedsr segment raw.nii.gz --raw --masks raw_mask.nii.gz --out labels --register
        fedsr segment scan.nii.gz --out labels --site sites/adult-3t --weights runs/first/sites/adult-3t/model.pt
    """
    from fedsr_monai.inference import segment as run

    for path in run(scans, out, bundle, weights, register, site, device, refine, raw, masks or ()):
        print(path)


def report(run: str, evaluation: str | None = None, out: str | None = None) -> None:
    """Write a run and its evaluation as one HTML file: tables, curves, overlays, who took part.

    Args:
        run: folder of a run, or of an evaluation without a run
        evaluation: folder of the evaluation; by default evaluation/ in the run's folder
        out: file to write; by default report.html in the run's folder

    Example:
        fedsr report runs/first
    """
    from fedsr_monai.report import write_report

    folder = Path(run)
    if evaluation is None and not (folder / "run.json").exists() and (folder / "metrics.csv").exists():
        print(write_report(None, folder, out or folder / "report.html"))
        return
    print(write_report(folder, evaluation or folder / "evaluation", out or folder / "report.html"))

"""`fedsr segment`: label scans."""

from __future__ import annotations


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
    """Label 13 structures in scans, each on the scan's own grid, with the same workflow as the bundle's inference.

    Writes <scan>_dseg.nii.gz and a table of the labels; with --register also <scan>_atlas-dseg.nii.gz, the atlas labels
    carried over, and <scan>_warp.nii.gz, the deformation as ITK, ANTs and 3D Slicer apply it. In the folder, volumes.csv has
    one row per label map, in millilitres, labels.ctbl is the colour table for 3D Slicer and labels_lut.txt that for FreeSurfer.
    A scan that is refused does not stop the others.

    Args:
        scans: NIfTI or .mgz files at any spacing and orientation; skull-stripped and roughly in the atlas' space, or any with --raw
        out: folder for the results
        register: run the registration too
        site: site folder whose atlas and grid are used, with the weights of that site
        weights: checkpoint; by default the one that comes with the bundle
        bundle: folder or name of the bundle
        refine: with --register, gradient steps that improve each deformation by itself (some seconds per scan)
        raw: scans as they came from the scanner: find the brain, correct the bias field and align it to the atlas first, and draw
            that as <scan>_alignment.png; the results are in the scan's own space all the same. Needs the extra "itk"
        masks: with --raw, brain masks of the scans, in their order; without them the brain is searched for
        device: cpu or cuda; by default cuda where there is one

    Example:
        fedsr segment scan1.nii.gz scan2.nii.gz --out labels --register
        fedsr segment raw.nii.gz --raw --masks raw_mask.nii.gz --out labels --register
        fedsr segment scan.nii.gz --out labels --site sites/adult-3t --weights runs/first/sites/adult-3t/model.pt
    """
    from fedsr_monai.inference.segment import segment as run

    for path in run(scans, out, bundle, weights, register, site, device, refine, raw, masks or ()):
        print(path)

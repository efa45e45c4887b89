"""`fedsr segment`: label scans."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsr_monai.inference.run import Result


def segment(
    scans: list[str],
    out: str,
    register: bool = False,
    site: str | None = None,
    weights: str | None = None,
    bundle: str = "fedsr_site",
    refine: int | None = None,
    raw: bool = False,
    masks: list[str] | None = None,
    accurate: bool = False,
    fast: bool = False,
    quality: bool = True,
    keep_rejected: bool = False,
    overwrite: bool = False,
    participant_label: list[str] | None = None,
    session_label: list[str] | None = None,
    dicom_seg: bool = False,
    series: str | None = None,
    protocol: str | None = None,
    device: str | None = None,
) -> None:
    """Label 13 structures in scans, each on the scan's own grid, with the same workflow as the bundle's inference.

    Writes <scan>_dseg.nii.gz and a table of its labels. With --register it also writes <scan>_atlas-dseg.nii.gz (the
    warped atlas labels) and <scan>_warp.nii.gz (the deformation, as ITK, ANTs and 3D Slicer apply it). In the folder,
    volumes.csv has one row per label map, in millilitres; labels.ctbl is the colour table for 3D Slicer, and
    labels_lut.txt the one for FreeSurfer. Every file that was written is printed. A scan that cannot be used does not
    stop the others; the exit status is then 2.

    Each result is judged: the network labels a scan in two ways, which agree where the result is plausible. An
    implausible result is refused like an unusable scan; quality.csv says why. Files that this command did not write are
    not replaced unless --overwrite is given.

    Args:
        scans: NIfTI or .mgz files, folders of DICOM files (extra "dicom"), or folders of all these, at any spacing and
            orientation; skull-stripped and roughly in the space of the atlas, or of any kind with --raw. Or one BIDS
            dataset: every T1w image is labelled as with --raw, out becomes a derivatives dataset, and the command
            continues where it was stopped
        out: folder for the results
        register: write the registration too
        site: site folder whose atlas and grid are used; give it together with that site's --weights
        weights: checkpoint; by default the one that comes with the bundle
        bundle: folder or name of the bundle
        refine: with --register, number of gradient steps that fit each deformation to the labels of the scan; by
            default 16, or 64 with --accurate; 0 keeps the network's own deformation
        raw: take scans as they come from the scanner: first find the brain, correct the bias field, align the brain to
            the atlas and draw the alignment as <scan>_alignment.png. Results are still in the scan's own space. Needs
            the extra "itk"
        masks: with --raw, brain masks of the scans, in the same order; without them a network finds the brain
        accurate: average the network's output for each scan and for its mirror image, which takes twice as long
        fast: run the network once per scan instead of the eight passes that label a fine scan voxel by voxel; borders
            are interpolated
        quality: judge the results; --no_quality saves the time of the registration
        keep_rejected: write rejected results as well, each with a note <scan>_dseg.rejected; the exit status stays 2
        overwrite: also replace files that this command did not write
        participant_label: participants of a BIDS dataset, with or without sub-; by default all
        session_label: sessions of a BIDS dataset, with or without ses-; by default all
        dicom_seg: also write the labels of DICOM scans as DICOM SEG in the study of the source series, for a PACS and
            its viewers: <scan>_dseg.dcm, where <scan> is the name of the folder; not for rejected results
        series: UID or number of the DICOM series to label, for studies in which several series may be the T1 scan
        protocol: label protocol, the rules by which borders are drawn: neuromorphometrics (the default) or freesurfer,
            with the same 13 structures; not with --site or --weights, whose protocol is that of the site's atlas
        device: cpu, cuda or cuda:N; by default the first GPU, if there is one

    Example:
        fedsr segment scan1.nii.gz scan2.nii.gz --out labels --register
        fedsr segment raw.nii.gz --raw --masks raw_mask.nii.gz --out labels --register
        fedsr segment scan.nii.gz --out labels --site sites/adult-3t --weights runs/first/sites/adult-3t/model.pt
        fedsr segment scan.nii.gz --out labels --protocol freesurfer
        fedsr segment dicom_folder --raw --dicom_seg --out labels
        fedsr segment dataset --out dataset/derivatives/fedsr --participant_label 01 02
    """
    if sys.stderr.isatty():
        print("loading the network ...", end="\r", file=sys.stderr, flush=True)
    from tqdm import tqdm

    from fedsr_monai.inference.segment import segment as run

    with_warp: list[Result] = []

    def show(result: Result) -> None:
        tqdm.write("\n".join(map(str, result.files)), file=sys.stdout)
        if result.atlas is not None:
            with_warp.append(result)

    try:
        run(
            scans, out, bundle, weights, register, site, device, refine, raw, masks or (),
            accurate=accurate, fast=fast, quality=quality, keep_rejected=keep_rejected, overwrite=overwrite,
            participants=participant_label or (), sessions=session_label or (),
            dicom_seg=dicom_seg, series=series, protocol=protocol, on_result=show,
        )  # fmt: skip
    finally:
        if with_warp:
            print(how_to_warp(with_warp[0]), file=sys.stderr)


def how_to_warp(result: Result) -> str:
    """Return the message that shows how to warp the atlas labels to a scan with ANTs."""
    scan = result.scan
    warp = next(file for file in result.files if file.name.endswith(("_warp.nii.gz", "_xfm.nii.gz")))
    grid = result.labels if scan.path.is_dir() else scan.path  # ANTs reads no folder
    files = {"-i": result.atlas, "-r": grid, "-t": warp, "-n": "GenericLabel", "-o": f"{scan.name}_labels.nii.gz"}
    line = "antsApplyTransforms -d 3 " + " ".join(
        f"{option} {shlex.quote(str(file))}" for option, file in files.items()
    )
    return f"the atlas of the deformations is {result.atlas}; to carry its labels over with ANTs:\n  {line}"

"""`fedsr segment`: the inference workflow of a bundle over scans, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fedsr_monai.checks import check_whole_number
from fedsr_monai.errors import UserError, UserErrors, one_line, user_error
from fedsr_monai.files import make_folder
from fedsr_monai.inference import bids
from fedsr_monai.inference.ledger import Ledger
from fedsr_monai.inference.quality import DOUBTFUL
from fedsr_monai.inference.run import Options, Result, Run
from fedsr_monai.inference.scans import Scan, list_scans
from fedsr_monai.inference.workflow import load_workflow
from fedsr_monai.prepare import require_itk
from fedsr_monai.progress import Progress, say
from fedsr_monai.spatial.dicom import require_dicom

REFINE, REFINE_ACCURATE = 16, 64  # gradient steps on a deformation by default, and with `accurate`


def segment(
    scans: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    bundle: str | os.PathLike = "fedsr_site",
    weights: str | os.PathLike | None = None,
    register: bool = False,
    site: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    refine: int | None = None,
    raw: bool = False,
    masks: Sequence[str | os.PathLike] = (),
    progress: bool = True,
    accurate: bool = False,
    fast: bool = False,
    quality: bool = True,
    keep_rejected: bool = False,
    overwrite: bool = False,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    dicom_seg: bool = False,
    series: str | None = None,
    protocol: str | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Path]:
    """Label scans on their own grids with the preprocessing, inferer and postprocessing of a bundle's `configs/inference.json`.

    For each scan, `<scan>` being its file name without its suffix, `out` receives `<scan>_dseg.nii.gz`, its table
    of labels and its row of `volumes.csv` (see `write_label_map`); with `register` also `<scan>_atlas-dseg.nii.gz`, the
    atlas labels carried over by the registration, and `<scan>_warp.nii.gz`, the deformation (see `write_displacement`).
    The project's atlas, at its own resolution of 1 mm, is kept in `out/atlas`. Whatever is wrong with a scan costs that scan alone.

    Each result is judged without a reference (see `assess`) and has a row in `quality.csv`. One that is rejected is an error,
    and its files are not written.

    Files are replaced only if this program wrote them and nobody changed them since, and if the new result is of the same
    scan (see `Ledger`).

    Args:
        scans: NIfTI or .mgz files, folders of DICOM files, or folders of all these: skull-stripped brains roughly in the atlas'
            space, at any spacing and orientation; or one BIDS dataset, whose T1w images are taken as raw scans and labelled into a derivatives dataset (see
            `inference.bids`).
        out: folder for the results.
        bundle: name or folder of the bundle.
        weights: checkpoint; by default the bundle's models/model.pt.
        register: write the results of the registration head too.
        site: site folder whose atlas and grid are used; by default the bundle's grid and an atlas built on it.
        device: by default the first GPU, or the CPU where there is none.
        refine: gradient steps that improve each deformation by itself, with `register` (see `refine_registration`); by default 16,
            with `accurate` 64; 0 gives the network's own.
        raw: the scans are as they were acquired, anywhere in space, with their skull or without: each is masked, corrected for
            its bias field and aligned to the atlas first (see `prepare_scan`), and `out` receives a picture of that,
            `<scan>_alignment.png`. The results are in the scan's own space all the same; the deformation maps the atlas to it.
        masks: with `raw`, the brain masks of the scans, in their order; without them the brain is found by a network.
        progress: show a bar, or one line per scan when standard error is not a terminal.
        accurate: average the network's answers to the scan and to its mirror image; takes twice the time in the network.
        fast: one pass of the network per scan, whose answer is interpolated to the scan's voxels; otherwise scans finer than
            the network's grid take eight, one per shift of the grid by half a voxel (see `InterleavedInferer`).
        quality: judge the results; False leaves out the registration where it is not asked for.
        keep_rejected: write results that are rejected all the same, each with a note (`<scan>_dseg.rejected`) that says why.
        overwrite: replace files whoever wrote them.
        participants: of a BIDS dataset, with or without "sub-"; by default all.
        sessions: of a BIDS dataset, with or without "ses-"; by default all.
        dicom_seg: write the labels of each scan, which must be DICOM, as DICOM SEG too (see `write_dicom_seg`), if the result is
            not rejected.
        series: UID or number of the DICOM series to label, for folders with several that may be the T1 scan.
        protocol: in whose borders to label, "neuromorphometrics" or "freesurfer", with the bundle's own weights and without a site; by default
            the bundle's, which is the former. See `networks.protocols`, and `atlas_in_protocol` for the labels of the atlas.
        on_result: called after each scan that was labelled.

    Returns:
        The label maps, in the order of `scans`.

    Raises:
        UserError: the options, the site or the weights cannot be used; nothing was computed.
        UserErrors: some scans could not be labelled, or their results were rejected: one line for each. All others were labelled.

    Examples:
        >>> import fedsr_monai as fm
        >>> weights = "run/personalised/adult-3t/model.pt"
        >>> scans = ["sites/adult-3t/images/test-001.nii.gz"]
        >>> paths = fm.segment(scans, "labels", weights=weights, site="sites/adult-3t", progress=False, quality=False)
        >>> [path.name for path in paths]
        ['test-001_dseg.nii.gz']
    """
    if refine is None:
        refine = (REFINE_ACCURATE if accurate else REFINE) if register else 0
    check_whole_number("refine", refine, 0)
    if refine and not register:
        raise UserError(
            "refine",
            found=f"{refine} without register",
            expected="register with it",
            fix="add --register or leave it out",
        )
    dataset = bids.is_dataset(scans)
    if masks and (dataset or not raw):
        raise UserError(
            "--masks", found="masks without --raw", expected="scans with their skull", fix="add --raw or leave it out"
        )
    if (participants or sessions) and not dataset:
        found, expected = "scans that are not one BIDS dataset", "the folder of a dataset"
        raise UserError("--participant_label, --session_label", found, expected, "leave them out")
    if dataset and (dicom_seg or series):
        found, expected = f"the BIDS dataset {scans[0]}", "folders of DICOM files"
        raise UserError("--dicom_seg, --series", found, expected, "leave them out")
    if dicom_seg and not quality:
        found, expected = "--no_quality with it", "results that were judged, before a PACS shows them"
        raise UserError("--dicom_seg", found, expected, "leave one of them out")
    if dicom_seg:
        require_dicom(seg=True)
    options = Options(register, refine, raw or dataset, accurate, quality, keep_rejected, dicom_seg, fast)
    if dataset:
        wanted, errors = bids.list_scans(Path(scans[0]), participants, sessions)
    else:
        wanted, errors = list_scans(scans, masks, series, only_dicom=dicom_seg)
    if not wanted:
        raise UserErrors(errors)
    if options.raw:
        require_itk()
    out = Path(out)
    with Progress(total=len(wanted), desc="segment", unit="scan", quiet=not progress, announce=options.raw) as bar:
        workflow = load_workflow(bundle, weights, site, device, fineness=1 if fast else None, protocol=protocol)
        make_folder(out)
        run = Run(workflow, out, options, Ledger(out, overwrite), Path(scans[0]) if dataset else None, site)
        run.begin()
        several = len(wanted) + len(errors) > 1  # what a single scan is refused for is printed once, by the command
        for error in errors if several else ():
            say(f"fedsr: {error}")
        results = []
        for scan in wanted:
            try:
                result = run.one(scan)
            except Exception as error:
                errors.append(scan_error(scan, error))
                if several:
                    say(f"fedsr: {errors[-1]}")
            else:
                results.append(result)
                if result.quality is not None and result.quality.verdict == DOUBTFUL:
                    say(f"fedsr: {scan.path}: doubtful: {'; '.join(result.quality.reasons)}")
                on_result(result)
            bar.set_postfix_str(scan.name, refresh=False)
            bar.update()
    run.name_other_protocols()
    if errors:
        raise UserErrors(errors)
    return [result.labels for result in results]


def scan_error(scan: Scan, error: Exception) -> UserError:
    """Return what went wrong with a scan as one line that names it."""
    mistake = user_error(error)
    if mistake is not None:
        return mistake
    fix = "check the scan with another program; if it is sound, report this line"
    return UserError(scan.path, found=one_line(error), expected="a scan that can be processed", fix=fix)

"""`fedsr segment`: the inference workflow of a bundle over scans, one after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from tqdm import tqdm

from fedsr_monai.checks import check_whole_number
from fedsr_monai.engines.refine import refine_registration
from fedsr_monai.errors import UserError, UserErrors, one_line, user_error
from fedsr_monai.inference.outputs import make_folder, write_labels, write_registration
from fedsr_monai.inference.scans import Scan, list_scans, load_scan
from fedsr_monai.inference.workflow import Workflow, get_atlas, load_workflow
from fedsr_monai.labels.volumes import VOLUMES, read_volumes
from fedsr_monai.prepare import require_itk

Load = Callable[[Scan], MetaTensor]


def segment(
    scans: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    bundle: str | os.PathLike = "fedsr_site",
    weights: str | os.PathLike | None = None,
    register: bool = False,
    site: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    refine: int = 0,
    raw: bool = False,
    masks: Sequence[str | os.PathLike] = (),
    progress: bool = True,
) -> list[Path]:
    """Label scans on their own grids with the preprocessing, inferer and postprocessing of a bundle's `configs/inference.json`.

    For each scan, `<scan>` being its file name without its suffix, `out` receives `<scan>_dseg.nii.gz`, its table
    of labels and its row of `volumes.csv` (see `write_label_map`); with `register` also `<scan>_atlas-dseg.nii.gz`, the
    atlas labels carried over by the registration, and `<scan>_warp.nii.gz`, the deformation (see `write_displacement`).
    An atlas that was built for it is kept in `out/atlas`. Whatever is wrong with a scan costs that scan alone. Files that
    exist are replaced, each in one step.

    Args:
        scans: NIfTI or .mgz files: skull-stripped brains roughly in the atlas' space, at any spacing and orientation.
        out: folder for the results.
        bundle: name or folder of the bundle.
        weights: checkpoint; by default the bundle's models/model.pt.
        register: run the registration head too.
        site: site folder whose atlas and grid are used; by default the bundle's grid and, for `register`, an atlas
            built on it.
        device: by default the first GPU, or the CPU where there is none.
        refine: gradient steps that improve each deformation by itself, with `register` (see `refine_registration`).
        raw: the scans are as they were acquired, anywhere in space, with their skull or without: each is masked, corrected for
            its bias field and aligned to the atlas first (see `prepare_scan`), and `out` receives a picture of that,
            `<scan>_alignment.png`. The results are in the scan's own space all the same; the deformation maps the atlas to it.
        masks: with `raw`, the brain masks of the scans, in their order; without them the brain is searched for.
        progress: show a bar (never when standard error is not a terminal).

    Returns:
        The label maps, in the order of `scans`.

    Raises:
        UserError: the options, the site or the weights cannot be used; nothing was computed.
        UserErrors: some scans could not be labelled: one line for each. All others were.

    Examples:
        >>> import fedsr_monai as fm
        >>> weights = "run/personalised/adult-3t/model.pt"
        >>> scans = ["sites/adult-3t/images/test-001.nii.gz"]
        >>> paths = fm.segment(scans, "labels", weights=weights, site="sites/adult-3t", progress=False)
        >>> [path.name for path in paths]
        ['test-001_dseg.nii.gz']
    """
    check_whole_number("refine", refine, 0)
    if refine and not register:
        raise UserError(
            "refine",
            found=f"{refine} without register",
            expected="register with it",
            fix="add --register or leave it out",
        )
    if masks and not raw:
        raise UserError(
            "--masks", found="masks without --raw", expected="scans with their skull", fix="add --raw or leave it out"
        )
    wanted, errors = list_scans(scans, masks)
    if not wanted:
        raise UserErrors(errors)
    if raw:
        require_itk()
    out = Path(out)
    workflow = load_workflow(bundle, weights, site, device)
    make_folder(out)
    read_volumes(out / VOLUMES)
    load: Load = load_scan
    if register or raw:
        atlas = get_atlas(site, workflow.grid, out)
        workflow.network.set_atlas(*atlas)
    if raw:
        from fedsr_monai.prepare.raw_scan import LoadRawScand  # only where ITK is installed

        files = {str(scan.path): scan.mask for scan in wanted if scan.mask is not None}
        load_raw = LoadRawScand("image", atlas, workflow.grid, files, out)

        def load(scan: Scan) -> MetaTensor:
            return load_raw({"image": str(scan.path)})["image"]

    # What a single scan is refused for is printed once, by the command.
    report = print_error if len(scans) > 1 else lambda error: None
    for error in errors:
        report(error)
    written = []
    for scan in tqdm(wanted, desc="segment", unit="scan", disable=None if progress else True):
        try:
            written.append(segment_one(workflow, scan, load, out, register, refine))
        except Exception as error:
            errors.append(scan_error(scan, error))
            report(errors[-1])
    if errors:
        raise UserErrors(errors)
    return written


@torch.no_grad()
def segment_one(workflow: Workflow, scan: Scan, load: Load, out: Path, register: bool = False, refine: int = 0) -> Path:
    """Label one scan and write its files; returns the label map.

    Args:
        workflow: with an atlas in its network for `register`.
        scan: the scan.
        load: reads it.
        out: folder for the results.
        register: run the registration head too.
        refine: gradient steps on the deformation.
    """
    data = workflow.preprocessing({"image": load(scan)})
    image = data["image"].as_tensor()[None].to(workflow.device)
    data["pred"], ddf = predict(workflow, image, register, refine)
    data = workflow.postprocessing(data)
    meta = data["image"].meta
    affine = np.asarray(meta["raw_affine"] if "raw_affine" in meta else data["pred"].affine)
    path = out / f"{scan.name}_dseg.nii.gz"
    write_labels(path, data["pred"], affine)
    if ddf is not None:
        write_registration(workflow.network, ddf, data["image"], workflow.grid, affine, out / scan.name)
    return path


def predict(
    workflow: Workflow, image: torch.Tensor, register: bool, refine: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits [K, D, H, W] and, with `register`, the displacement [3, D, H, W] of a scan [1, 1, D, H, W].

    A plain inferer is one call of the network: both heads then share one pass of the encoder.
    """
    network = workflow.network
    if register and not refine and isinstance(workflow.inferer, SimpleInferer):
        both = network.predict(image)
        return both.logits[0], both.ddf[0]
    logits = workflow.inferer(image, network)[0]
    if not register:
        return logits, None
    return logits, (refine_registration(network, image, refine) if refine else network.predict(image).ddf)[0]


def scan_error(scan: Scan, error: Exception) -> UserError:
    """Return what went wrong with a scan as one line that names it."""
    mistake = user_error(error)
    if mistake is not None:
        return mistake
    fix = "check the scan with another program; if it is sound, report this line"
    return UserError(scan.path, found=one_line(error), expected="a scan that can be processed", fix=fix)


def print_error(error: UserError) -> None:
    """Print an error at once, above the bar."""
    tqdm.write(f"fedsr: {error}", file=sys.stderr)

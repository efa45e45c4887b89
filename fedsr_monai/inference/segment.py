"""`fedsr segment`: the inference workflow of a bundle over scans, and what the registration head adds to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from fedsr_monai.atlas.standard import standard_atlas
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.device import find_device
from fedsr_monai.engines.refine import refine_registration
from fedsr_monai.errors import UserError, user_error
from fedsr_monai.labels.label_map import write_label_map
from fedsr_monai.labels.volumes import VOLUMES, read_volumes
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import read_weights
from fedsr_monai.prepare import require_itk
from fedsr_monai.sites.site import load_atlas
from fedsr_monai.spatial.displacement import field_on_scan, labels_under_field, write_displacement
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import read_nifti, volume_stem, write_volume
from fedsr_monai.transforms.labels_on_scan import header_codes, own_grid


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
    """Label scans on their own grids: the preprocessing, inferer and postprocessing of the bundle's
    `configs/inference.json`.

    For each scan, `<scan>` being its file name without .nii or .nii.gz, `out` receives `<scan>_dseg.nii.gz`, its table
    of labels and its row of `volumes.csv` (see `write_label_map`); with `register` also `<scan>_atlas-dseg.nii.gz`, the
    atlas labels carried over by the registration, and `<scan>_warp.nii.gz`, the deformation (see `write_displacement`).
    An atlas that was built for it is kept in `out/atlas`. A scan that is refused does not stop the others. Files that
    exist are replaced, each in one step.

    Args:
        scans: NIfTI files: skull-stripped brains roughly in the atlas' space, at any spacing and orientation.
        out: folder for the results.
        bundle: name or folder of the bundle.
        weights: checkpoint; by default the bundle's models/model.pt.
        register: run the registration head too.
        site: site folder whose atlas and grid are used; by default the bundle's grid and, for `register`, an atlas
            built on it.
        device: by default the first GPU, or the CPU where there is none.
        refine: gradient steps that improve each deformation by itself, with `register` (see `refine_registration`).
        raw: the scans lie as they were scanned, anywhere in space, with their skull or without: each is masked, corrected for
            its bias field and laid on the atlas first (see `prepare_scan`), and `out` receives a picture of that,
            `<scan>_alignment.png`. The results lie in the scan's own space all the same; the deformation maps the atlas to it.
        masks: with `raw`, the brain masks of the scans, in their order; without them the brain is searched.
        progress: show a bar (never when standard error is not a terminal).

    Returns:
        The label maps, in the order of `scans`.

    Raises:
        UserError: a scan, the site or the weights cannot be used; several scans that were refused are named a line
            each.

    Examples:
        >>> import fedsr_monai as fm
        >>> weights = "run/personalised/adult-3t/model.pt"
        >>> scans = ["sites/adult-3t/images/test-001.nii.gz"]
        >>> paths = fm.segment(scans, "labels", weights=weights, site="sites/adult-3t", progress=False)
        >>> [path.name for path in paths]
        ['test-001_dseg.nii.gz']
    """
    if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0 or (refine and not register):
        raise UserError(f"refine: found {refine!r}, expected a whole number of steps, and register with it; correct it")
    paths, out = check_paths(scans), Path(out)
    if raw:
        require_itk()
    check_masks(masks, paths, raw)
    parser = read_workflow(bundle, out, weights, site, device)
    try:
        network = parser.get_parsed_content("network").eval()
        preprocessing, inferer, postprocessing = (
            parser.get_parsed_content(i) for i in ("preprocessing", "inferer", "postprocessing")
        )
        grid, device = parser.get_parsed_content("grid"), parser.get_parsed_content("device")
        file = parser.get_parsed_content("ckpt_path")
        if site is None:
            check_atlas(file, grid)
        make_folder(out)
        read_volumes(out / VOLUMES)
        if register or raw:
            atlas = take_atlas(site, grid, out)
        if register:
            network.set_atlas(*atlas)
        if raw:
            from fedsr_monai.prepare.raw_scan import LoadRawScand, for_raw_scans  # only where ITK is there

            load = LoadRawScand("image", atlas, grid, dict(zip(map(str, paths), masks)), out)
            preprocessing, postprocessing = for_raw_scans(preprocessing, postprocessing, load)
    except Exception as error:
        raise user_error(error) or error

    faults = []
    for path in tqdm(paths, desc="segment", unit="scan", disable=None if progress else True):
        try:
            read_nifti(path)
            with torch.no_grad():
                data = preprocessing({"image": str(path)})
                scan = data["image"].as_tensor()[None].to(device)
                data["pred"] = inferer(scan, network)[0]
                postprocessing(data)
                if register:
                    write_registration(network, scan, data["image"], grid, out / volume_stem(path), refine)
        except Exception as error:
            fault = user_error(error)
            if fault is None:
                raise
            faults.append(str(fault))
    if faults:
        raise UserError("\n".join(faults))
    return [out / f"{volume_stem(path)}_dseg.nii.gz" for path in paths]


def check_paths(scans: Sequence[str | os.PathLike]) -> list[Path]:
    """The scans as paths, each of which is a NIfTI file with a name of its own. Only headers are read.

    Raises:
        UserError: there are none, or the first that is wrong.
    """
    paths = [Path(scan) for scan in scans]
    if not paths:
        raise UserError("scans: found none, expected at least one NIfTI file; name them")
    names: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected a NIfTI scan; check the path")
        if not path.name.endswith((".nii", ".nii.gz")):
            raise UserError(
                f"{path}: is no .nii or .nii.gz, expected a NIfTI scan; convert it, for example with dcm2niix or nibabel"
            )
        other = names.setdefault(volume_stem(path), path)
        if other is not path:
            raise UserError(
                f"{path}: would overwrite the result of {other}, expected scans of different names; rename one or take two folders"
            )
        try:
            shape = nib.load(path).shape
        except Exception:  # the whole file is judged when its turn comes
            continue
        if len(shape) < 3 or any(n > 1 for n in shape[3:]):
            raise UserError(
                f"{path}: has the shape {shape}, expected one 3-D volume; take one volume out of the series"
            )
    return paths


def check_masks(masks: Sequence[str | os.PathLike], paths: Sequence[Path], raw: bool) -> None:
    """Refuse masks that do not go with the scans.

    Raises:
        UserError: they are given without `raw`, or are not as many as the scans.
    """
    if masks and not raw:
        raise UserError("--masks: given for scans that are stripped already, expected it with --raw; add --raw or leave it out")
    if masks and len(masks) != len(paths):
        raise UserError(f"--masks: found {len(masks)} masks for {len(paths)} scans, expected one a scan; give all of them, in their order")


def check_atlas(file: str | os.PathLike, grid: Grid) -> None:
    """Weights that carry an atlas fit the bundle's own grid only if it is the project's atlas (trained without a site,
    as MONAI Label does): a site's atlas says that they belong to the site's grid.

    Raises:
        UserError: it is another atlas.
    """
    label = read_weights(file).get("atlas_label", torch.zeros(1))
    if not label.any():
        return
    # Not bit by bit: other versions of scipy may round the border between two structures to the other side.
    if label.shape[2:] != grid.shape or (standard_atlas(grid.spacing, grid.shape)[1] == label[0]).float().mean() < 0.999:
        raise UserError(
            f"{file}: found the weights of one site, with its atlas, expected its grid beside them; "
            "name its folder with --site"
        )


def make_folder(out: Path) -> None:
    """Make the folder for the results if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}), expected a folder; choose another one for --out")


def read_workflow(
    bundle: str | os.PathLike,
    out: str | os.PathLike,
    weights: str | os.PathLike | None,
    site: str | os.PathLike | None,
    device: str | torch.device | None,
) -> ConfigParser:
    """The bundle's inference configuration with these values in place of its own.

    Raises:
        UserError: there is no such bundle or device.
    """
    root = bundle_path(bundle)
    parser = ConfigParser(ConfigParser.load_config_file(str(root / "configs" / "inference.json")))
    values: dict[str, Any] = {
        "bundle_root": str(root),
        "output_dir": str(out),
        "dataset_dir": None if site is None else str(site),
    }
    if weights is not None:
        values["ckpt_path"] = str(weights)
    if device is not None:
        values["device"] = f"$torch.device('{find_device(device)}')"
    parser.update(values)
    return parser


def take_atlas(site: str | os.PathLike | None, grid: Grid, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The site's atlas, or one built on the grid, which is then written to `out/atlas` for whoever applies the
    deformation.

    Raises:
        UserError: the site is broken, or the packages that the atlas is built from are not installed.
    """
    if site is not None:
        return load_atlas(site)
    image, label = standard_atlas(grid.spacing, grid.shape)
    for name, volume in (("image", image), ("label", label)):
        write_volume(out / "atlas" / f"{name}.nii.gz", volume[0].numpy(), grid.affine)
    return image, label


def write_registration(network: FedSRNet, scan: torch.Tensor, loaded: Any, grid: Grid, stem: Path, refine: int) -> None:
    """Register the atlas to a scan [1, 1, D, H, W] on the grid; write labels and deformation at the voxels of the
    scan's file.

    Args:
        loaded: the preprocessed scan with its meta data.
        stem: folder and name of the scan's results.
        refine: gradient steps on this scan's deformation.
    """
    own = Grid(*own_grid(loaded))
    affine = np.asarray(loaded.meta.get("raw_affine", own.affine))
    codes = header_codes(loaded.meta)
    ddf = refine_registration(network, scan, refine) if refine else network.register(scan)[0]
    field = field_on_scan(ddf[0].float(), grid, own)
    labels = labels_under_field(network.atlas_label[0], field, grid, own, network.num_classes)
    write_label_map(stem.with_name(f"{stem.name}_atlas-dseg.nii.gz"), labels[0].cpu().numpy(), affine, codes)
    write_displacement(stem.with_name(f"{stem.name}_warp.nii.gz"), field, grid, own, codes, affine)

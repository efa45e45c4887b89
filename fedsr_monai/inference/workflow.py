"""The parts of a bundle's inference configuration: what happens between reading a scan and writing its labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, SaveImaged

from fedsr_monai.atlas.standard import standard_atlas
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.device import find_device
from fedsr_monai.errors import UserError, user_error
from fedsr_monai.files import check_regular
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.protocols import NEUROMORPHOMETRICS, is_own
from fedsr_monai.networks.weights import load_head, load_weights
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.site import load_atlas
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import write_volume

Atlas = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Workflow:
    """The parts of a bundle's `configs/inference.json`.

    Attributes:
        network: the network with its weights, in evaluation mode, on `device`.
        grid: grid of the network.
        device: device that the network is on.
        weights: file that the weights came from.
        preprocessing: takes a scan as it is read ("image", [1, D, H, W]) to the inferer's input, on the grid or a finer one.
        inferer: calls the network.
        postprocessing: takes logits on the grid of the input ("pred") to labels on the voxels of the scan.
        protocol: label protocol of the network (`networks.protocols`); None with a site, or with weights other than the bundle's
            own, where a site's atlas decides the protocol.
        head: file of the protocol's segmentation head; None if it is the one in `weights`.
    """

    network: FedSRNet
    grid: Grid
    device: torch.device
    weights: Path
    preprocessing: Compose
    inferer: Inferer
    postprocessing: Compose
    protocol: str | None = None
    head: Path | None = None


def load_workflow(
    bundle: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    site: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    fineness: int | None = None,
    protocol: str | None = None,
) -> Workflow:
    """Build the network, read its weights, and strip the reader and the writer from the bundle's transforms.

    MONAI Label and MONAI Deploy use a bundle in the same way: they do the reading and writing themselves.

    Args:
        bundle: name or folder of the bundle.
        weights: checkpoint; by default the bundle's models/model.pt.
        site: site folder whose grid is used; by default the bundle's own grid.
        device: by default the first GPU, or the CPU where there is none.
        fineness: see `ResampleToGrid`; by default the bundle's.
        protocol: label protocol to follow, see `networks.protocols`; by default the bundle's.

    Raises:
        UserError: there is no such bundle, site, device or checkpoint; the weights belong to a site that is not given; or the
            bundle has no head for the protocol, or none that fits this site or these weights.
    """
    root = bundle_path(bundle)
    config = root / "configs" / "inference.json"
    check_regular(config, "the configuration of inference", "install the bundle again")
    parser = ConfigParser(ConfigParser.load_config_file(str(config)))
    values: dict[str, Any] = {"bundle_root": str(root), "dataset_dir": None if site is None else str(site)}
    if weights is not None:
        values["ckpt_path"] = str(weights)
    if fineness is not None:
        values["fineness"] = fineness
    if protocol is not None:
        check_protocol(root, parser, protocol)
        values["protocol"] = protocol
    if device is not None:
        values["device"] = f"$torch.device('{find_device(device)}')"
    parser.update(values)
    try:
        head = parser.get_parsed_content("head_path") if "head_path" in parser else None
        if site is not None:
            ensure_fit([site], atlas_alone=True)
        grid, where, file = (parser.get_parsed_content(key) for key in ("grid", "device", "ckpt_path"))
        network = load_head(load_weights(parser.get_parsed_content("network_def"), file, atlas=site is None), head)
        preprocessing, inferer, postprocessing = (
            parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
        )
    except Exception as error:
        raise user_error(error) or error
    if site is None:
        check_atlas(network.atlas_label[0], grid, file)
    reader, *before = preprocessing.transforms
    if not isinstance(reader, LoadImaged):
        raise UserError(
            root / "configs" / "inference.json",
            found=f"preprocessing that begins with {type(reader).__name__}",
            expected="LoadImaged",
            fix="correct the bundle's configuration",
        )
    after = [transform for transform in postprocessing.transforms if not isinstance(transform, SaveImaged)]
    own = site is None and is_own(file, root)
    return Workflow(
        network.to(where).eval(), grid, where, Path(file), Compose(before), inferer, Compose(after),
        parser.get("protocol", NEUROMORPHOMETRICS) if own else None, head,
    )  # fmt: skip


def check_protocol(root: Path, config: ConfigParser, protocol: str) -> None:
    """Refuse a protocol other than the bundle's own if the bundle has only one head.

    Raises:
        UserError: the bundle has no head for the protocol.
    """
    own = config.get("protocol", NEUROMORPHOMETRICS)
    if protocol != own and config.get("head_path") is None:
        found, fix = f"a head for {own} alone in {root}", "leave it out, or use --bundle fedsr_site"
        raise UserError(f"--protocol {protocol}", found=found, expected="one for it", fix=fix)


def check_atlas(label: torch.Tensor, grid: Grid, file: str | os.PathLike) -> None:
    """Refuse weights that carry an atlas other than the project's, because they belong to the grid of a site.

    Weights that were trained without a site (as MONAI Label trains them) carry the project's atlas.

    Args:
        label: the labels [1, D, H, W] that came with the weights, 0 everywhere if there were none.
        grid: the bundle's own grid.
        file: file of the weights.

    Raises:
        UserError: the atlas is not the project's.
    """
    if not label.any():
        return
    # Not compared bit by bit: other versions of scipy may round the border between two structures the other way.
    if label.shape[1:] != grid.shape or (standard_atlas(grid.spacing, grid.shape)[1] == label).float().mean() < 0.999:
        raise UserError(
            file,
            found="the weights of one site, with its atlas",
            expected="the folder of the site, for its grid",
            fix="name its folder with --site",
        )


def get_atlas(site: str | os.PathLike | None, grid: Grid) -> Atlas:
    """Return the site's atlas, or the project's own on the grid: image float32 and labels uint8, both [1, D, H, W].

    Raises:
        UserError: the site violates its contract, or the packages that the atlas is built from are not installed.
    """
    return standard_atlas(grid.spacing, grid.shape) if site is None else load_atlas(site)


ATLAS_FILES = ("atlas/image.nii.gz", "atlas/label.nii.gz")


def write_atlas(out: Path, image: torch.Tensor, label: torch.Tensor, grid: Grid) -> None:
    """Write the project's atlas [1, D, H, W] to `out/atlas`, for anyone who applies a deformation."""
    for file, volume in zip(ATLAS_FILES, (image, label)):
        write_volume(out / file, volume[0].numpy(), grid.affine)

"""Evaluate a network on the labelled scans of one site."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImage

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.registration import folded_percent, ncc
from fedsr_monai.evaluation.tables import (
    CASE_COLUMNS,
    METRIC_COLUMNS,
    TASKS,
    read_measures,
    structure_rows,
    summarise,
)
from fedsr_monai.files import atomic_path, check_regular, is_there, read_json, write_csv, write_json
from fedsr_monai.labels.agreement import agreement
from fedsr_monai.networks import FedSRNet
from fedsr_monai.progress import Progress
from fedsr_monai.simulation.sites import RECORD
from fedsr_monai.sites.site import Site
from fedsr_monai.spatial.nifti import volume_stem
from fedsr_monai.spatial.reader import VolumeReader

# The volumes of a scan that are kept for figures, in addition to the displacement.
KEPT = ("image", "label", "segmentation", "atlas_image", "warped_image", "warped_label")


def has_labels(site: Site, section: str) -> bool:
    """Return whether a site can be measured on a section: whether one of its scans has a label."""
    return any("label" in item for item in getattr(site, section))


def evaluate_network(
    network: FedSRNet,
    site: Site,
    section: str = "test",
    device: str | torch.device = "cpu",
    out_dir: str | os.PathLike | None = None,
    keep_figures: int = 1,
    progress: bool = True,
    stage: str = "",
) -> list[dict[str, Any]]:
    """Measure registration, segmentation and the unregistered atlas on every labelled scan of a site.

    Each case has three tasks: `unregistered` (the atlas labels where they are), `registration` (the warped atlas
    labels) and `segmentation` (the most likely label of each voxel). The network is evaluated on `device` with the
    atlas that it carries, in evaluation mode; its previous mode is restored afterwards.

    Args:
        network: a `FedSRNet`, or a module with its `predict`, `warp_labels`, `atlas_image`, `atlas_label`.
        site: the site whose scans are read, all on the grid of the atlas.
        section: training, validation or test; scans without a label are left out.
        device: where the network runs.
        out_dir: evaluation folder. The rows of this site replace those that it had there; other sites' rows stay.
        keep_figures: number of cases whose volumes are kept for the report's figures.
        progress: whether to show progress, as a bar or in the log.
        stage: stage of a run that the network belongs to, for the progress display.

    Returns:
        The rows of `metrics.csv` for this site.

    Raises:
        UserError: no scan of the section has a label, or a scan is not on the grid of the atlas.
    """
    items = [item for item in getattr(site, section) if "label" in item]
    if not items:
        fix = f"add labels to '{section}' in site.json or choose another section"
        raise UserError(site.root, f"no labelled scan in '{section}'", "at least one to evaluate", fix)
    was_training = network.training
    network.eval().to(device)
    rows: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    try:
        bar = Progress(items, desc=" ".join(["evaluate", site.name, stage]).strip(), unit="scan", quiet=not progress)
        for number, item in enumerate(bar):
            case = volume_stem(item["image"])
            volumes, seconds = run_case(network, item, device)
            of_case = case_rows(volumes, site)
            rows += [{"site": site.name, "case": case} | row for row in of_case]
            cases.append({"site": site.name, "case": case, "seconds": seconds} | image_measures(volumes))
            bar.set_postfix_str(", ".join(f"{task} {mean_dice(of_case, task):.3f}" for task in TASKS), refresh=False)
            if out_dir is not None and number < keep_figures:
                write_volumes(Path(out_dir) / "cases" / site.name / f"{case}.npz", volumes, site.spacing)
    finally:
        network.train(was_training)
    if out_dir is not None:
        merge_evaluation(Path(out_dir), site, section, rows, cases)
    return rows


def run_case(
    network: FedSRNet, item: Mapping[str, str], device: str | torch.device
) -> tuple[dict[str, np.ndarray], float]:
    """Read a scan and run the network on it.

    Returns:
        The volumes by name, [D, H, W] (`ddf`: [3, D, H, W], in voxels), and the seconds that the network took.

    Raises:
        UserError: the scan or its label map is not on the grid of the atlas.
    """
    load = LoadImage(VolumeReader(), ensure_channel_first=True)
    image = load(item["image"]).as_tensor().float()
    label = load(item["label"]).as_tensor()
    expected = tuple(network.atlas_image.shape[-3:])
    for volume, path in ((image, item["image"]), (label, item["label"])):
        if tuple(volume.shape[-3:]) != expected:
            fix = "resample the scan to the atlas or load the network of this site"
            raise UserError(path, f"a grid of {tuple(volume.shape[-3:])} voxels", f"the atlas' {expected}", fix)
    scan = image[None].to(device)
    start = time.perf_counter()
    with torch.no_grad():
        found = network.predict(scan)
        assert found.ddf is not None and found.warped_image is not None  # asked for
        warped_label = network.warp_labels(found.ddf)
        segmentation = found.logits.argmax(dim=1)
    volumes = {
        "image": image,
        "label": label.to(torch.uint8),
        "segmentation": segmentation.to(torch.uint8),
        "atlas_image": network.atlas_image,
        "atlas_label": network.atlas_label,
        "warped_image": found.warped_image,
        "warped_label": warped_label,
    }
    arrays = {name: volume.reshape(expected).cpu().numpy() for name, volume in volumes.items()}
    arrays["ddf"] = found.ddf.reshape(3, *expected).float().cpu().numpy()
    return arrays, time.perf_counter() - start


def case_rows(volumes: Mapping[str, np.ndarray], site: Site) -> list[dict[str, Any]]:
    """Return the rows of one case: each structure in each task, from the volumes of `run_case`."""
    predictions = zip(TASKS, (volumes["atlas_label"], volumes["warped_label"], volumes["segmentation"]), strict=True)
    return [
        {"task": task} | row
        for task, prediction in predictions
        for row in structure_rows(prediction, volumes["label"], site.spacing, site.labels)
    ]


def image_measures(volumes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the measures of one case that need no reference: NCC, folded voxels, agreement of the two heads."""
    brain = volumes["image"] > 0
    return {
        "ncc_unregistered": ncc(volumes["atlas_image"], volumes["image"], brain),
        "ncc_registration": ncc(volumes["warped_image"], volumes["image"], brain),
        "folded_percent": folded_percent(torch.from_numpy(volumes["ddf"]), torch.from_numpy(brain)),
        "head_agreement": agreement(volumes["segmentation"], volumes["warped_label"]),
    }


def mean_dice(rows: Sequence[Mapping[str, Any]], task: str) -> float:
    """Return the mean Dice of one task over the structures that exist."""
    return float(np.nanmean([row["dice"] for row in rows if row["task"] == task]))


def write_volumes(path: Path, volumes: Mapping[str, np.ndarray], spacing: Sequence[float]) -> None:
    """Write the volumes that the report's figures need, in half precision, which is finer than the drawing."""
    small = {name: v.astype(np.float16) if v.dtype == np.float32 else v for name, v in volumes.items()}
    small.pop("atlas_label")
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **small, spacing=np.asarray(spacing, dtype=np.float32))


def read_volumes(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_volumes` wrote.

    Raises:
        UserError: the file is damaged, or holds other arrays.
    """
    fix = "evaluate again"
    check_regular(path, "the volumes of a scan that was evaluated", fix)
    try:
        with np.load(path) as stored:
            volumes = {name: stored[name] for name in (*KEPT, "ddf", "spacing")}
    except Exception as error:  # numpy, zip and zlib raise half a dozen types
        found = f"a damaged file ({type(error).__name__})"
        raise UserError(path, found, "the volumes of a scan that was evaluated", fix) from None
    shape = volumes["label"].shape
    expected = dict.fromkeys(KEPT, shape) | {"ddf": (3, *shape), "spacing": (3,)}
    of_shape = len(shape) == 3 and all(volumes[name].shape == shape for name, shape in expected.items())
    if not (
        of_shape and all(np.isfinite(volume).all() for volume in volumes.values()) and (volumes["spacing"] > 0).all()
    ):
        raise UserError(path, "volumes of different shapes, or values that are not finite", "those of one scan", fix)
    return volumes


def read_evaluated(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `metrics.json` says about the sites of an evaluation, by name; nothing where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not is_there(path):
        return {}
    fix = "evaluate again into another folder"
    data = read_json(path, "the summary of an evaluation", fix).get("data")
    if not isinstance(data, dict) or not all(isinstance(of_site, dict) for of_site in data.values()):
        raise UserError(f"{path}: data", found="another form", expected="an object for each site", fix=fix)
    return data


def merge_evaluation(
    out_dir: Path, site: Site, section: str, rows: list[dict[str, Any]], cases: list[dict[str, Any]]
) -> None:
    """Write one site's rows into an evaluation folder, in place of those that the site had there."""
    tables = {"metrics.csv": (rows, METRIC_COLUMNS), "cases.csv": (cases, CASE_COLUMNS)}
    merged = {}
    for name, (new, columns) in tables.items():
        path = out_dir / name
        others = [row for row in read_measures(path, columns) if row["site"] != site.name] if is_there(path) else []
        merged[name] = others + new
        write_csv(path, columns, merged[name])
    summary_path = out_dir / "metrics.json"
    data = read_evaluated(summary_path)
    data[site.name] = {
        "path": str(site.root),
        "section": section,
        "spacing": site.spacing,
        "shape": site.shape,
        "simulated": (site.root / RECORD).exists(),
    }
    write_json(summary_path, summarise(merged["metrics.csv"], merged["cases.csv"]) | {"data": data})

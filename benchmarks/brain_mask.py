"""Measure brain masks of raw scans: `python benchmarks/brain_mask.py DIR --out FILE.csv [--version TEXT] [--names sub-06 ...] [--segment]`.

DIR holds `NAME_T1w.nii.gz`, some with labels 0 to 13 beside them (`NAME_dseg.nii.gz`), in folders named after their source. The
reference brain is the labelled region, closed by 8 mm and filled, as in `train_brain_mask.py`. One row per scan is
added to FILE.csv.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from train_brain_mask import closed

from fedsr_monai.atlas.standard import standard_atlas, standard_grid
from fedsr_monai.errors import UserError
from fedsr_monai.inference.segment import segment
from fedsr_monai.prepare.load import read_scan
from fedsr_monai.prepare.pipeline import prepare_scan
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import Volume, read_volume

COLUMNS = ["version", "source", "name", "from", "litres", "dice", "cortex_outside_percent", "labelled_outside_percent"]
COLUMNS += ["overlap", "correlation", "seconds", "segmentation_dice", "outside_ml", "refused"]


def measure(path: Path, atlas: np.ndarray, grid: Grid, with_labels: bool) -> dict:
    row: dict = {"source": path.parent.name, "name": path.name.removesuffix("_T1w.nii.gz")}
    scan = read_scan(path)
    file = path.with_name(path.name.replace("_T1w", "_dseg"))
    labels = read_volume(file).voxels if file.is_file() else None
    started = time.process_time()
    try:
        prepared = prepare_scan(scan, None, atlas, grid, row["name"])
    except UserError as error:
        return row | {"refused": str(error)}
    step = np.linalg.norm(scan.affine[:3, :3], axis=0)
    mask = prepared.mask
    row |= {
        "from": prepared.mask_from,
        "seconds": time.process_time() - started,
        "litres": mask.sum() * step.prod() / 1e6,
    }
    row |= {"overlap": prepared.quality.overlap, "correlation": prepared.quality.correlation}
    if labels is not None:
        brain = closed(labels > 0, step)
        row["dice"] = 2 * (mask & brain).sum() / (mask.sum() + brain.sum())
        row["cortex_outside_percent"] = 100 * (~mask)[labels == 3].mean()
        row["labelled_outside_percent"] = 100 * (~mask)[labels > 0].mean()
    if with_labels and labels is not None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                (own,) = segment([path], folder, raw=True, progress=False)
            except UserError as error:
                return row | {"refused": str(error)}
            found = read_volume(own).voxels
        dice = [
            2 * ((found == k) & (labels == k)).sum() / ((found == k).sum() + (labels == k).sum()) for k in range(1, 14)
        ]
        row["segmentation_dice"] = np.mean(dice)
        row["outside_ml"] = ((found > 0) & ~brain).sum() * step.prod() / 1e3
    return row


def broken(scan: Volume) -> dict[str, Volume]:
    """Return inputs that must be refused, made from a whole head: not a brain, or not where the header says."""
    random, voxels = np.random.default_rng(0), scan.voxels
    order = random.permutation(voxels.size)
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in voxels.shape], indexing="ij"))
    radius = np.linalg.norm(points, axis=0)
    ball = np.where(radius < 0.8, 300 + 100 * np.sin(12 * points[0]), 0) + random.normal(0, 20, voxels.shape)
    changed = {
        "noise": random.normal(0, 100, voxels.shape),
        "voxels in random order": voxels.ravel()[order].reshape(voxels.shape),
        "a ball": ball,
        "upside down": np.flip(voxels, axis_of(scan.affine, 2)),
        "front to back": np.flip(voxels, axis_of(scan.affine, 1)),
        "on its side": np.rot90(voxels, axes=(axis_of(scan.affine, 0), axis_of(scan.affine, 2))),
        "nose up": np.rot90(voxels, axes=(axis_of(scan.affine, 1), axis_of(scan.affine, 2))),
        "the upper third": np.where(height(scan) > 2 / 3, voxels, 0),
        "the lower half": np.where(height(scan) < 1 / 2, voxels, 0),
    }
    volumes = {name: replace(scan, voxels=np.abs(v).astype(np.float32)) for name, v in changed.items()}
    for name, factor in (("voxels of half the size", 0.5), ("voxels of twice the size", 2.0)):
        volumes[name] = replace(scan, affine=scan.affine @ np.diag([factor] * 3 + [1.0]))
    return volumes


def axis_of(affine: np.ndarray, axis: int) -> int:
    """Return the axis of the voxels that runs along an axis of space."""
    return int(np.argmax(np.abs(affine[axis, :3])))


def height(scan: Volume) -> np.ndarray:
    """Return the height of each voxel within the part of the scan that is not empty, from 0 to 1."""
    axis = axis_of(scan.affine, 2)
    seen = np.flatnonzero((scan.voxels > 0.1 * scan.voxels.max()).any(axis=tuple({0, 1, 2} - {axis})))
    line = np.clip((np.arange(scan.voxels.shape[axis]) - seen[0]) / (seen[-1] - seen[0]), 0, 1)
    line = line if scan.affine[2, axis] > 0 else 1 - line
    return line.reshape([-1 if a == axis else 1 for a in range(3)])


def measure_broken(path: Path, atlas: np.ndarray, grid: Grid) -> Iterator[dict]:
    for name, scan in broken(read_scan(path)).items():
        row: dict = {"source": f"{path.parent.name}, {name}", "name": path.name.removesuffix("_T1w.nii.gz")}
        try:
            prepared = prepare_scan(scan, None, atlas, grid, row["name"])
        except UserError as error:
            yield row | {"refused": error.found}
        else:
            yield row | {
                "from": prepared.mask_from,
                "correlation": prepared.quality.correlation,
                "overlap": prepared.quality.overlap,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--version", default="this version")
    parser.add_argument("--names", nargs="*", help="by default all")
    parser.add_argument("--segment", action="store_true", help="label the scans too")
    parser.add_argument(
        "--broken", action="store_true", help="measure what must be refused instead, made of these scans"
    )
    options = parser.parse_args()
    image, _ = standard_atlas(2.0, (80, 96, 80))
    grid = standard_grid(2.0, (80, 96, 80))
    new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if new:
            table.writeheader()
        for path in sorted(options.folder.rglob("*_T1w.nii.gz")):
            if options.names and path.name.removesuffix("_T1w.nii.gz") not in options.names:
                continue
            volume = image[0].numpy()
            for row in (
                measure_broken(path, volume, grid) if options.broken else [measure(path, volume, grid, options.segment)]
            ):
                row = {k: f"{v:.4g}" if isinstance(v, (float, np.floating)) else v for k, v in row.items()}
                table.writerow(row | {"version": options.version})
                file.flush()
                print(row, flush=True)


if __name__ == "__main__":
    main()

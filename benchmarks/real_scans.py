"""Dice on real scans with label maps, at their own resolution: `python benchmarks/real_scans.py FOLDER PERSON ... --out real.csv`.

FOLDER holds `sub-PERSON_T1w.nii.gz` and `sub-PERSON_dseg.nii.gz` (ids 0 to 13) on one grid. Each scan is prepared as `fedsr segment --raw` prepares it, and
labelled in the ways that `fedsr segment` offers (`--fast`, by default, `--accurate`), and the atlas is registered to it by the network alone (`--refine 0`), by default
and with `--accurate`. One row per person and way, appended as it is measured.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from fedsr_monai.atlas.standard import native_atlas
from fedsr_monai.evaluation.registration import folded_percent
from fedsr_monai.inference.interleaved import on_network_grid
from fedsr_monai.inference.prediction import label
from fedsr_monai.inference.segment import REFINE, REFINE_ACCURATE
from fedsr_monai.inference.workflow import get_atlas, load_workflow
from fedsr_monai.labels import NUM_CLASSES
from fedsr_monai.prepare.load import read_scan
from fedsr_monai.prepare.pipeline import prepare_scan
from fedsr_monai.spatial.displacement import field_for, field_on_scan, labels_under_field
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import read_volume

WAYS = {
    "one pass": (1, False, 0),
    "eight passes": (2, False, REFINE),
    "eight passes, flip": (2, True, REFINE_ACCURATE),
}  # fineness, accurate, refine


def dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return the Dice of each structure; nan where neither has it."""
    sizes = [(found == k).sum() + (truth == k).sum() for k in range(1, NUM_CLASSES)]
    both = [((found == k) & (truth == k)).sum() for k in range(1, NUM_CLASSES)]
    return [2 * b / s if s else float("nan") for b, s in zip(both, sizes)]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("people", nargs="+")
    parser.add_argument("--version", default="this version", help="name of the weights in the table")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    workflows = {fineness: load_workflow("fedsr_site", fineness=fineness) for fineness in (1, 2)}
    grid = workflows[1].grid
    image, atlas_label = get_atlas(None, grid)
    for workflow in workflows.values():
        workflow.network.set_atlas(image, atlas_label)
    fine_label, fine_grid = native_atlas()[1:]
    for person in options.people:
        path = options.folder / f"sub-{person}_T1w.nii.gz"
        truth = read_volume(options.folder / f"sub-{person}_dseg.nii.gz").voxels
        prepared = prepare_scan(read_scan(path), None, image[0].numpy(), grid, str(path))
        own = Grid(prepared.affine, truth.shape)
        results: list[tuple[str, str, torch.Tensor, str]] = []
        for way, (fineness, accurate, refine) in WAYS.items():
            workflow = workflows[fineness]
            meta = {"filename_or_obj": str(path), "original_channel_dim": 0}
            scan = MetaTensor(torch.from_numpy(prepared.brain)[None], torch.as_tensor(prepared.affine), meta)
            data, _, answer = label(workflow, scan, register=fineness > 1, refine=refine, accurate=accurate)
            results.append(("seg", way, data["pred"], ""))
            fields = {"network alone": None if accurate else answer.ddf, f"{refine} steps": answer.refined}
            for name, ddf in fields.items():
                if ddf is None:
                    continue
                field = field_for(field_on_scan(ddf, grid, own), grid, fine_grid)
                found = labels_under_field(fine_label, field, fine_grid, own, NUM_CLASSES)
                folded = folded_percent(ddf, on_network_grid(data["image"].as_tensor(), grid)[0] > 0)
                results.append(("reg", name, found, f"{folded:.2e}"))
        with open(options.out, "a", newline="") as file:
            for head, way, found, folded in results:
                values = dice(found[0].numpy(), truth)
                print(person, way, f"{np.nanmean(values):.4f}", flush=True)
                row = [f"{options.version}, {way}", f"{options.folder.name}-{person}", head, "1mm"]
                numbers = [f"{value:.4f}" for value in (np.nanmean(values), *values)]
                csv.writer(file, lineterminator="\n").writerow([*row, *numbers, folded])


if __name__ == "__main__":
    main()

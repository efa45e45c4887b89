"""Dice on real scans with label maps, at their own resolution: `python benchmarks/real_scans.py FOLDER PERSON ... --out real.csv`.

FOLDER holds `sub-PERSON_T1w.nii.gz` and `sub-PERSON_dseg.nii.gz` (ids 0 to 13) on one grid. Each scan is prepared as by
`fedsr segment --raw` and labelled in the ways that `fedsr segment` offers: with `--fast`, by default, and with
`--accurate`. The atlas is registered to it by the network alone (`--refine 0`), by default, and with `--accurate`. One
row per person and way is appended to the table, person by person. `--ants METHOD` measures label propagation by ANTs
instead, on the files as they are (which must be skull-stripped) and with the atlas at 1 mm.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from fedsr_monai.atlas.standard import native_atlas
from fedsr_monai.benchmark.ants_baseline import METHODS, propagate
from fedsr_monai.evaluation.registration import folded_percent
from fedsr_monai.inference.interleaved import on_network_grid
from fedsr_monai.inference.prediction import label
from fedsr_monai.inference.segment import REFINE, REFINE_ACCURATE
from fedsr_monai.inference.workflow import ATLAS_FILES, get_atlas, load_workflow, write_atlas
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


Row = tuple[str, str, np.ndarray, str]  # head, way, labels [D, H, W] on the scan's voxels, and percent of folded voxels


class Ours:
    """Label a scan in each of `WAYS`, and register the atlas to it."""

    def __init__(self) -> None:
        self.workflows = {fineness: load_workflow("fedsr_site", fineness=fineness) for fineness in (1, 2)}
        self.grid = self.workflows[1].grid
        self.image, atlas_label = get_atlas(None, self.grid)
        for workflow in self.workflows.values():
            workflow.network.set_atlas(self.image, atlas_label)
        self.fine_label, self.fine_grid = native_atlas()[1:]

    @torch.no_grad()
    def __call__(self, path: Path) -> Iterator[Row]:
        raw = read_scan(path)
        prepared = prepare_scan(raw, None, self.image[0].numpy(), self.grid, str(path))
        own = Grid(prepared.affine, raw.voxels.shape)
        for way, (fineness, accurate, refine) in WAYS.items():
            meta = {"filename_or_obj": str(path), "original_channel_dim": 0}
            scan = MetaTensor(torch.from_numpy(prepared.brain)[None], torch.as_tensor(prepared.affine), meta)
            options = {"register": fineness > 1, "refine": refine, "accurate": accurate}
            data, _, answer = label(self.workflows[fineness], scan, **options)
            yield "seg", way, data["pred"][0].numpy(), ""
            fields = {"network alone": None if accurate else answer.ddf, f"{refine} steps": answer.refined}
            for name, ddf in fields.items():
                if ddf is None:
                    continue
                field = field_for(field_on_scan(ddf, self.grid, own), self.grid, self.fine_grid)
                found = labels_under_field(self.fine_label, field, self.fine_grid, own)
                folded = folded_percent(ddf, on_network_grid(data["image"].as_tensor(), self.grid)[0] > 0)
                yield "reg", name, found[0].numpy(), f"{folded:.2e}"


def by_ants(method: str) -> Callable[[Path], Iterator[Row]]:
    """Return a function that propagates the labels of the atlas at 1 mm to a scan."""

    def measure(path: Path) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as folder:
            write_atlas(Path(folder), *native_atlas())
            image, atlas_label = (str(Path(folder) / file) for file in ATLAS_FILES)
            found = propagate(image, atlas_label, str(path), method)
        yield "reg", f"ANTs {method}, {found.seconds:.0f} s", found.label, f"{found.folded_percent:.2e}"

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("people", nargs="+")
    parser.add_argument("--version", default="this version", help="name of the weights in the table")
    parser.add_argument("--ants", choices=list(METHODS), help="a way of ANTs, in place of ours")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    measure = by_ants(options.ants) if options.ants else Ours()
    for person in options.people:
        truth = read_volume(options.folder / f"sub-{person}_dseg.nii.gz").voxels
        results = list(measure(options.folder / f"sub-{person}_T1w.nii.gz"))
        with open(options.out, "a", newline="") as file:
            for head, way, found, folded in results:
                values = dice(found, truth)
                print(person, way, f"{np.nanmean(values):.4f}", flush=True)
                row = [f"{options.version}, {way}", f"{options.folder.name}-{person}", head, "1mm"]
                numbers = [f"{value:.4f}" for value in (np.nanmean(values), *values)]
                csv.writer(file, lineterminator="\n").writerow([*row, *numbers, folded])


if __name__ == "__main__":
    main()

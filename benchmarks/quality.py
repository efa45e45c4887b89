"""How often results are judged wrongly: good scans that warn or are rejected, broken scans that pass.

    python benchmarks/quality.py benchmarks/quality.csv "OASIS-1, stripped=FOLDER" "3 T heads=FOLDER" --broken 8

Each folder holds scans as `fedsr segment --raw` takes them; label maps and masks in it are left out. A scan is read and aligned
once. Broken variants are made of the aligned brain, as a user would give it without `--raw`, of the first scans of each folder.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from fedsr_monai.errors import UserError, user_error
from fedsr_monai.files import write_csv
from fedsr_monai.inference.load import LoadRaw
from fedsr_monai.inference.outputs import file_affine
from fedsr_monai.inference.prediction import ask
from fedsr_monai.inference.quality import Quality
from fedsr_monai.inference.scans import list_scans
from fedsr_monai.inference.segment import judge
from fedsr_monai.inference.workflow import get_atlas, load_workflow
from fedsr_monai.labels.volumes import structure_volumes

COLUMNS = ("input", "source", "scans", "good", "doubtful", "rejected", "refused", "agreement_min", "agreement_max")
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def turned(axes: tuple[int, int]) -> Change:
    """A quarter turn in the plane of two axes of the scan, about the middle of the brain."""
    return centred(lambda cube: np.rot90(cube, axes=axes))


def flipped(axis: int) -> Change:
    """The brain, mirrored along an axis of the scan."""
    return centred(lambda cube: np.flip(cube, axis))


def centred(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A change of the smallest cube that holds the brain, in its place; what then sticks out of the scan is cut off."""

    def wrapped(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
        places = np.argwhere(brain > 0)
        low, high = places.min(0), places.max(0) + 1
        side = int((high - low).max())
        origin = (low + high - side) // 2
        cube = np.zeros((side,) * 3, np.float32)
        begin = np.maximum(origin, 0)
        end = np.minimum(origin + side, brain.shape)
        here = tuple(slice(a, b) for a, b in zip(begin, end))
        there = tuple(slice(a, b) for a, b in zip(begin - origin, end - origin))
        cube[there] = brain[here]
        result = np.zeros_like(brain)
        result[here] = change(cube)[there]
        return result

    return wrapped


def inverted(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.where(brain > 0, np.clip(1.05 * np.percentile(brain[brain > 0], 99.5) - brain, 1e-3, None), 0)


def noisy(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
    level = np.percentile(brain[brain > 0], 90)
    return np.where(brain > 0, np.abs(brain + random.normal(0, level, brain.shape)), 0)


def blurred(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.where(brain > 0, ndimage.gaussian_filter(brain, 8), 0)


def shuffled(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
    changed = brain.copy()
    changed[brain > 0] = random.permutation(brain[brain > 0])
    return changed


def half(axis: int, keep_first: bool) -> Change:
    def change(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
        middle = int(np.median(np.argwhere(brain > 0)[:, axis]))
        changed = brain.copy()
        changed[(slice(None),) * axis + ((slice(middle, None) if keep_first else slice(None, middle)),)] = 0
        return changed

    return change


def ball(brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A phantom: a ball of the brain's volume with shells and spheres in it."""
    centre = np.array(ndimage.center_of_mass(brain > 0))
    points = np.moveaxis(np.indices(brain.shape), 0, -1) - centre
    distance = np.linalg.norm(points, axis=-1)
    radius = (np.count_nonzero(brain) * 3 / (4 * np.pi)) ** (1 / 3)
    phantom = np.where(distance < radius, 0.6, 0) + np.where(distance < 0.7 * radius, 0.3, 0)
    for _ in range(12):
        place = random.normal(0, 0.35 * radius, 3)
        phantom[(np.linalg.norm(points - place, axis=-1) < 0.12 * radius) & (distance < radius)] = random.uniform(
            0.1, 1
        )
    return phantom + np.where(phantom > 0, random.normal(0, 0.02, brain.shape).clip(-0.05, 0.05), 0)


BROKEN: dict[str, Change] = {
    "quarter turn, axes 2 and 3": turned((1, 2)),
    "quarter turn, axes 1 and 3": turned((0, 2)),
    "quarter turn, axes 1 and 2": turned((0, 1)),
    "mirrored along axis 2": flipped(1),
    "mirrored along axis 3": flipped(2),
    "intensities inverted": inverted,
    "noise of the tissue's own level": noisy,
    "blurred by 8 voxels": blurred,
    "voxels shuffled": shuffled,
    "lower half alone": half(2, True),
    "upper half alone": half(2, False),
    "one hemisphere": half(0, True),
    "ball phantom": ball,
}


class Judge:
    """The way of `fedsr segment` from a read scan to the quality of its result, without writing."""

    def __init__(self) -> None:
        self.workflow = load_workflow("fedsr_site", device="cpu")
        self.atlas = get_atlas(None, self.workflow.grid)
        self.workflow.network.set_atlas(*self.atlas)

    @torch.no_grad()
    def __call__(self, loaded) -> Quality | UserError:
        try:
            data = self.workflow.preprocessing({"image": loaded})
        except Exception as error:
            mistake = user_error(error)
            if mistake is None:
                raise
            return mistake
        image = data["image"].as_tensor()[None]
        answer = ask(self.workflow, image, register=True)
        data["pred"] = answer.logits
        data = self.workflow.postprocessing(data)
        volumes = structure_volumes(data["pred"][0].numpy(), file_affine(data))
        return judge(self.workflow, image, answer, volumes, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="the table of rates (.csv)")
    parser.add_argument(
        "sources", nargs="+", metavar="NAME=FOLDER", help="folders of scans, with what they are called in the table"
    )
    parser.add_argument("--broken", type=int, default=4, help="scans of each folder of which broken variants are made")
    parser.add_argument("--cases", type=Path, help="a table of all single results (.csv)")
    arguments = parser.parse_args()
    run = Judge()
    found: dict[tuple[str, str], list[Quality | UserError]] = {}
    cases = []

    def keep(kind: str, source: str, name: str, result: Quality | UserError) -> None:
        found.setdefault((kind, source), []).append(result)
        row = {"input": kind, "source": source, "scan": name}
        if isinstance(result, Quality):
            row |= {key: getattr(result, key) for key in ("verdict", "agreement", "correlation", "folded_percent")}
            row |= {"missing": len(result.missing), "implausible": "; ".join(result.implausible)}
        else:
            row |= {"verdict": "refused", "implausible": str(result)}
        cases.append(row)
        print(row, file=sys.stderr, flush=True)

    for source in arguments.sources:
        label, _, folder = source.partition("=")
        scans = [scan for scan in list_scans([folder])[0] if not scan.name.endswith(("dseg", "mask"))]
        for number, scan in enumerate(scans):
            with tempfile.TemporaryDirectory() as pictures:
                try:
                    loaded = LoadRaw(run.atlas, run.workflow.grid, Path(pictures))(scan)
                except Exception as error:
                    keep("as it is", label, scan.name, user_error(error) or UserError(scan.path, str(error), "a scan"))
                    continue
            keep("as it is", label, scan.name, run(loaded))
            if number >= arguments.broken:
                continue
            for kind, change in BROKEN.items():
                random = np.random.default_rng(number)
                broken = loaded.clone()
                broken[0] = torch.from_numpy(np.ascontiguousarray(change(loaded[0].numpy(), random), dtype=np.float32))
                keep(kind, label, scan.name, run(broken))
    rows = []
    for (kind, source), results in found.items():
        judged = [result for result in results if isinstance(result, Quality)]
        verdicts = [result.verdict for result in judged]
        agreements = [result.agreement for result in judged]
        row = {"input": kind, "source": source, "scans": len(results), "refused": len(results) - len(judged)}
        row |= {verdict: verdicts.count(verdict) for verdict in ("good", "doubtful", "rejected")}
        rows.append(row | {"agreement_min": min(agreements, default=""), "agreement_max": max(agreements, default="")})
    write_csv(arguments.table, COLUMNS, rows)
    if arguments.cases:
        columns = list(dict.fromkeys(key for row in cases for key in row))
        with open(arguments.cases, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(cases)


if __name__ == "__main__":
    main()

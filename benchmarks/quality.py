"""How often results are judged wrongly: good scans that are judged doubtful or rejected, broken scans that pass.

    python benchmarks/quality.py benchmarks/quality.csv "OASIS-1, stripped=FOLDER" "3 T heads=FOLDER" --cases CASES.csv --seconds 1000

Each folder holds scans as `fedsr segment --raw` takes them; label maps and masks in it are left out. A scan is read and aligned
once. Broken variants are made of the aligned brain, as a user would give it without `--raw`. Cases that are already in
CASES.csv are not measured again: repeat the command until it says that nothing is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from fedsr_monai.errors import UserError, user_error
from fedsr_monai.files import read_csv, write_csv
from fedsr_monai.inference.load import LoadRaw
from fedsr_monai.inference.outputs import file_affine
from fedsr_monai.inference.prediction import label
from fedsr_monai.inference.quality import Quality
from fedsr_monai.inference.run import judge
from fedsr_monai.inference.scans import list_scans
from fedsr_monai.inference.workflow import get_atlas, load_workflow
from fedsr_monai.labels.volumes import structure_volumes
from fedsr_monai.transforms.check_scan import fraction_inside

COLUMNS = ("input", "source", "scans", "good", "doubtful", "rejected", "refused", "agreement_min", "agreement_max")
CASE_COLUMNS = ("input", "source", "scan", "verdict", "agreement", "correlation", "folded_percent", "reasons")
INTACT, REFUSED = "as it is", "as it is, refused before it was labelled"
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def turned(axes: tuple[int, int]) -> Change:
    """Return a quarter turn in the plane of two axes of the scan, about the middle of the brain."""
    return centred(lambda cube: np.rot90(cube, axes=axes))


def flipped(axis: int) -> Change:
    """Return a reflection of the brain along an axis of the scan."""
    return centred(lambda cube: np.flip(cube, axis))


def centred(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Return a change that is applied to the smallest cube that holds the brain, in its place; what then sticks out of the scan is cut off."""

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
    """Return a phantom: a ball of the brain's volume with shells and spheres in it."""
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
    """The steps of `fedsr segment` from a loaded scan to the quality of its result, without writing files."""

    def __init__(self) -> None:
        self.workflow = load_workflow("fedsr_site", device="cpu")
        self.atlas = get_atlas(None, self.workflow.grid)
        self.workflow.network.set_atlas(*self.atlas)

    @torch.no_grad()
    def __call__(self, loaded) -> Quality | UserError:
        try:
            data, image, answer = label(self.workflow, loaded, register=True)
        except Exception as error:
            mistake = user_error(error)
            if mistake is None:
                raise
            return mistake
        volumes = structure_volumes(data["pred"][0].numpy(), file_affine(data))
        brain = loaded.as_tensor()[0] > 0
        outside = 100 * (1 - fraction_inside(brain, loaded.affine.numpy(), self.workflow.grid)) if brain.any() else 0.0
        return judge(self.workflow, image, answer, volumes, outside)


def measure(run: Judge, label: str, folder: str, broken: int, keep: Callable[..., None], done: set) -> None:
    """Judge the scans of a folder as they are, and broken variants of the first `broken` of them; skip what is in `done`."""
    scans = [scan for scan in list_scans([folder])[0] if not scan.name.endswith(("dseg", "mask"))]
    for number, scan in enumerate(scans):
        wanted = [INTACT, *(BROKEN if number < broken else ())]
        if {(kind, label, scan.name) for kind in wanted} <= done or (REFUSED, label, scan.name) in done:
            continue
        with tempfile.TemporaryDirectory() as pictures:
            try:
                loaded = LoadRaw(run.atlas, run.workflow.grid, Path(pictures))(scan)
            except Exception as error:
                keep(REFUSED, label, scan.name, user_error(error) or UserError(scan.path, str(error), "a scan"))
                continue
        for kind in wanted:
            if (kind, label, scan.name) in done:
                continue
            changed = loaded.clone()
            if kind != INTACT:
                voxels = BROKEN[kind](loaded[0].numpy(), np.random.default_rng(number))
                changed[0] = torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32))
            keep(kind, label, scan.name, run(changed))


def rates(cases: list[dict[str, str]]) -> list[dict[str, object]]:
    """Return one row per kind of input and source, with the number of results by verdict."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for case in cases:
        kind = INTACT if case["input"] == REFUSED else case["input"]
        found.setdefault((kind, case["source"]), []).append(case)
    rows = []
    for (kind, source), results in sorted(found.items(), key=lambda item: (item[0][0] != INTACT, *item[0])):
        verdicts = [result["verdict"] for result in results]
        agreements = [float(result["agreement"]) for result in results if result["agreement"]]
        row: dict[str, object] = {"input": kind, "source": source, "scans": len(results)}
        row |= {verdict: verdicts.count(verdict) for verdict in ("good", "doubtful", "rejected", "refused")}
        rows.append(row | {"agreement_min": min(agreements, default=""), "agreement_max": max(agreements, default="")})
    return rows


class OutOfTime(Exception):
    """The time that the call was given is over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="the table of rates (.csv)")
    parser.add_argument(
        "sources", nargs="+", metavar="NAME=FOLDER", help="folders of scans, with what they are called in the table"
    )
    parser.add_argument(
        "--broken", type=int, default=1000, help="scans of each folder of which broken variants are made"
    )
    parser.add_argument(
        "--cases", type=Path, required=True, help="the table of all single results (.csv), continued if it exists"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    cases = read_csv(arguments.cases, CASE_COLUMNS) if arguments.cases.is_file() else []

    def keep(kind: str, source: str, name: str, result: Quality | UserError) -> None:
        row = dict.fromkeys(CASE_COLUMNS, "") | {"input": kind, "source": source, "scan": name}
        if isinstance(result, Quality):
            row |= {"verdict": result.verdict, "reasons": "; ".join(result.reasons)}
            row |= {key: f"{getattr(result, key):.6g}" for key in ("agreement", "correlation", "folded_percent")}
        else:
            row |= {"verdict": "refused", "reasons": str(result)}
        cases.append(row)
        write_csv(arguments.cases, CASE_COLUMNS, cases)
        print(row, file=sys.stderr, flush=True)
        if time.monotonic() > end:
            raise OutOfTime

    run = Judge()
    try:
        for source in arguments.sources:
            label, _, folder = source.partition("=")
            done = {(case["input"], case["source"], case["scan"]) for case in cases}
            measure(run, label, folder, arguments.broken, keep, done)
    except OutOfTime:
        print("out of time: give the same command again", file=sys.stderr)
    else:
        print("nothing is left", file=sys.stderr)
    write_csv(arguments.table, COLUMNS, rates(cases))


if __name__ == "__main__":
    main()

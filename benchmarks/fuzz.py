"""Mutate the files that another party may have written, and read them: no traceback, no hang, no silent success.

Each case damages one file of a small world (a site, a run of it, a personalised training, scans, weights) and runs the
code that reads that file in this process, under limits of time and memory. A case is

- `refused`: it ended in a `UserError`, or the check of a site named a violation;
- `read`: it succeeded, and the file may be valid: a key that nothing uses, a header field that does not matter, another
  number in a tensor (only files that a run names by their checksum are safe from that);
- `traceback`, `hang`: any other exception, or more than the time limit;
- `silent`: it succeeded although the file cannot be valid (cut short, of another type, numbers that are not finite).

    python benchmarks/fuzz.py --cases 2000 --seed 0 --out benchmarks/fuzz.csv
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fedsr_monai.bundle_overrides import check_overrides
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import user_error
from fedsr_monai.evaluation.run import earlier_models, load_network, models_of_run
from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.files import sha256, write_csv
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.personalisation import find_weights
from fedsr_monai.report.sources import read_sources
from fedsr_monai.run_record import read_run
from fedsr_monai.sites.check import check_site
from fedsr_monai.sites.site import load_atlas, load_site
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
SECONDS = 20
GIGABYTES = 24  # of address space, of which torch alone reserves most
ODD = [None, True, -1, 0, 1.5, 1e308, 10**40, "", "x" * 5000, "$__import__('os')._exit(3)", "@device", "../../etc",
       "\0", [], {}, [[]], {"a": 1}, "NaN", float("nan"), float("inf"), "%/etc/passwd", {"_target_": "os._exit"}]  # fmt: skip


class Refused(Exception):
    """Signal that a reader named a fault without raising an error."""


def make_world(root: Path) -> None:
    """Write a site, a run with one round, a personalised training, and the tables of an evaluation."""
    image, label = np.zeros((2, 32, 32, 32), np.float32)
    for number in range(1, 14):
        image[8 + number, 8:24, 8:24], label[8 + number, 8:24, 8:24] = 0.1 + 0.05 * number, number
    site = root / "site"
    for shift, name in enumerate("abc", start=1):
        write_volume(site / f"images/{name}.nii.gz", np.roll(image, shift, 1), AFFINE)
        write_volume(site / f"labels/{name}.nii.gz", np.roll(label, shift, 1).astype(np.uint8), AFFINE)
    labelled = [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"} for name in "bc"]
    training = [{"image": "images/a.nii.gz"}]
    write_site(site, "site", image, label.astype(np.uint8), AFFINE, training, labelled[:1], labelled[1:])
    state = FedSRNet("small").state_dict()
    shared = {key: value for key, value in state.items() if key.startswith(("encoder.", "sa."))}
    for folder in ("server", "sites/site", "personalised/site"):
        (root / "run" / folder).mkdir(parents=True)
    torch.save(state, root / "run/sites/site/model.pt")
    torch.save(state, root / "run/personalised/site/model.pt")
    save_file(shared, root / "run/server/round_0001.safetensors")
    checkpoint = root / "run/server/round_0001.safetensors"
    state_of_server = {"file": checkpoint.name, "sha256": sha256(checkpoint), "round": 1, "history": []}
    write(root / "run/server/state.json", state_of_server)
    sites = [{"name": "site", "path": str(site), "images": 1}]
    bundle = {"name": "fedsr_encoder", "path": str(bundle_path("fedsr_encoder"))}
    write(root / "run/run.json", {"bundle": bundle, "sites": sites, "overrides": {"preset": "small"}, "rounds": 1})
    write(
        root / "run/personalised/site/personalised.json",
        {"site": str(site), "bundle": str(bundle_path("fedsr_site")), "overrides": {"scie": True}},
    )
    write(root / "overrides.json", {"preset": "small", "learning_rate": 1e-4, "epoch_length": 3, "scie": True})


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


# What reads each file, as the commands do.
def read_site_json(root: Path) -> None:
    named = check_site(root / "site")
    if named:
        raise Refused(str(named[0]))
    load_site(root / "site")


def read_run_json(root: Path) -> None:
    read_run(root / "run")
    models_of_run(root / "run")
    earlier_models(root / "run")
    read_sources(root / "run", None)


def read_personalised_json(root: Path) -> None:
    models_of_run(root / "run")


def read_state(root: Path) -> None:
    path, _ = find_weights(root / "run", bundle_path("fedsr_site"))
    read_tensors(path)


def read_atlas(root: Path) -> None:
    read_site_json(root)
    load_atlas(root / "site")


def read_model(root: Path) -> None:
    load_network(models_of_run(root / "run", personalised=False)[0])


def read_round(root: Path) -> None:
    load_weights(
        FedSRNet("small"), root / "run/server/round_0001.safetensors", optional=("registration.", "segmentation.")
    )


def read_overrides(root: Path) -> None:
    check_overrides(
        [bundle_path("fedsr_encoder") / "configs/train.json"], json.loads((root / "overrides.json").read_text())
    )


TARGETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "site.json": ("site/site.json", read_site_json),
    "run.json": ("run/run.json", read_run_json),
    "personalised.json": ("run/personalised/site/personalised.json", read_personalised_json),
    "state.json": ("run/server/state.json", read_state),
    "settings": ("overrides.json", read_overrides),
    "scan": ("site/images/a.nii.gz", read_site_json),
    "label map": ("site/labels/c.nii.gz", read_site_json),
    "atlas": ("site/atlas/image.nii.gz", read_atlas),
    "model.pt": ("run/sites/site/model.pt", read_model),
    "safetensors": ("run/server/round_0001.safetensors", read_round),
}


# Mutations: each changes a file and returns whether the file may still be valid.
def cut(path: Path, draw: random.Random) -> bool:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    return False


def flip(path: Path, draw: random.Random) -> bool:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 4, 64])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))
    return True


def other_bytes(path: Path, draw: random.Random) -> bool:
    path.write_bytes(draw.randbytes(draw.choice([1, 100, 10_000])))
    return False


def folder_instead(path: Path, draw: random.Random) -> bool:
    path.unlink()
    path.mkdir()
    return False


def gone(path: Path, draw: random.Random) -> bool:
    path.unlink()
    return path.name == "personalised.json"  # then the site was not personalised


def json_value(path: Path, draw: random.Random) -> bool:
    """Replace, remove or add one value anywhere in the file."""
    content = json.loads(path.read_text())
    places = list(nodes(content))
    holder, key = draw.choice(places)
    kind = draw.choice(["replace", "replace", "replace", "remove", "add"])
    if kind == "replace":
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif kind == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw.choice(["new", "", "x" * 5000, "imports", "_target_", "$x"])] = copy.deepcopy(draw.choice(ODD))
    write(path, content)
    return True


def nodes(content: Any):
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield content, key
        if isinstance(value, (dict, list)):
            yield from nodes(value)


def json_top(path: Path, draw: random.Random) -> bool:
    write(path, draw.choice([value for value in ODD if not isinstance(value, dict)]))
    return False


def json_twice(path: Path, draw: random.Random) -> bool:
    text = path.read_text()
    key = draw.choice(list(json.loads(text)))
    path.write_text("{" + json.dumps(key) + ": 0, " + text.lstrip()[1:])
    return False


def json_deep(path: Path, draw: random.Random) -> bool:
    path.write_text("[" * 100_000)
    return False


def nifti_field(path: Path, draw: random.Random) -> bool:
    """Overwrite one field of the header with an odd number."""
    import gzip

    content = bytearray(gzip.decompress(path.read_bytes()))
    offset, kind = draw.choice(
        [(0, "i"), (40, "h"), (42, "h"), (44, "h"), (48, "h"), (70, "h"), (72, "h"), (76, "f"), (80, "f"), (84, "f"),
         (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h"), (256, "f"), (280, "f"), (296, "f"),
         (328, "f"), (344, "4s")]
    )  # fmt: skip
    odd = {
        "i": [0, -1, 540, 2**31 - 1],
        "h": [0, -1, 1, 7, 32767, 5, 16],
        "f": [float("nan"), float("inf"), 0.0, -1.0, 1e30],
        "b": [0, 1, 3, 99],
        "4s": [b"abcd"],
    }
    struct.pack_into("<" + kind, content, offset, draw.choice(odd[kind]))
    path.write_bytes(gzip.compress(bytes(content), 1))
    return True


def nifti_nan(path: Path, draw: random.Random) -> bool:
    import nibabel as nib

    volume = nib.load(path)
    data = np.asarray(volume.dataobj, np.float32)
    data[draw.randrange(32), 12, 12] = draw.choice([np.nan, np.inf, -np.inf, 1e30])
    nib.save(nib.Nifti1Image(data, volume.affine), path)
    return False


def weights_tensor(path: Path, draw: random.Random) -> bool:
    """Damage one tensor, its key or its type."""
    safe = path.suffix == ".safetensors"
    state = dict(read_tensors(path)) if safe else torch.load(path, weights_only=True)
    key = draw.choice([key for key in state if not key.startswith("atlas_")])
    kind = draw.choice(["nan", "shape", "type", "key", "extra", "gone"] + ["int", "none"] * (not safe))
    if kind == "nan":
        state[key] = torch.full_like(state[key].float(), draw.choice([np.nan, np.inf]))
    elif kind == "shape":
        state[key] = torch.zeros(3, 5)
    elif kind == "type":
        state[key] = state[key].double() if draw.random() < 0.5 else state[key].to(torch.int32)
    elif kind == "key":
        state["encoder.other"] = state.pop(key)
    elif kind == "extra":
        state["x" * draw.choice([1, 5000])] = torch.zeros(1)
    elif kind == "gone":
        del state[key]
    elif kind == "int":
        state[7] = torch.zeros(1)
    else:
        state[key] = None
    save_file(state, path) if safe else torch.save(state, path)
    return False


GENERAL = [cut, flip, flip, other_bytes, folder_instead, gone]
JSON = [json_value] * 12 + [json_top, json_twice, json_deep]
NIFTI = [nifti_field] * 8 + [nifti_nan] * 2
MUTATIONS = {
    **dict.fromkeys(("site.json", "run.json", "personalised.json", "state.json"), GENERAL + JSON),
    "settings": [json_value],
    **dict.fromkeys(("scan", "label map", "atlas"), GENERAL + NIFTI),
    **dict.fromkeys(("model.pt", "safetensors"), GENERAL + [weights_tensor] * 6),
}


class Hang(BaseException):
    """The time limit is over; not an `Exception`, so that no reader catches it."""


def outcome(read: Callable[[], None], may_be_valid: bool, seconds: int = SECONDS) -> tuple[str, str]:
    """Run a reader under the time limit; return how it ended, and its message or traceback."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read()
    except Hang:
        return "hang", ""
    except Refused as error:
        return "refused", str(error)
    except Exception as error:
        mistake = user_error(error)
        return ("traceback", traceback.format_exc()) if mistake is None else ("refused", str(mistake))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ("read" if may_be_valid else "silent"), ""


def fuzz(cases: int, seed: int, report: Callable[[str, str, str, str], None]) -> Counter:
    """Run `cases` cases and count them by target, mutation and outcome."""
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        world.mkdir()
        make_world(world)
        for target, (_, read) in TARGETS.items():
            ended, words = outcome(lambda read=read: read(world), True)
            if ended != "read":  # all that follows would be refused for a reason of its own
                raise AssertionError(f"{target}: the intact file is not read: {words}")
        for number in range(cases):
            draw = random.Random(f"{seed} {number}")
            target = list(TARGETS)[number % len(TARGETS)]
            path, read = TARGETS[target]
            saved = (world / path).read_bytes()
            mutate = draw.choice(MUTATIONS[target])
            try:
                valid = mutate(world / path, draw)
                ended, words = outcome(lambda read=read: read(world), valid)
            finally:
                if (world / path).is_dir():
                    shutil.rmtree(world / path)
                (world / path).write_bytes(saved)
            found[target, mutate.__name__, ended] += 1
            report(target, mutate.__name__, ended, f"case {number}: {words}")
    return found


def main() -> int:
    """Run from the command line; the exit status is 1 if a case ended in a traceback, a hang or a silent success."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/fuzz.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    limit = GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    bad = []

    def report(target: str, mutation: str, ended: str, words: str) -> None:
        if ended in ("traceback", "hang", "silent"):
            bad.append(f"{ended}: {target}, {mutation}, {words}")

    started = time.perf_counter()
    found = fuzz(options.cases, options.seed, report)
    print("\n".join(bad), file=sys.stderr)
    outcomes = ("refused", "read", "traceback", "hang", "silent")
    rows = [
        {"file": target, "mutation": mutation, **{kind: found[target, mutation, kind] for kind in outcomes}}
        for target, mutation in sorted({key[:2] for key in found})
    ]
    write_csv(options.out, ("file", "mutation", *outcomes), rows)
    total = {kind: sum(row[kind] for row in rows) for kind in outcomes}
    print(f"{options.cases} cases in {time.perf_counter() - started:.0f} s: {total}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

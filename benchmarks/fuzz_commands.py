"""Damage files and folders, and give them to whole commands: no traceback, no hang, no silent success.

A small world (two simulated sites, a run of them, a personalised training, an evaluation, label maps, raw scans and a prepared
site, a FLARE startup kit, a study's plan) is made once by the commands themselves. Each case damages one file or folder of a
copy, or gives one option an odd value, and runs a command's `main` in this process. A case is

- `refused`: exit status 2 (or 1, for the machine's failures) and lines that begin with `fedsr:`;
- `done`: exit status 0, and what was damaged may be valid, or is not read by this command;
- `traceback`: an exception came out of `main`, or a traceback was printed;
- `hang`: more than 90 seconds of processor time, or four minutes without using the processor;
- `silent`: exit status 0 although what was damaged cannot be valid; or what was written is not sound (a network that is not
  finite, a Dice that is no fraction, labels that do not exist or lie elsewhere than the scan); or a file of the user was changed.

As root, the process first gives up the right to ignore permissions. An existing log of single cases is continued:

    python benchmarks/fuzz_commands.py --cases 2400 --seed 1 --log cases.csv --seconds 1000
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import fuzz

import fedsr_monai
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.cli import main as fedsr
from fedsr_monai.commands import COMMANDS
from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.files import read_csv, write_csv

SECONDS = 90  # of processor time for one case, so that a crowded machine does not count
IDLE = 240  # seconds in which the processor is not used
GIGABYTES = 12  # of address space
GRID = "--spacing 6 --shape 32 36 32 --processes 1"
SITE, OTHER = "sites/adult-3t", "sites/elderly-3t"
MODEL = "run/sites/adult-3t/model.pt"
SIMULATE = f"simulate @sites --sites 2 --training 2 --validation 1 --test 1 {GRID}"
FEDERATE = "federate @sites --override epoch_length=1"
PERSONALISE = f"personalise @{SITE} --weights @run --epochs 1 --epoch_length 1"
SEGMENT = f"segment @scans --site @{SITE} --weights @{MODEL} --no_quality"
PREPARE = f"prepare @raw {GRID} --validation 0 --test 1"
PREPARED = "prepared"
BENCHMARK = f"benchmark @{SITE} --methods none --weights @{MODEL} --out @bench/accuracy"
COLUMNS = ("case", "command", "damaged", "how", "outcome", "words")
OUTCOMES = ("refused", "done", "traceback", "hang", "silent")


@dataclass(frozen=True)
class Target:
    """A command and what is damaged for it.

    Attributes:
        line: the command, `@` before paths below the world.
        share: share of the cases, relative to the other targets.
        needs: patterns of files that the command must read; it must not succeed if one of them cannot be valid.
        other: patterns of files and folders that it may read or write.
    """

    line: str
    share: int
    needs: tuple[str, ...] = ()
    other: tuple[str, ...] = ()


SITE_FILES = (f"{SITE}/site.json", f"{SITE}/atlas/*.nii.gz", f"{SITE}/images/*.nii.gz", f"{SITE}/labels/*.nii.gz")
TARGETS = {
    "check": Target("check @sites", 40, SITE_FILES, (SITE, "sites")),
    "evaluate a site": Target(f"evaluate @{SITE} --weights @{MODEL} --out @out", 4, (*SITE_FILES, MODEL), (SITE, "out")),
    "evaluate a run": Target(
        "evaluate @run --out @out --figures 0", 2,
        ("run/run.json", "run/sites/*/model.pt", "run/personalised/*/model.pt", *SITE_FILES),
        ("run/personalised/*/personalised.json", "run/personalised/*/start.safetensors", "run", "run/sites/adult-3t"),
    ),
    "evaluate again": Target(
        "evaluate @run --figures 0", 1, ("run/evaluation/metrics.csv", "run/evaluation/metrics.json"),
        ("run/evaluation/cases.csv", "run/evaluation", "run/evaluation/rounds/*"),
    ),
    "report": Target(
        "report @run", 2, ("run/run.json",),
        ("run/*.csv", "run/evaluation/*.csv", "run/evaluation/*.json", "run/evaluation/rounds/*.csv", "run/evaluation/cases/*/*.npz", "run", "run/evaluation"),
    ),
    "personalise": Target(
        f"{PERSONALISE} --out @out", 3, (*SITE_FILES, "run/server/state.json", "run/server/round_0001.safetensors"),
        ("run/run.json", MODEL, "run", SITE, "out"),
    ),
    "personalise again": Target(
        PERSONALISE, 10, ("run/personalised/*/personalised.json", "run/personalised/*/training_state.pt"),
        ("run/personalised/adult-3t", "run/personalised/*/*.csv", "run/personalised/*/model.pt", "run/personalised/*/start.safetensors"),
    ),
    "federate": Target(f"{FEDERATE} --out @out --rounds 1", 1, SITE_FILES, (SITE, "out", "sites")),
    "federate on": Target(
        f"{FEDERATE} --out @run --rounds 2", 2,
        ("run/run.json", "run/server/state.json", "run/server/round_0001.safetensors", "run/sites/*/state_0001.pt"),
        ("run", "run/server", "run/sites/adult-3t", "run/*.csv"),
    ),
    "segment": Target(f"{SEGMENT} --out @out", 6, ("scans/*.nii.gz", MODEL, *SITE_FILES[:2]), ("scans", "out", SITE)),
    "segment and register": Target(f"{SEGMENT} --register --out @out", 1, ("scans/*.nii.gz",), ("scans", "out")),
    "segment and judge": Target(SEGMENT.replace(" --no_quality", "") + " --out @out", 1, ("scans/*.nii.gz",), ("scans",)),
    "segment again": Target(
        f"{SEGMENT} --out @labels", 5, ("labels/fedsr-segment.json",), ("labels/*.csv", "labels/*.tsv", "labels/*.nii.gz", "labels"),
    ),
    "prepare": Target(f"{PREPARE} --out @out", 1, ("raw/*.nii.gz",), ("raw", "out")),
    "prepare again": Target(
        f"{PREPARE} --out @{PREPARED}", 1, (f"{PREPARED}/prepare/settings.json",),
        (f"{PREPARED}/prepare/*.json", f"{PREPARED}/prepare/*.csv", f"{PREPARED}/images/*.nii.gz", PREPARED, f"{PREPARED}/prepare", "raw"),
    ),
    "simulate again": Target(SIMULATE, 12, (f"{SITE}/simulation.json",), (SITE, "sites", f"{SITE}/images/*.nii.gz", f"{SITE}/site.json")),
    "benchmark again": Target(BENCHMARK, 15, ("bench/accuracy.csv", *SITE_FILES, MODEL), ("bench", "bench/accuracy.json")),
    "export-job": Target("export-job @job --sites a=3 b --rounds 2", 2, (), ("job", "job/*", "job/app*/*")),
    "flare-site": Target(
        f"flare-site @kit --site @{SITE}", 20, ("kit/local/fedsr.json", "kit/local/resources.json"), ("kit", "kit/local", f"{SITE}/site.json"),
    ),
    "study": Target("study @plan.json --out @out", 4, ("plan.json",), ("out", SITE)),
}  # fmt: skip
MAKE = (
    SIMULATE,
    f"{FEDERATE} --out @run --rounds 1",
    PERSONALISE,
    "evaluate @run",
    "report @run",
    f"{SEGMENT} --out @labels",
    f"{PREPARE} --out @{PREPARED}",
    BENCHMARK,
    "export-job @job --sites a=3 b --rounds 2",
    f"flare-site @kit --site @{SITE}",
)
PLAN = {
    "name": "plan", "question": "Does it run?", "sites": {"folders": [SITE]}, "seeds": [0], "rounds": 1, "steps": 1,
    "arms": {"a": {"policy": "local"}, "b": {"policy": "fedsr", "overrides": {"scie": False}}}, "contrasts": [["b", "a"]],
}  # fmt: skip


def call(root: Path, line: str) -> list[str]:
    """Return the words of a command line."""
    return [word.replace("@", f"{root}/", 1) if word.startswith("@") else word for word in line.split()]


def make_world(root: Path) -> None:
    """Make everything that the commands of `TARGETS` read, with the commands themselves."""
    (root / "kit/local").mkdir(parents=True)
    (root / "kit/startup").mkdir()
    (root / "bench").mkdir()
    fuzz.write(
        root / "kit/local/resources.json", {"format_version": 2, "components": [{"id": "a", "path": "b", "args": {}}]}
    )
    plan = PLAN | {"sites": {"folders": [str(root / SITE)]}}
    fuzz.write(root / "plan.json", plan)
    lines = [SIMULATE.replace("@sites", "@fine").replace(GRID, "--spacing 3 --shape 64 72 64 --processes 1"), *MAKE]
    for line in lines:
        if line.startswith("segment"):
            for file in (root / SITE / "images").glob("*.nii.gz"):
                (root / "scans").mkdir(exist_ok=True)
                shutil.copy(file, root / "scans" / file.name)
        if line.startswith("prepare"):
            raw_scans(root)
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = fedsr(call(root, line))
        if status:
            raise AssertionError(f"{line}: {errors.getvalue()}")
    shutil.rmtree(root / "fine")
    for file in [*root.glob("run/sites/*/state_0000.pt"), *root.glob("run/evaluation/cases/elderly-3t/*")]:
        file.unlink()


def raw_scans(root: Path) -> None:
    """Make raw scans of simulated brains: other axes, another place; one is labelled."""
    (root / "raw").mkdir()
    move = np.eye(4)
    move[:3, 3] = 12, -7, 20
    for name, file in {"ann": "images/test-001", "ann_dseg": "labels/test-001", "bob": "images/training-001"}.items():
        volume = nib.load(root / "fine/adult-3t" / f"{file}.nii.gz")
        turned = volume.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
        voxels = np.asarray(turned.dataobj)
        voxels = voxels.astype(np.uint8) if name.endswith("dseg") else np.round(1000 * voxels).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, move @ turned.affine), root / "raw" / f"{name}.nii.gz")


# Damage to a folder or to any file: each returns whether what is left may be valid.
def some_file(path: Path, draw: random.Random) -> Path:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    return draw.choice(files) if files else path


def lost_file(path: Path, draw: random.Random) -> bool:
    file = some_file(path, draw)
    if file.is_file():
        file.unlink()
    return True


def extra_entry(path: Path, draw: random.Random) -> bool:
    """Add something that does not belong in a folder."""
    if not path.exists():
        path.mkdir()
    folder = (
        draw.choice([path, *(entry for entry in sorted(path.rglob("*")) if entry.is_dir())])
        if path.is_dir()
        else path.parent
    )
    name = draw.choice(
        [
            b".hidden",
            b"Thumbs.db",
            b"caf\xe9.nii.gz",
            "größe.nii.gz".encode(),
            b"x" * 240 + b".json",
            b"a b,c;$d.nii.gz",
            b"-out",
            b"sub.nii",
            b"mean.csv",
        ]
    )
    new = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    if draw.random() < 0.3:
        new.mkdir()
    else:
        new.write_bytes(draw.choice([b"", b"text", draw.randbytes(1000)]))
    return True


def copied_file(path: Path, draw: random.Random) -> bool:
    """Copy a file to another name, or over another file."""
    file, other = some_file(path, draw), some_file(path, draw)
    if not file.is_file():
        return True
    target = file.with_name("copy_" + file.name) if draw.random() < 0.5 else other
    if target != file:
        shutil.copy(file, target)
    return True


def link(path: Path, draw: random.Random) -> bool:
    """Put a link in place of a file or folder: to where it was moved, to nothing, to itself, or to another kind of thing."""
    where = some_file(path, draw) if draw.random() < 0.7 else path
    moved = where.with_name("moved_" + where.name)
    if where.exists():
        where.rename(moved)
    targets = [
        (moved, True),
        (Path("/nowhere/at/all"), False),
        (where, False),
        (Path("/dev/null"), False),
        (where.parent, False),
        (Path("/etc/passwd"), False),
    ]
    target, valid = draw.choice(targets)
    where.symlink_to(target)
    return valid or where != path


def odd_file(path: Path, draw: random.Random) -> bool:
    """Put a pipe, a device that never ends or an empty file in place of a file."""
    where = some_file(path, draw)
    if where.is_file():
        where.unlink()
    elif where.is_dir():
        shutil.rmtree(where)
    kind = draw.choice(["pipe", "zero", "empty"])
    if kind == "pipe":
        os.mkfifo(where)
    elif kind == "zero":
        where.symlink_to("/dev/zero")
    else:
        where.touch()
    return where != path


def no_permission(path: Path, draw: random.Random) -> bool:
    """Restrict the permissions of a file or a folder."""
    where = some_file(path, draw) if draw.random() < 0.5 else path
    if not where.exists():
        where.mkdir()
    where.chmod(draw.choice([0o000, 0o400, 0o600] if where.is_file() else [0o000, 0o555, 0o444]))
    return True


def other_kind(path: Path, draw: random.Random) -> bool:
    """Put a file in place of a folder or of nothing, or a folder in place of a file."""
    where = some_file(path, draw) if draw.random() < 0.5 else path
    if where.is_dir():
        shutil.rmtree(where)
        where.write_text("a letter to the editor")
    elif where.exists():
        where.unlink()
        where.mkdir()
    else:
        where.write_text("a letter to the editor")
    return where != path


def state_not_finite(path: Path, draw: random.Random) -> bool:
    """Put NaN or infinity into one tensor, anywhere in the state of a training."""
    state = torch.load(path, weights_only=True)
    places = [(holder, key) for holder, key in fuzz.nodes(state) if torch.is_tensor(holder[key])]
    holder, key = draw.choice([place for place in places if place[0][place[1]].is_floating_point()])
    holder[key] = torch.full_like(holder[key], draw.choice([np.nan, np.inf]))
    torch.save(state, path)
    return False


def csv_cell(path: Path, draw: random.Random) -> bool:
    """Change, add or remove a cell or a line of a table."""
    separator = "\t" if path.suffix == ".tsv" else ","
    lines = [line.split(separator) for line in path.read_text().splitlines()] or [[""]]
    row = draw.choice(lines)
    kind = draw.choice(["cell", "cell", "more", "fewer", "twice"])
    if kind == "cell":
        row[draw.randrange(len(row))] = draw.choice(
            ["", "nan", "inf", "-1", "1e400", "x" * 5000, "ä", '"', "$x", "9" * 5000]
        )
    elif kind == "more":
        row.append("7")
    elif kind == "fewer":
        row.pop()
    else:
        lines.append(list(row))
    path.write_text("\n".join(map(separator.join, lines)) + "\n")
    return True


FOLDER = [lost_file, extra_entry, copied_file, link, odd_file, no_permission, other_kind]
GENERAL = [*fuzz.GENERAL, link, odd_file, no_permission, other_kind]
BY_SUFFIX: dict[str, list[Callable[[Path, random.Random], bool]]] = {
    ".json": GENERAL + fuzz.JSON,
    ".gz": GENERAL + fuzz.NIFTI,
    ".pt": GENERAL + [fuzz.weights_tensor] * 6,
    ".safetensors": GENERAL + [fuzz.weights_tensor] * 6,
    ".csv": GENERAL + [csv_cell] * 10,
    ".tsv": GENERAL + [csv_cell] * 10,
}
ODD_VALUES = ["", "-1", "0", "1.5", "nan", "inf", "true", "x" * 5000, "../odd", "$x", "@device", "[]", "{}", "None", "é", "\udcff", "1,2", "a=b", "--", "@sites", "@plan.json", "@nothing"]  # fmt: skip
STATES = ("state_", "training_state")
TABLES = (".csv", ".tsv")  # a table that is cut at the end of a line is a valid, shorter table


def damage(root: Path, target: Target, draw: random.Random) -> tuple[str, str, bool]:
    """Damage a file or folder for a command; return its pattern, the kind of damage, and whether the command may succeed."""
    needed = draw.random() < 0.6 and bool(target.needs)
    pattern = draw.choice(target.needs if needed else target.other)
    found = sorted(root.glob(pattern)) or [root / pattern]
    path = draw.choice(found)
    if path.is_dir() or not path.exists():
        mutate = draw.choice(FOLDER)
    else:
        states = [state_not_finite] * 4 if path.name.startswith(STATES) else []
        mutate = draw.choice(BY_SUFFIX.get(path.suffix, GENERAL) + states)
    entries = len(torch.load(path, weights_only=True)) if mutate is fuzz.weights_tensor and path.suffix == ".pt" else 0
    try:
        valid = mutate(path, draw)
    except (
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
    ):  # nothing to change in this file: it is no object, or empty
        mutate, valid = fuzz.cut, fuzz.cut(path, draw)
    if path.suffix in TABLES and mutate in (fuzz.cut, fuzz.gone, odd_file):
        valid = True
    if path.parent.name == "local" and mutate is fuzz.gone:  # the kit is new, then
        valid = True
    if path.name == "metrics.json" and mutate is fuzz.gone:  # it is made again
        valid = True
    if path.name == "training_state.pt" and mutate is fuzz.gone:  # the training begins again, and says so
        valid = True
    if path.parent.name in ("scans", "raw") and mutate is fuzz.gone:  # a folder with a scan less
        valid = True
    if path.name.startswith(STATES) and mutate is fuzz.weights_tensor:
        valid = len(torch.load(path, weights_only=True)) > entries  # one more, which nothing reads
    return pattern, mutate.__name__, valid or not needed


def odd_option(line: str, draw: random.Random) -> str:
    """Give one option of a command an odd value."""
    import inspect

    command = line.split()[0]
    names = [name for name in inspect.signature(COMMANDS[command]).parameters if f"--{name} " not in line]
    return f"{line} --{draw.choice(names)}"


def heed_permissions() -> None:
    """Give up root's right to read and write what permissions forbid, for the rest of this process."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, the lower 32 first
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for kind in (0, 1):
        sets[kind] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def copy_world(world: Path, root: Path, line: str, target: Target) -> None:
    """Copy what a command may touch."""
    root.mkdir(parents=True)
    used = {"sites", *(name.split("/")[0] for name in [*re.findall(r"@(\S+)", line), *target.needs, *target.other])}
    for name in sorted(used):
        if (world / name).is_dir():
            shutil.copytree(world / name, root / name, symlinks=True)
        elif (world / name).exists():
            shutil.copy2(world / name, root / name)


def inventory(root: Path, folders: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file below some folders that can be seen."""
    found = {}
    for path in (path for folder in folders for path in (root / folder).rglob("*")):
        with contextlib.suppress(PermissionError):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode):
                found[str(path)] = (state.st_size, state.st_mtime_ns)
    return found


def unsound(root: Path, folders: tuple[str, ...], before: dict[str, tuple[int, int]]) -> str:
    """Return the first fault in the files that were written below some folders since `before`; empty if there is none."""
    written = [path for path, state in inventory(root, folders).items() if before.get(path) != state]
    for path in map(Path, sorted(written)):
        if not os.access(path, os.R_OK):
            continue
        if path.name in ("model.pt", "start.safetensors"):
            tensors = read_tensors(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                return f"{path.name}: not finite"
        elif path.name == "metrics.json":
            dice = json.loads(path.read_text())["all"]["tasks"]["segmentation"]["mean"]["dice"]["mean"]
            if dice is None or not 0 <= dice <= 1:
                return f"{path.name}: Dice {dice}"
        elif path.name.endswith("_dseg.nii.gz"):
            image = nib.load(path)
            if not set(np.unique(np.asarray(image.dataobj))) <= set(range(14)):
                return f"{path.name}: labels that do not exist"
            scan = root / "scans" / path.name.replace("_dseg", "")
            if scan.is_file() and not np.allclose(nib.load(scan).affine, image.affine, atol=1e-3):
                return f"{path.name}: lies elsewhere than the scan"
    return ""


def outcome(words: list[str], may_succeed: bool, check: Callable[[], str]) -> tuple[str, str]:
    """Run a command under the time limit; return how it ended, and its message or traceback."""

    began, used, since = sum(os.times()[:4]), 0.0, time.monotonic()

    def look(*_: object) -> None:
        nonlocal used, since
        now = sum(os.times()[:4]) - began
        if now > used + 0.5:
            used, since = now, time.monotonic()
        if now > SECONDS or time.monotonic() > since + IDLE:
            raise fuzz.Hang

    printed = io.StringIO()
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 10, 10)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
            status = fedsr(words)
    except fuzz.Hang:
        return "hang", ""
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    text = printed.getvalue()
    if "Traceback" in text:
        return "traceback", text[-1500:]
    if status:
        said = [line for line in text.splitlines() if line.startswith("fedsr: ")]
        return (
            ("refused", said[-1][:300])
            if said and status in (1, 2)
            else ("traceback", f"status {status}: {text[-500:]}")
        )
    wrong = check()
    return ("silent", wrong) if wrong else ("done" if may_succeed else "silent", "")


def play(world: Path, root: Path, number: int, seed: int) -> dict[str, object]:
    """Run one case in a fresh copy of the world."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choices(list(TARGETS), [target.share for target in TARGETS.values()])[0]
    target = TARGETS[name]
    line = target.line
    clear(root)
    copy_world(world, root, line, target)
    if draw.random() < 0.12:
        line = odd_option(line, draw)
        value = draw.choice(ODD_VALUES)
        damaged, how, may_succeed = line.split()[-1], "odd value", True
        words = [*call(root, line), *call(root, value)] if value else [*call(root, line), value]
    else:
        damaged, how, may_succeed = damage(root, target, draw)
        words = call(root, line)
    written = tuple(folder for folder in ("out", "run", "labels") if f"@{folder}" in line)
    users = tuple(folder for folder in ("sites", "scans", "raw") if name != "simulate again")
    before = inventory(root, users + written)

    def check() -> str:
        changed = [path for path, state in inventory(root, users).items() if before.get(path) != state]
        return f"changed {changed[:3]}" if changed else unsound(root, written, before)

    ended, said = outcome(words, may_succeed, check)
    said = (
        f"{' '.join(words)[:200]}: {said}".replace(str(root), "")
        if ended not in ("refused", "done")
        else said.replace(str(root), "")
    )
    row = (number, name, damaged, how, ended, " | ".join(said.encode(errors="backslashreplace").decode().splitlines()))
    return dict(zip(COLUMNS, row, strict=True))


def code() -> dict[str, str]:
    """Return the folders of the package and its bundles, which records in the world name, and a checksum of their .py, .json and .pt files."""
    digest, package, bundles = hashlib.sha256(), Path(fedsr_monai.__file__).parent, bundle_path("fedsr_site").parent
    for file in sorted([*package.rglob("*.py"), *bundles.rglob("*.json"), *bundles.rglob("*.pt")]):
        digest.update(file.read_bytes())
    return {"package": str(package), "bundles": str(bundles), "sha256": digest.hexdigest()}


def check_intact(world: Path, root: Path) -> None:
    """Check that every command ends as it should on undamaged files; otherwise all later cases would be refused for another reason."""
    for name, target in TARGETS.items():
        clear(root)
        copy_world(world, root, target.line, target)
        ended, said = outcome(call(root, target.line), True, lambda: "")
        if ended != ("refused" if name == "segment and judge" else "done"):  # a network of one step is not plausible
            raise AssertionError(f"{name}: {ended}: {said}")


def clear(root: Path) -> None:
    """Remove a folder whatever is in it."""
    if root.exists():
        for path in [root, *root.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(root)


def table(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Return the number of cases with each outcome, by command, damaged file and kind of damage."""
    counts = Counter((row["command"], row["damaged"], row["how"], row["outcome"]) for row in rows)
    return [
        {
            "command": command,
            "damaged": damaged,
            "how": how,
            **{kind: counts[command, damaged, how, kind] for kind in OUTCOMES},
        }
        for command, damaged, how in sorted({key[:3] for key in counts})
    ]


def main() -> int:
    """Run from the command line; the exit status is 1 if a case ended in a traceback, a hang or a silent success."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, required=True, help="table of single cases, continued if it exists")
    parser.add_argument("--out", type=Path, help="table of counts")
    parser.add_argument(
        "--merge", type=Path, nargs="*", default=[], help="logs of other parts, for the table of counts"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--world", type=Path, help="folder of the intact world, made if it does not exist")
    parser.add_argument("--only", type=int, nargs="*", help="play these cases and print them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    heed_permissions()
    limit = GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        kept = options.world or Path(folder, "kept")
        root = Path(folder, "a/world")  # always the same place for a world that is kept: its records hold paths
        if options.world:
            root = options.world.parent / "world"
        if not kept.exists():
            clear(root)
            root.mkdir(parents=True)
            make_world(root)
            fuzz.write(root / "made_by.json", code())
            root.rename(kept)
            check_intact(kept, root)
        if json.loads((kept / "made_by.json").read_text()) != code():
            parser.error(f"{kept} was made by other code: commands would refuse it for that")
        rows = read_csv(options.log, COLUMNS) if options.log.is_file() else []
        done = {int(row["case"]) for row in rows}
        complete = True
        for number in options.only or range(options.first, options.first + options.cases):
            if options.only:
                print(json.dumps(play(kept, root, number, options.seed), indent=1))
                continue
            if number in done:
                continue
            if time.monotonic() > end:
                complete = False
                break
            rows.append({key: str(value) for key, value in play(kept, root, number, options.seed).items()})
            if rows[-1]["outcome"] not in ("refused", "done"):
                print(rows[-1], file=sys.stderr, flush=True)
            if len(rows) % 10 == 0:
                write_csv(options.log, COLUMNS, rows)
        clear(root)
    if options.only:
        return 0
    write_csv(options.log, COLUMNS, rows)
    for other in options.merge:
        rows += read_csv(other, COLUMNS)
    if options.out:
        write_csv(options.out, ("command", "damaged", "how", *OUTCOMES), table(rows))
    total = Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} cases: {dict(total)}", "" if complete else "; out of time: give the same command again")
    return int(any(total[kind] for kind in ("traceback", "hang", "silent")))


if __name__ == "__main__":
    sys.exit(main())

"""Time what a user waits for: one network pass, one joint training step, one whole inference from the shell."""

from __future__ import annotations

import copy
import functools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.device import bfloat16_pays, cpu_info
from fedsr_monai.engines import JointTrainer, head_optimizers
from fedsr_monai.files import write_csv
from fedsr_monai.losses import ParzenMI
from fedsr_monai.networks import FedSRNet
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation

COLUMNS = ("what", "shape", "precision", "median_seconds", "min_seconds", "max_seconds", "runs", "machine")


def run_speed(
    out: str | os.PathLike,
    network: FedSRNet,
    spacing: float,
    device: str = "cpu",
    runs: int = 5,
    scan: str | os.PathLike | None = None,
) -> list[dict[str, Any]]:
    """Time segmentation, registration and the joint step (fused and alternating) on the network's own atlas.

    Writes the rows to `<out>.csv` and returns them. Seconds are wall time after two warm-up runs, on as many threads as
    torch is set to, in the arithmetic that the bundles choose on this device. Nothing is read from disk, except for the
    last row: a whole `monai.bundle run inference` on one scan in a new process each time, which includes start-up,
    imports, weights, reading and writing.

    Args:
        out: path of the table without a file extension.
        network: network with its atlas set; the atlas is also the scan (the time does not depend on the image).
        spacing: voxel size in millimetres, for the random atlas of the joint step.
        device: where the network runs.
        runs: number of timed runs.
        scan: NIfTI file for the last row; None leaves it out.
    """
    network = network.to(device)
    atlas = network.atlas_image.clone()
    shape = tuple(atlas.shape[2:])
    amp = bfloat16_pays(device)

    def inference(call: Callable[[torch.Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp):
                call(atlas)

        return run

    trained = copy.deepcopy(network)  # timing leaves the caller's weights as they are
    random_atlas = RandomAtlas(RandomDeformation(spacing), RandomAppearance(network.num_classes, spacing))
    trainers = {
        f"joint step, {'fused' if fused else 'alternating'}": JointTrainer(
            device,
            1,
            [],
            trained,
            head_optimizers(trained, 1e-4, fused),
            random_atlas,
            ParzenMI(),
            fused=fused,
            amp=amp,
        )
        for fused in (True, False)
    }
    network.eval()
    calls: dict[str, Callable[[], Any]] = {
        "segmentation, network only": inference(network),
        "registration, network only": inference(network.register),
    }
    for name, trainer in trainers.items():
        calls[name] = functools.partial(trainer._iteration, trainer, {"image": atlas})
    if scan is not None:
        calls["run inference, one scan, whole process"] = lambda: whole_inference(scan, device)
    rows = []
    for name, call in calls.items():
        seconds = timed(call, runs)
        rows.append(
            {
                "what": name,
                "shape": "x".join(map(str, shape)),
                "precision": "bfloat16" if amp else "float32",
                "median_seconds": statistics.median(seconds),
                "min_seconds": min(seconds),
                "max_seconds": max(seconds),
                "runs": runs,
                "machine": machine(device),
            }
        )
    write_csv(f"{os.fspath(out)}.csv", COLUMNS, rows)
    return rows


def whole_inference(scan: str | os.PathLike, device: str) -> None:
    """Run `python -m monai.bundle run inference` of the bundle fedsr_site on one scan, in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; the error has its output.
    """
    with tempfile.TemporaryDirectory() as out:
        bundle = bundle_path("fedsr_site")
        values = {
            "config_file": bundle / "configs" / "inference.json",
            "bundle_root": bundle,
            "output_dir": out,
            "device": f"$torch.device('{device}')",
            "dataset#data": [{"image": os.path.abspath(scan)}],
        }
        options = [part for key, value in values.items() for part in (f"--{key}", str(value))]
        subprocess.run(
            [sys.executable, "-m", "monai.bundle", "run", "inference", *options], check=True, capture_output=True
        )


def timed(call: Callable[[], Any], runs: int, warm_up: int = 2) -> Sequence[float]:
    """Return the wall seconds of each of `runs` calls after the warm-up."""
    seconds = []
    for number in range(warm_up + runs):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return seconds


def machine(device: str) -> str:
    """Return the processor in words: a GPU's name, or a CPU's with its widest instructions and number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    name = cpu_info("model name") or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"

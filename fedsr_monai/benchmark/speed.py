"""Speed of the parts that a user waits for: one network pass, one joint training step, one whole inference from the shell."""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedsr_monai.engines import JointTrainer, head_optimizers
from fedsr_monai.engines.precision import bfloat16_pays
from fedsr_monai.losses import ParzenMI
from fedsr_monai.metrics.tables import write_csv
from fedsr_monai.networks import FedSRNet
from fedsr_monai.transforms import RandomAppearance, RandomAtlas, RandomDeformation

COLUMNS = ("what", "shape", "precision", "median_seconds", "min_seconds", "max_seconds", "runs", "machine")


def run_speed(
    out: str | os.PathLike,
    network: FedSRNet,
    spacing: float,
    device: str = "cpu",
    runs: int = 5,
) -> list[dict[str, Any]]:
    """Time segmentation, registration and the joint step (fused and alternating) on the network's own atlas; rows in ``<out>.csv``.

    Seconds are wall time after two warm-up runs, on as many threads as torch is set to, in the arithmetic that the bundles choose on
    this device. Nothing is read from disk.

    Args:
        network: with its atlas set; the atlas stands as the scan (the time does not depend on what is seen).
        spacing: voxel size in millimetres, for the random atlas of the joint step.
    """
    network = network.to(device)
    scan = network.atlas_image.clone()
    shape = tuple(scan.shape[2:])
    amp = bfloat16_pays(device)

    def inference(call: Callable[[torch.Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp):
                call(scan)

        return run

    trained = copy.deepcopy(network)  # timing leaves the caller's weights as they are
    random_atlas = RandomAtlas(RandomDeformation(spacing), RandomAppearance(network.num_classes, spacing))
    trainers = {
        f"joint step, {'fused' if fused else 'alternating'}": JointTrainer(
            device, 1, [], trained, head_optimizers(trained, 1e-4, fused), random_atlas, ParzenMI(), fused=fused, amp=amp
        )
        for fused in (True, False)
    }
    network.eval()
    calls = {"segmentation, network only": inference(network), "registration, network only": inference(network.register)}
    calls |= {name: (lambda trainer=trainer: trainer._iteration(trainer, {"image": scan})) for name, trainer in trainers.items()}
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
    write_csv(f"{os.fspath(out)}.csv", rows, COLUMNS)
    return rows


def timed(call: Callable[[], Any], runs: int, warm_up: int = 2) -> Sequence[float]:
    """Wall seconds of each of ``runs`` calls after the warm-up."""
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
    """The processor in words: a GPU's name, or the CPU's with the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads"

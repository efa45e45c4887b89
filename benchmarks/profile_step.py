"""Where the time of a joint training step goes: `python benchmarks/profile_step.py [--threads 2] [--repeats 5]
[--precision float32] [--out benchmarks/profile_step.csv]`.

The fused step is run with one scan of 80 x 96 x 80 voxels, the `small` network and the weights that ship (the strength
of the deformation fields decides how long they take to integrate), by default in the precision that the bundles choose
on this machine. As in training, every other step registers the scan, and the others a drawn image. The self time of
each operation, as the profiler measures it, counts for the operation's own group or else for the innermost part of the
step that called it; that of a gradient counts for the group of its forward operation. The step itself is timed without
the profiler. On a machine that does other work, use the fractions and not the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.benchmark.speed import machine
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.device import bfloat16_pays
from fedsr_monai.engines import JointTrainer, head_optimizers, joint
from fedsr_monai.files import write_csv
from fedsr_monai.losses import ParzenMI
from fedsr_monai.networks import FedSRNet, decoder
from fedsr_monai.networks.scie import SCIE
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation

SHAPE, SPACING = (80, 96, 80), (2.0, 2.0, 2.0)
# Operations that are a group of their own wherever they are called, except in the random atlas.
OPERATIONS = {
    "convolution": "convolutions",
    "conv3d": "convolutions",
    "batch_norm": "normalisation",
    "instance_norm": "normalisation",
    "leaky_relu": "activation",
    "silu": "activation",
    "grid_sampler": "warps",
    "upsample": "interpolation",
}
PARTS = ("random atlas", "scie", "warps", "losses", "optimiser")


def scoped(owner: object, name: str, part: str) -> None:
    """Run `owner.name` under the label of a part of the step."""
    function = getattr(owner, name)

    def labelled(*args, **kwargs):
        with record_function(part):
            return function(*args, **kwargs)

    setattr(owner, name, labelled)


def make_trainer(precision: str) -> JointTrainer:
    torch.manual_seed(0)
    image, label, _ = build_atlas(SPACING, SHAPE)
    network = load_weights(FedSRNet("small"), bundle_path("fedsr_encoder") / "models" / "model.pt")
    network.set_atlas(torch.as_tensor(image).reshape(1, *SHAPE), torch.as_tensor(label).reshape(1, *SHAPE))
    random_atlas = RandomAtlas(RandomDeformation(SPACING[0]), RandomAppearance(14, SPACING[0]))
    return JointTrainer(
        "cpu", 1, [], network, head_optimizers(network, 1e-4), random_atlas, ParzenMI(), amp=precision == "bfloat16"
    )


def label_parts(trainer: JointTrainer) -> None:
    scoped(trainer, "_draw", "random atlas")
    for module in trainer.network.modules():
        if isinstance(module, SCIE):
            scoped(module, "forward", "scie")
    for owner, name in ((decoder, "warp"), (decoder, "integrate"), (decoder, "compose"), (joint, "warp")):
        scoped(owner, name, "warps")
    for name in ("registration_losses", "segmentation_losses", "label_fractions", "average_fractions"):
        scoped(joint, name, "losses")
    scoped(joint.nn.utils, "clip_grad_norm_", "optimiser")
    for optimizer in trainer.optimizers.values():
        scoped(optimizer, "step", "optimiser")


def within(event, part: str) -> bool:
    while event is not None and event.name != part:
        event = event.cpu_parent
    return event is not None


def group_of(event, forward: dict[int, object]) -> str:
    """Return the group of an operation: by its name, else by the innermost part around it; gradients by their forward operation."""
    name = event.name
    if within(event, "random atlas"):
        return "random atlas"  # its convolutions are not the network's
    for key, group in OPERATIONS.items():
        if key in name:
            return group + (" backward" if group == "convolutions" and "backward" in name else "")
    around = event
    while around is not None:
        if around.name in PARTS:
            return around.name
        if around.name.startswith("autograd::engine::evaluate_function"):
            caused = forward.get(around.sequence_nr)
            for key, group in OPERATIONS.items():
                if key in around.name.lower().replace("convolution", "conv3d"):
                    return group
            return group_of(caused, {}) if caused is not None else "other"
        around = around.cpu_parent
    return "other"


def profile_step(step) -> dict[str, float]:
    """Return the seconds of one step by group."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    events = profiled.events()
    forward = {
        e.sequence_nr: e
        for e in events
        if e.sequence_nr >= 0 and not e.name.startswith("autograd::") and e.fwd_thread is None
    }
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[group_of(event, forward)] += event.self_cpu_time_total / 1e6
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    fast = "bfloat16" if bfloat16_pays("cpu") else "float32"
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default=fast, help="of the convolutions")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trainer = make_trainer(arguments.precision)
    scan = trainer.random_atlas(trainer.network.atlas_image, trainer.network.atlas_label)[0]
    rows: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[float]] = defaultdict(list)

    def step(exact: float) -> None:
        trainer.exact_registration = exact
        trainer._iteration(trainer, {"image": scan})

    for exact in (0.0, 1.0, 0.0, 1.0):
        step(exact)  # warm-up
    for _ in range(arguments.repeats):
        for exact in (0.0, 1.0):
            started, cpu = time.perf_counter(), time.process_time()
            step(exact)
            steps["wall"].append(time.perf_counter() - started)
            steps["cpu"].append(time.process_time() - cpu)
    label_parts(trainer)
    for _ in range(arguments.repeats):
        for exact in (0.0, 1.0):
            seconds = profile_step(lambda exact=exact: step(exact))
            total = sum(seconds.values())
            for group, value in seconds.items():
                rows[group].append(value / total)
    fractions = {
        group: statistics.mean(values) * len(values) / (2 * arguments.repeats) for group, values in rows.items()
    }
    core = sum(value for group, value in fractions.items() if group.startswith(("convolutions", "normalisation")))
    wall = statistics.median(steps["wall"])
    groups = sorted(fractions.items(), key=lambda item: -item[1])
    table = [{"group": group, "fraction": f"{part:.3f}", "seconds": f"{part * wall:.3f}"} for group, part in groups]
    cpu = statistics.median(steps["cpu"])
    table += [
        {"group": "step", "fraction": "1.000", "seconds": f"{wall:.3f}"},
        {"group": "step, processor time of all threads", "fraction": "", "seconds": f"{cpu:.3f}"},
        {"group": "step / (convolutions + normalisation)", "fraction": f"{1 / core:.3f}", "seconds": ""},
        {"group": f"{arguments.precision} on {machine('cpu')}", "fraction": "", "seconds": ""},
    ]
    write_csv(arguments.out, ["group", "fraction", "seconds"], table)
    for row in table:
        print(f"{row['group']:<42}{row['fraction']:>8}{row['seconds']:>9}")


if __name__ == "__main__":
    main()

"""Train one stage of the weights that ship, from the last weights: `python benchmarks/train_weights.py STAGE --weights FILE --out FOLDER`.

The segmentation stage (encoder and segmentation head) sees only images of the one labelled anatomy (`RandomAnatomy`).
The registration stage then trains with encoder and segmentation frozen, on the same images and, if `--scans` names any,
on unlabelled scans. An exponential moving average of the weights is kept as well. `out/last.pt` and `out/mean.pt` are
written every 50 steps, in the form that bundles ship (no atlas).
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from monai.utils import set_determinism

from fedsr_monai.atlas.standard import standard_atlas
from fedsr_monai.device import bfloat16_pays
from fedsr_monai.engines import JointTrainer, freeze, head_optimizers
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.losses import ParzenMI
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import ATLAS_KEYS, load_weights
from fedsr_monai.synthesis.random_anatomy import RandomAnatomy

GRID = (2.0, (80, 96, 80))


class Scans:
    """Unlabelled scans on the grid (`.npz` with `image`), in random order, endlessly, mirrored half of the time."""

    def __init__(self, files: list[Path]) -> None:
        self.images = [torch.from_numpy(np.load(file)["image"])[None, None] for file in files]

    def __iter__(self):
        while True:
            for i in torch.randperm(len(self.images)).tolist():
                image = self.images[i]
                yield {"image": image.flip(2) if torch.rand(()) < 0.5 else image}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["segmentation", "registration"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="stop by the clock instead, which the rate then follows too")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--final-rate", type=float, default=0.0, help="at the last step; a cosine leads there")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decay", type=float, default=0.995, help="of the mean of the weights")
    parser.add_argument("--any-contrast", type=float, default=0.2)
    parser.add_argument("--any-pose", type=float, default=0.25)
    parser.add_argument("--smoothness", type=float, default=0.3)
    parser.add_argument(
        "--scans", type=Path, nargs="*", default=[], help="unlabelled scans on the grid, for the registration"
    )
    parser.add_argument("--exact", type=float, default=0.8, help="share of registration steps on labelled images")
    options = parser.parse_args()
    set_determinism(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    image, label = standard_atlas(*GRID)
    network = load_weights(FedSRNet(), options.weights).set_atlas(image, label)
    if options.stage == "registration":
        freeze(network, ["encoder", "segmentation"])
    optimizers = head_optimizers(network, options.rate)
    mean, started = copy.deepcopy(network.state_dict()), time.time()
    sums: dict[str, float] = {}
    trainer = JointTrainer(
        "cpu",
        1,
        Scans(options.scans) if options.scans else [{"image": image[None]}] * options.steps,
        network,
        optimizers,
        random_atlas=RandomAnatomy(*GRID, any_contrast=options.any_contrast, any_pose=options.any_pose),
        mutual_information=ParzenMI(),
        registration_weights={"smoothness": options.smoothness},
        heads=[options.stage],
        exact_registration=options.exact if options.scans else 1.0,
        amp=bfloat16_pays("cpu"),
        epoch_length=options.steps,
    )
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers.values()]

    @trainer.on(Events.ITERATION_STARTED)
    def schedule(engine) -> None:
        done = (engine.state.iteration - 1) / options.steps
        if options.minutes:
            done = min((time.time() - started) / 60 / options.minutes, 1)
        low = options.final_rate / options.rate
        factor = (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2) * min(1, engine.state.iteration / 30)
        for optimizer, own in zip(optimizers.values(), rates):
            for group, rate in zip(optimizer.param_groups, own):
                group["lr"] = rate * factor

    @trainer.on(Events.ITERATION_COMPLETED)
    def follow(engine) -> None:
        step = engine.state.iteration
        decay = min(options.decay, step / (step + 10))
        for key, value in network.state_dict().items():
            if key not in ATLAS_KEYS:
                mean[key].lerp_(value, 1 - decay)
        for key, value in engine.state.output.items():
            sums[key] = sums.get(key, 0.0) + value
        over = bool(options.minutes) and time.time() - started > 60 * options.minutes
        if step % 50 == 0 or step == options.steps or over:
            line = " ".join(f"{key} {value / ((step - 1) % 50 + 1):.4f}" for key, value in sums.items())
            print(f"{step} {time.time() - started:.0f} s {line}", flush=True)
            sums.clear()
            write(network.state_dict(), options.out / "last.pt")
            write(mean, options.out / "mean.pt")
        if over:
            engine.terminate()

    trainer.run()


def write(state: dict[str, torch.Tensor], path: Path) -> None:
    empty = {
        "atlas_image": torch.zeros(1, 1, 16, 16, 16),
        "atlas_label": torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8),
    }
    save_checkpoint({key: empty[key] if key in ATLAS_KEYS else value.clone() for key, value in state.items()}, path)


if __name__ == "__main__":
    main()

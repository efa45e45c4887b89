"""A bundle and sites as small as they can be, with everything that a round has to carry over.

Two heads with an optimiser each, a scheduled learning rate, SA vectors moved by eq. 7, a queue in the mutual information,
dropout, random transforms and a shuffled loader: a round forgotten anywhere changes the numbers.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from monai.engines import Trainer

from fedsr_monai.labels import LABELS
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

SHAPE = (16, 16, 18)  # the smallest brain on the smallest grid that the contract of sites allows
AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, 2, 1), torch.nn.LeakyReLU(), torch.nn.Dropout(0.2))
        self.registration = torch.nn.Conv3d(4, 3, 1)
        self.segmentation = torch.nn.Conv3d(4, 3, 1)
        self.sa = torch.nn.Module()
        for head in ("registration", "segmentation"):
            self.sa.add_module(head, torch.nn.Module())
            getattr(self.sa, head).register_buffer("0", torch.full((4,), 0.5))
        self.register_buffer("atlas_image", torch.full((1, 1, *SHAPE), 0.123456789))
        self.register_buffer("atlas_label", torch.full((1, 1, *SHAPE), 7, dtype=torch.uint8))

    def forward(self, image):
        return self.segmentation(self.encoder(image))


class Queue(torch.nn.Module):
    """Stands for the InfoNCE estimator: a buffer that remembers the last pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(3, 4))

    def forward(self, pooled, sa):
        value = ((pooled.mean(0) - sa).square().mean() - (self.queue * sa).mean()).exp().neg()
        if pooled.requires_grad:
            self.queue = torch.cat([self.queue[1:], pooled.detach().mean(0, keepdim=True)])
        return value


def optimizers(network):
    return {
        head: torch.optim.Adam([*network.encoder.parameters(), *getattr(network, head).parameters()], lr=1e-2)
        for head in ("registration", "segmentation")
    }


class MiniTrainer(Trainer):
    def __init__(self, network, optimizers, fail=None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.network, self.optimizers, self.fail = network, optimizers, fail
        self.mutual_information = Queue()
        self.heads_first = 0.0  # it trains both together, whatever the policy says

    def maybe_fail(self) -> None:
        """Do once what the file of `fail` says, at the epoch that it says: "raise 1", "nan 1", "die 2", "hang 2"."""
        if self.fail is None or not Path(self.fail).exists():
            return
        what, epoch = Path(self.fail).read_text().split()
        if self.state.epoch != int(epoch):
            return
        Path(self.fail).unlink()
        if what == "nan":
            self.network.registration.bias.data.fill_(float("nan"))
            return
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(600)
        raise RuntimeError("the scanner room is flooded")

    def _iteration(self, engine, batch):
        self.maybe_fail()
        image = batch["image"].as_tensor()
        losses = {}
        for head, optimizer in self.optimizers.items():
            self.network.train()
            feature = self.network.encoder(image)
            pooled, vector = feature.mean((2, 3, 4)), getattr(self.network.sa, head).get_buffer("0")
            loss = (getattr(self.network, head)(feature) - torch.nn.functional.avg_pool3d(image, 2)).square().mean()
            optimizer.zero_grad()
            (loss - 0.1 * self.mutual_information(pooled, vector)).backward()
            optimizer.step()
            vector.lerp_(pooled.detach().mean(0), 0.1)
            losses[head] = loss.item()
        return {"loss": sum(losses.values()), **losses}


CONFIG = {
    "imports": ["$import tests.helpers.miniature"],
    "bundle_root": ".",
    "dataset_dir": "/nowhere",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cpu')",
    "seed": 0,
    "fail": None,
    "mutual_information": {"_target_": "fedsr_monai.losses.mutual_information.ParzenMI"},
    "network_def": {"_target_": "tests.helpers.miniature.Net"},
    "network": "$@network_def.to(@device)",
    "optimizers": "$optimizers(@network)",
    "epochs": 1,
    "train": {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "RandFlipd", "keys": "image", "prob": 0.5},
                {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.9},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$site_datalist(@dataset_dir, 'training')",
            "transform": "@train#preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 1, "shuffle": True},
        "handlers": [
            {
                "_target_": "LrScheduleHandler",
                "lr_scheduler": "$torch.optim.lr_scheduler.StepLR(@optimizers['registration'], 1, 0.9)",
                "print_lr": False,
            },
            {
                "_target_": "CheckpointSaver",
                "save_dir": "@bundle_root",
                "content": "@network",
                "save_interval": 1,
            },
        ],
        "trainer": {
            "_target_": "tests.helpers.miniature.MiniTrainer",
            "network": "@network",
            "optimizers": "@optimizers",
            "handlers": "@train#handlers",
            "fail": "@fail",
            "device": "@device",
            "max_epochs": "@epochs",
            "data_loader": "@train#dataloader",
            "decollate": False,
        },
    },
    "training": ["$@train#trainer.run()"],
    "run": "$@training",
}
CONFIG["imports"] += [
    "$from tests.helpers.miniature import optimizers",
    "$import torch",
    "$from fedsr_monai.sites.site import site_datalist",
]
CONFIG["validate"] = {
    "dataset": {
        "_target_": "Dataset",
        "data": "$site_datalist(@dataset_dir, 'training')",
        "transform": {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 1},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@validate#dataloader",
        "network": "@network",
        "prepare_batch": "$lambda batch, device, *_, **__: (batch['image'].to(device), None)",
        "key_val_metric": {"level": "$Average(lambda output: output[0]['pred'].mean().item())"},
    },
}
CONFIG["imports"].append("$from ignite.metrics import Average")


def write_bundle(root: Path) -> Path:
    """The miniature bundle below `root`."""
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "train.json").write_text(json.dumps(CONFIG))
    (root / "configs" / "metadata.json").write_text('{"version": "0.0.1"}')
    return root


def write_sites(root: Path, images: dict[str, int], shape: tuple[int, int, int] = SHAPE) -> list[str]:
    """Site folders by name and number of training scans; sites differ by brightness."""
    folders = []
    for index, (name, count) in enumerate(images.items()):
        rng = np.random.default_rng(index)
        volume = np.zeros(shape, np.float32)
        volume[4:12, 4:12, 4:12] = 0.4 + 0.1 * index
        label = np.arange(np.prod(shape)).reshape(shape) % len(LABELS)
        for number in range(count):
            scan = volume + (volume > 0) * rng.uniform(0, 0.1, shape).astype(np.float32)
            write_volume(root / name / "images" / f"scan{number}.nii.gz", scan, AFFINE)
        training = [{"image": f"images/scan{number}.nii.gz"} for number in range(count)]
        folders.append(str(write_site(root / name, name, volume, label, AFFINE, training)))
    return folders


def federate_quietly(arguments: dict) -> None:
    """A run in a process of its own, which a test may kill."""
    torch.set_num_threads(1)
    from fedsr_monai.federation.runner import federate

    federate(**arguments)

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks import FedSRNet
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

torch.set_num_threads(1)


@pytest.fixture
def phantom() -> tuple[torch.Tensor, torch.Tensor]:
    """A brain of ellipsoids on 32^3 voxels with all 13 structures: image [1, 32, 32, 32] in [0, 1] and labels, background 0."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 3, indexing="ij")
    label = torch.zeros(32, 32, 32, dtype=torch.uint8)

    def paint(value: int, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> None:
        for side in (-1, 1):
            places = [axes[0] - side * centre[0], axes[1] - centre[1], axes[2] - centre[2]]
            label[sum((place / radius) ** 2 for place, radius in zip(places, radii)) < 1] = value

    paint(3, (0.0, 0.0, 0.1), (0.75, 0.85, 0.7))  # cortex, and white matter within
    paint(2, (0.0, 0.0, 0.1), (0.6, 0.7, 0.55))
    paint(13, (0.3, -0.5, -0.5), (0.3, 0.3, 0.25))  # cerebellum
    paint(5, (0.3, -0.5, -0.5), (0.15, 0.15, 0.15))
    paint(10, (0.0, -0.2, -0.45), (0.15, 0.2, 0.3))  # brain stem
    paint(4, (0.15, 0.1, 0.25), (0.12, 0.35, 0.14))  # ventricles
    paint(1, (0.0, 0.0, 0.05), (0.08, 0.2, 0.15))
    paint(6, (0.2, -0.1, 0.05), (0.12, 0.15, 0.12))
    paint(7, (0.28, 0.3, 0.2), (0.1, 0.15, 0.12))
    paint(8, (0.4, 0.15, 0.0), (0.1, 0.15, 0.15))
    paint(9, (0.3, 0.0, -0.1), (0.1, 0.1, 0.1))
    paint(11, (0.4, -0.2, -0.2), (0.1, 0.15, 0.1))
    paint(12, (0.4, 0.2, -0.25), (0.1, 0.1, 0.1))
    means = torch.tensor([0.0, 0.15, 0.9, 0.5, 0.12, 0.85, 0.65, 0.55, 0.6, 0.75, 0.7, 0.5, 0.48, 0.52])
    texture = 0.03 * torch.sin(7 * axes[0] + 5 * axes[1]) * torch.cos(6 * axes[2])
    image = (means[label.long()] + texture * (label > 0)).clamp(0, 1)
    return image[None], label[None]


@pytest.fixture
def site_folder(tmp_path, phantom):
    """Make a site folder of phantoms on 32^3 voxels of 6 mm: two training scans, one labelled scan to validate on and one to test on."""

    def make(name: str = "clinic", validation: bool = True, labelled_training: bool = False) -> Path:
        image, label = (volume[0].numpy() for volume in phantom)
        affine = standard_grid(6.0, image.shape).affine
        entries = {}
        for number, section in enumerate(("training", "training", "validation", "test")):
            file = f"{section}{number}.nii.gz"
            shift = (number - 1, 0, number % 2)
            write_volume(tmp_path / name / "images" / file, np.roll(image, shift, axis=(0, 1, 2)), affine)
            write_volume(tmp_path / name / "labels" / file, np.roll(label, shift, axis=(0, 1, 2)), affine)
            entry = {"image": f"images/{file}", "label": f"labels/{file}"}
            if section == "training" and not labelled_training:
                del entry["label"]
            entries.setdefault(section, []).append(entry)
        if not validation:
            entries["validation"] = []
        return write_site(tmp_path / name, name, image, label, affine, **entries)

    return make


@pytest.fixture
def two_heads(tmp_path) -> Path:
    """A copy of `fedsr_site` on 32^3 voxels of 6 mm, with weights that have learnt nothing; its head for FreeSurfer says amygdala everywhere."""
    root = tmp_path / "two_heads"
    shutil.copytree(bundle_path("fedsr_site"), root, ignore=shutil.ignore_patterns("models", "eval"))
    file = root / "configs" / "inference.json"
    small = {"spacing": 6.0, "spatial_shape": [32, 32, 32], "fineness": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | small))
    torch.manual_seed(0)
    network = FedSRNet()
    head = {key: torch.zeros_like(value) for key, value in network.state_dict().items() if key.startswith("segment")}
    head["segmentation.logits.bias"][12] = 9
    save_checkpoint(network, root / "models" / "model.pt")
    save_checkpoint(head, root / "models" / "freesurfer.safetensors")
    return root

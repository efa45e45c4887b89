from __future__ import annotations

import pytest
import torch

from fedsr_monai.spatial.nifti import write_volume
from fedsr_monai.synthesis import LabelledScans


@pytest.fixture
def phantom(phantom):
    """The phantom with one side that differs from the other."""
    image, label = (volume.clone() for volume in phantom)
    label[0, 10:13, 16:20, 16:20] = 8
    return image, label


@pytest.fixture
def items(tmp_path, phantom):
    """One labelled scan on disk."""
    entry = {"image": str(tmp_path / "scan.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    for key, volume in zip(("image", "label"), phantom):
        write_volume(entry[key], volume[0].numpy(), torch.eye(4).numpy())
    return [entry]


def never(*arguments):
    raise AssertionError("drawn from the other source")


def test_draws_are_images_and_labels_of_the_contract(items, phantom):
    scans = LabelledScans(items, never, probability=1.0)
    mirrored = set()
    for seed in range(8):
        torch.manual_seed(seed)
        image, label = scans(phantom[0][None], phantom[1][None])
        assert image.shape == label.shape == (1, 1, 32, 32, 32)
        assert image.dtype == torch.float32 and label.dtype == phantom[1].dtype
        assert 0 <= image.min() and image.max() <= 1
        straight, flipped = phantom[1][None], phantom[1][None].flip(2)
        assert torch.equal(label, straight) or torch.equal(label, flipped)
        mirrored.add(torch.equal(label, flipped))
        brain = phantom[0][None] > 0
        assert not image[~(brain.flip(2) if torch.equal(label, flipped) else brain)].any()
    assert len(mirrored) == 2


def test_same_torch_seed_same_draw(items, phantom):
    scans = LabelledScans(items, never, probability=1.0)
    torch.manual_seed(3)
    one = scans(phantom[0][None], phantom[1][None])[0]
    torch.manual_seed(3)
    assert torch.equal(one, scans(phantom[0][None], phantom[1][None])[0])


def test_the_rest_comes_from_the_other_source(items, phantom):
    asked = []
    scans = LabelledScans(items, lambda *arguments: asked.append(arguments) or arguments[:2], probability=0.5)
    torch.manual_seed(0)
    for _ in range(40):
        scans(phantom[0][None], phantom[1][None], None)
    assert 10 < len(asked) < 30 and asked[0][1] is not None

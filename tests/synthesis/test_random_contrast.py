from __future__ import annotations

import torch

from fedsr_monai.synthesis import RandomContrast


def test_the_image_follows_the_labels_alone(phantom):
    image, label = (volume[None] for volume in phantom)
    appearance = RandomContrast(14, 6.0, spread=(0.0, 0.0))
    other = torch.rand_like(image)
    torch.manual_seed(1)
    first = appearance.contrast(image, label)
    torch.manual_seed(1)
    assert torch.equal(appearance.contrast(other, label), first)
    assert all(first[label == k].std() < 1e-6 for k in range(1, 14))
    assert (first[label > 0] > 0).all() and first[0, 0, 0, 0, 0] == 0


def test_contrasts_are_of_any_order(phantom):
    image, label = (volume[None] for volume in phantom)
    appearance = RandomContrast(14, 6.0)
    torch.manual_seed(2)
    means = torch.stack([torch.stack([drawn[label == k].mean() for k in (2, 3)]) for drawn in
                         (appearance.contrast(image, label) for _ in range(40))])  # fmt: skip
    brighter = (means[:, 0] > means[:, 1]).float().mean()  # white matter than cortex
    assert 0.25 < brighter < 0.75 and means.std(dim=0).min() > 0.15

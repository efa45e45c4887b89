from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedsr_monai.synthesis import RandomAppearance
from fedsr_monai.synthesis.random_appearance import tissue_means


def test_tissue_means(phantom):
    image, label = phantom
    means = tissue_means(image[None], label[None], 14)
    for structure in (2, 3, 10):
        assert means[structure].item() == pytest.approx(image[label == structure].mean().item(), abs=1e-5)
    assert means[0] == 0  # no cerebrospinal fluid outside the labels in this phantom


def test_contrast_changes_means_and_keeps_background_and_texture(phantom):
    image, label = (x[None] for x in phantom)
    torch.manual_seed(0)
    drawn = RandomAppearance(14, 6.0).contrast(image, label)
    assert drawn.shape == image.shape
    assert (drawn[image == 0] == 0).all() and (drawn[image > 0] > 0).all()
    before, after = tissue_means(image, label, 14), tissue_means(drawn, label, 14)
    assert (after - before).abs()[1:].mean() > 0.02
    inside = label == 2
    assert torch.corrcoef(torch.stack([image[inside], drawn[inside]]))[0, 1] > 0.1


def test_tissue_without_a_label_is_not_imaged_as_fluid(phantom):
    """Bright background beside dark background: the first keeps its own signal, the second that of fluid."""
    image, label = (x[None].clone() for x in phantom)
    tissue, fluid = label == 10, label == 12
    image[fluid] = 0.14
    label[tissue | fluid] = 0
    for seed in range(6):
        torch.manual_seed(seed)
        drawn = RandomAppearance(14, 6.0).contrast(image, label)
        assert drawn[tissue].mean() > 0.4 and drawn[fluid].mean() < 0.3


def test_scan_is_in_range_with_empty_background(phantom):
    appearance = RandomAppearance(14, 6.0)
    far = F.max_pool3d((phantom[0][None] > 0).float(), 7, 1, 3) == 0
    for seed in range(8):
        torch.manual_seed(seed)
        scan = appearance.scan(phantom[0][None])
        assert scan.isfinite().all() and scan.min() == 0 and 0.9 < scan.max() <= 1
        assert (scan[far] == 0).all()
        assert (scan > 0).sum() > 0.8 * (phantom[0] > 0).sum()


def test_same_seed_same_scan(phantom):
    scans = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        scans.append(RandomAppearance(14, 6.0).scan(phantom[0][None]))
    assert torch.equal(scans[0], scans[1]) and not torch.equal(scans[0], scans[2])


def test_an_empty_image_stays_empty():
    torch.manual_seed(0)
    assert RandomAppearance(14, 6.0).scan(torch.zeros(1, 1, 16, 16, 16)).sum() == 0


def test_noise_is_in_the_range_that_is_asked():
    """A flat brain without bias field or blur keeps only noise."""
    image = torch.zeros(1, 1, 24, 24, 24)
    image[..., 4:20, 4:20, 4:20] = 0.5
    spread = []
    for noise in (0.01, 0.05):
        torch.manual_seed(0)
        scan = RandomAppearance(1, 6.0, noise=(noise, noise), bias=(0, 0), gamma=(1, 1), blur=(0, 0)).scan(image)
        inside = scan[..., 8:16, 8:16, 8:16]
        spread.append((inside.std() / inside.mean()).item())
    assert spread[1] == pytest.approx(0.1, rel=0.3)
    assert spread[1] > 3 * spread[0]

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.atlas.templates import ACCUMBENS, NUM_REGIONS
from fedsr_monai.synthesis.random_anatomy import RandomAnatomy

SHAPE = (64, 80, 64)


@pytest.fixture(scope="module")
def anatomy():
    return RandomAnatomy(2.5, SHAPE)


@pytest.fixture(scope="module")
def atlas():
    return [torch.from_numpy(volume)[None, None] for volume in build_atlas(2.5, SHAPE)[:2]]


class Still:
    def __call__(self, label, ddf):
        return torch.zeros(1, 3, *SHAPE)


def test_without_a_deformation_the_labels_are_the_atlas(anatomy, atlas, monkeypatch):
    """But for voxels between whose centres and those of the 1 mm anatomy a border runs."""
    monkeypatch.setattr(anatomy, "usual", Still())
    monkeypatch.setattr(anatomy, "unusual", Still())
    torch.manual_seed(1)
    labels = anatomy(*atlas)[1]
    if (labels != atlas[1]).float().mean() > (labels.flip(2) != atlas[1]).float().mean():
        labels = labels.flip(2)
    assert labels.dtype == torch.uint8 and (labels != atlas[1]).float().mean() < 0.03
    for k in range(1, 14):
        one, other = labels == k, atlas[1] == k
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.85


def test_pairs_are_images_and_labels_of_the_contract(anatomy, atlas):
    for seed in range(6):
        torch.manual_seed(seed)
        image, label = anatomy(*atlas)
        assert image.shape == label.shape == (1, 1, *SHAPE)
        assert image.dtype == torch.float32 and label.dtype == torch.uint8 and label.max() == 13
        assert image.isfinite().all() and image.min() == 0 and 0.9 < image.max() <= 1
        assert (image[label > 0] > 0).float().mean() > 0.9


def test_same_seed_same_pair(anatomy, atlas):
    pairs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        pairs.append(anatomy(*atlas))
    for one, same, other in zip(*pairs):
        assert torch.equal(one, same) and not torch.equal(one, other)


def test_fluids_go_together_and_tissue_without_a_label_is_no_fluid():
    anatomy = RandomAnatomy.__new__(RandomAnatomy)
    for share in (0.0, 1.0):
        anatomy.any_contrast = share
        torch.manual_seed(0)
        means = np.stack([anatomy.means().numpy() for _ in range(300)])
        assert means.shape == (300, NUM_REGIONS) and means.min() > 0
        assert np.corrcoef(means[:, 0], means[:, 4])[0, 1] > 0.8
        assert np.corrcoef(means[:, 7], means[:, ACCUMBENS])[0, 1] > 0.2
        assert np.abs(means[:, ACCUMBENS] - means[:, 0]).mean() > 0.2

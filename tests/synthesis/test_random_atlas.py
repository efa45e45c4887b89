from __future__ import annotations

import torch

from fedsr_monai.spatial.grid import fine_shape
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation
from fedsr_monai.synthesis.random_atlas import refined_label


class Plain:
    """A scanner that changes nothing."""

    def contrast(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return image

    def scan(self, image: torch.Tensor) -> torch.Tensor:
        return image


def test_same_torch_seed_same_pair(phantom):
    random_atlas = RandomAtlas(RandomDeformation(6.0), RandomAppearance(14, 6.0))
    pairs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        pairs.append(random_atlas(phantom[0][None], phantom[1][None]))
    for one, same, other in zip(*pairs):
        assert torch.equal(one, same) and not torch.equal(one, other)


def test_pairs_are_images_and_labels_of_the_contract(phantom):
    random_atlas = RandomAtlas(RandomDeformation(6.0), RandomAppearance(14, 6.0))
    for seed in range(6):
        torch.manual_seed(seed)
        image, label = random_atlas(phantom[0][None], phantom[1][None])
        assert image.shape == label.shape == (1, 1, 32, 32, 32)
        assert image.dtype == torch.float32 and label.dtype == torch.uint8
        assert image.min() == 0 and image.max() <= 1 and label.max() == 13
        assert (image[..., 0, 0, 0] == 0).all()
        assert (image[label > 0] > 0).float().mean() > 0.9


def test_image_and_labels_go_through_the_same_warp(phantom):
    mask = (phantom[1][None] == 2).float()  # as image and as label
    random_atlas = RandomAtlas(RandomDeformation(6.0), Plain())
    for seed in range(3):
        torch.manual_seed(seed)
        image, label = random_atlas(mask, mask.to(torch.uint8))
        assert not torch.equal(label, mask.to(torch.uint8))
        # The linear image crosses one half where the nearest label changes, but for the corners of voxels.
        assert ((image > 0.5) != (label > 0)).float().mean() < 0.02
        assert torch.equal(image[image.eq(1)], label[image.eq(1)].float())


def test_a_share_of_the_registration_is_composed_in(phantom):
    class Still:
        def __call__(self, label, ddf):
            return torch.zeros(1, 3, 32, 32, 32) if ddf is None else ddf

    ddf = torch.zeros(1, 3, 32, 32, 32)
    ddf[:, 2] = 4.0
    torch.manual_seed(0)
    fraction = float(torch.empty(()).uniform_(0, 1.0))
    torch.manual_seed(0)
    image, label = RandomAtlas(Still(), Plain())(phantom[0][None], phantom[1][None], ddf)
    assert 0 < fraction < 1
    assert torch.equal(image, warp(phantom[0][None], fraction * ddf))
    torch.manual_seed(0)
    image, _ = RandomAtlas(Still(), Plain(), registration_fraction=0.0)(phantom[0][None], phantom[1][None], ddf)
    torch.testing.assert_close(image[0], phantom[0])


def test_draws_carry_no_gradient(phantom):
    ddf = torch.zeros(1, 3, 32, 32, 32, requires_grad=True)
    torch.manual_seed(0)
    image, _ = RandomAtlas(RandomDeformation(6.0), RandomAppearance(14, 6.0))(phantom[0][None], phantom[1][None], ddf)
    assert not image.requires_grad


def test_refined_labels_keep_the_voxels_and_put_borders_between_them(phantom):
    label = phantom[1][None]
    fine = refined_label(label)
    assert fine.shape == (1, 1, 94, 94, 94)
    assert (fine[..., ::3, ::3, ::3] == label).float().mean() > 0.998  # smoothing takes single voxels off the stairs
    ball = refined_label((label == 2).to(torch.uint8)).mean()
    assert abs(ball / (label == 2).float().mean() - 1) < 0.1


def test_refined_border_lies_half_way_between_two_labels_whichever_is_smaller():
    for low, high in ((1, 2), (2, 1)):
        label = torch.full((1, 1, 16, 16, 16), low, dtype=torch.uint8)
        label[:, :, 8:] = high
        line = refined_label(label)[0, 0, :, 24, 24]
        assert torch.equal(line == high, torch.arange(46) > 22)  # voxels 7 and 8 lie at 21 and 24, the border at 22.5


def test_another_atlas_is_refined_anew(phantom):
    random_atlas = RandomAtlas(lambda label, ddf: torch.zeros(1, 3, 32, 32, 32), Plain())
    for label in (phantom[1][None], phantom[1][None].roll(3, dims=2), phantom[1][None]):
        assert (random_atlas(phantom[0][None], label)[1] == label).float().mean() > 0.998


def test_an_atlas_with_fine_labels_is_drawn_with_them(phantom):
    """Also on a grid that the network pads; another atlas is refined."""
    image, label = (volume[None] for volume in phantom)
    own, fine = label[0, :, :20], torch.randint(1, 14, (1, *fine_shape((20, 32, 32))), dtype=torch.uint8)
    padded = torch.cat([label[:, :, :20], torch.zeros_like(label[:, :, 20:])], dim=2)
    atlas = RandomAtlas(lambda label, ddf: torch.zeros(1, 3, *label.shape[2:]), Plain(), fine_labels=[(own, fine)])
    drawn = atlas(torch.zeros_like(image), padded)[1]
    assert torch.equal(drawn[0, :, :20], fine[:, ::3, ::3, ::3]) and not drawn[0, :, 20:].any()
    assert torch.equal(atlas(image, label)[1], refined_label(label)[..., ::3, ::3, ::3].to(label))

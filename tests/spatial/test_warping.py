from __future__ import annotations

import itk
import numpy as np
import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp
from monai.networks.layers import GaussianFilter

from fedsr_monai.spatial.warping import compose, integrate, resize_ddf, sample, warp


def smooth_field(shape: tuple[int, ...], size: float, seed: int = 0, channels: int = 3, batch: int = 1) -> torch.Tensor:
    """Random numbers of standard deviation ``size``, smoothed over a Gaussian of 4 voxels."""
    torch.manual_seed(seed)
    field = GaussianFilter(3, 4.0)(torch.randn(batch, channels, *shape))
    return size * field / field.std()


def smooth_image(shape: tuple[int, ...]) -> torch.Tensor:
    return 0.5 + smooth_field(shape, 0.2, seed=9, channels=1)


def interior(volume: torch.Tensor, margin: int) -> torch.Tensor:
    return volume[..., margin:-margin, margin:-margin, margin:-margin]


@pytest.mark.parametrize("shape", [(32, 32, 32), (17, 20, 33), (64, 80, 64), (80, 96, 80), (1, 8, 8)])
@pytest.mark.parametrize("batch", [1, 2])
def test_zero_displacement_is_the_identity(shape, batch):
    torch.manual_seed(0)
    image = torch.rand(batch, 1, *shape)
    error = (warp(image, torch.zeros(batch, 3, *shape)) - image).abs().max()
    # White noise is the worst image: what remains is the rounding of float32 coordinates, and exactly 0 where n - 1 divides well.
    assert error < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_positions_are_sampled_as_a_displacement_is(batch):
    image, ddf = torch.rand(batch, 2, 16, 20, 18), smooth_field((16, 20, 18), 2.0, batch=batch)
    voxels = torch.stack(torch.meshgrid([torch.arange(n) for n in (16, 20, 18)], indexing="ij"))
    torch.testing.assert_close(sample(image, (voxels + ddf).unbind(dim=1)), warp(image, ddf), atol=1e-4, rtol=0)


def test_nearest_at_zero_displacement_is_exact():
    label = torch.randint(0, 14, (1, 1, 24, 30, 26), dtype=torch.uint8)
    warped = warp(label, torch.zeros(1, 3, 24, 30, 26), mode="nearest")
    assert torch.equal(warped, label) and warped.dtype == torch.uint8


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nearest_of_a_diverged_field_stays_inside(value):
    label = torch.randint(1, 14, (1, 1, 6, 5, 4), dtype=torch.uint8)
    warped = warp(label, torch.full((1, 3, 6, 5, 4), value), mode="nearest")
    assert warped.shape == label.shape and torch.isin(warped, label).all()


def test_nearest_of_a_finer_grid_samples_the_same_positions():
    coarse = torch.randint(0, 14, (2, 2, 8, 9, 10), dtype=torch.uint8)
    fine = coarse
    for axis in (2, 3, 4):
        fine = fine.repeat_interleave(3, dim=axis)
    fine = fine[..., 1:-1, 1:-1, 1:-1]  # corner voxels of the two have the same centres
    ddf = torch.randint(-2, 3, (2, 3, 8, 9, 10)).float()
    assert torch.equal(warp(fine, ddf, mode="nearest"), warp(coarse, ddf, mode="nearest"))


def test_displacement_is_in_voxels_along_its_own_axis():
    image = torch.rand(1, 1, 12, 10, 14)
    for axis, shift in ((0, 2), (1, -3), (2, 1)):
        ddf = torch.zeros(1, 3, 12, 10, 14)
        ddf[:, axis] = shift
        expected = image.roll(-shift, dims=axis + 2)
        valid = [slice(None)] * 5
        valid[axis + 2] = slice(0, -shift) if shift > 0 else slice(-shift, None)
        torch.testing.assert_close(warp(image, ddf)[tuple(valid)], expected[tuple(valid)], atol=1e-5, rtol=0)


def test_border_is_repeated():
    image = torch.rand(1, 1, 8, 8, 8)
    ddf = torch.zeros(1, 3, 8, 8, 8)
    ddf[:, 0] = 100
    torch.testing.assert_close(warp(image, ddf), image[:, :, -1:].expand_as(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_equals_monai(mode):
    shape = (18, 22, 20)
    image, ddf = torch.rand(2, 3, *shape), smooth_field(shape, 3.3, batch=2)
    expected = Warp(mode=mode, padding_mode="border")(image, ddf)
    ours = warp(image, ddf, mode)
    # Nearest may round a coordinate that lies half-way to the other side.
    assert ((ours - expected).abs() > 1e-4).float().mean() < 1e-3


def test_one_volume_in_slabs_equals_a_batch():
    shape = (18, 22, 20)
    image, ddf = torch.rand(1, 2, *shape), smooth_field(shape, 4)
    whole = warp(image.expand(2, -1, -1, -1, -1), ddf.expand(2, -1, -1, -1, -1))[:1]
    assert torch.equal(warp(image, ddf), whole)


def test_warp_equals_itk():
    shape = (20, 24, 22)
    image, ddf = smooth_image(shape), smooth_field(shape, 1.5)
    # ITK's index runs x first, numpy's z first: reversed axes make ITK's x our first axis.
    moving = itk.image_from_array(np.ascontiguousarray(image[0, 0].numpy().T))
    vectors = np.ascontiguousarray(ddf[0].permute(3, 2, 1, 0).numpy())
    field = itk.PyBuffer[itk.Image[itk.Vector[itk.F, 3], 3]].GetImageFromArray(vectors, is_vector=True)
    filtered = itk.WarpImageFilter[type(moving), type(moving), type(field)].New(Input=moving, DisplacementField=field)
    filtered.SetOutputParametersFromImage(moving)
    filtered.Update()
    expected = torch.from_numpy(itk.array_from_image(filtered.GetOutput()).T.copy())
    position = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij")) + ddf[0]
    # ITK has zeros outside.
    inside = ((position >= 0) & (position <= torch.tensor(shape).view(3, 1, 1, 1) - 1)).all(dim=0)
    assert inside.float().mean() > 0.6
    torch.testing.assert_close(warp(image, ddf)[0, 0][inside], expected[inside], atol=1e-5, rtol=0)


def test_warp_samples_in_float32():
    image = torch.rand(1, 1, 16, 16, 16)
    ddf = smooth_field((16, 16, 16), 2)
    assert torch.equal(warp(image.bfloat16(), ddf), warp(image.bfloat16().float(), ddf))
    assert warp(image.bfloat16(), ddf).dtype == torch.float32


def test_gradients_reach_image_and_field():
    image = torch.rand(1, 1, 6, 6, 6, requires_grad=True)
    # Away from whole voxels, where linear interpolation has a kink.
    ddf = (0.3 + 0.2 * torch.rand(1, 3, 6, 6, 6)).requires_grad_(True)
    loss = warp(image, ddf).square().sum()
    loss.backward()
    direction, step = torch.randn_like(ddf), 1e-3
    with torch.no_grad():
        up, down = (warp(image, ddf + sign * step * direction).double().square().sum() for sign in (1, -1))
    assert (ddf.grad * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=1e-2)
    assert image.grad.abs().sum() > 0


def test_composition_is_one_warp_after_the_other():
    shape = (32, 32, 32)
    image, inner, outer = smooth_image(shape), smooth_field(shape, 1, 1), smooth_field(shape, 1, 2)
    once = warp(image, compose(inner, outer))
    twice = warp(warp(image, outer), inner)
    # Interpolating twice blurs a little; the wrong order errs many times as much.
    error = interior(once - twice, 6).abs().mean()
    wrong = interior(warp(image, compose(outer, inner)) - twice, 6).abs().mean()
    assert error < 5e-3 and wrong > 8 * error


def test_integration_equals_monai():
    velocity = smooth_field((20, 22, 24), 3)
    expected = DVF2DDF(num_steps=5, mode="bilinear", padding_mode="border")(velocity)
    torch.testing.assert_close(integrate(velocity, 5), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("largest", "steps"), [(0.0, 0), (0.25, 0), (0.26, 1), (2.0, 3), (2.1, 4), (16.0, 6), (1e6, 10)]
)
def test_a_field_gets_as_many_squarings_as_it_needs(largest, steps):
    velocity = smooth_field((8, 8, 8), 1)
    velocity = velocity / velocity.abs().max() * largest
    assert torch.equal(integrate(velocity), integrate(velocity, steps))


def test_each_field_of_a_batch_gets_its_own_squarings():
    weak, strong = smooth_field((8, 8, 8), 0.1), smooth_field((8, 8, 8), 3, seed=1)
    assert torch.equal(integrate(torch.cat([weak, strong])), torch.cat([integrate(weak), integrate(strong)]))


def test_integration_lets_what_is_not_a_number_through():
    velocity = torch.full((1, 3, 4, 4, 4), torch.nan)
    assert integrate(velocity).isnan().all() and integrate(velocity.nan_to_num(torch.inf)).isinf().all()


@pytest.mark.parametrize("size", [0.3, 3.0, 10.0])
def test_strong_fields_do_not_fold(size):
    velocity = smooth_field((32, 32, 32), size / 3)
    ddf = integrate(velocity)
    gradient = torch.stack([torch.stack(torch.gradient(ddf[0, i])) for i in range(3)])
    jacobian = gradient + torch.eye(3).view(3, 3, 1, 1, 1)
    assert velocity.abs().max() > size and torch.linalg.det(jacobian.permute(2, 3, 4, 0, 1)).min() > 0


def test_integration_is_inverted_by_the_opposite_velocity():
    velocity = smooth_field((32, 32, 32), 1)
    there, back = integrate(velocity, 6), integrate(-velocity, 6)
    assert interior(there, 6).abs().mean() > 0.5
    assert interior(compose(there, back), 6).abs().mean() < 0.02


def test_integration_of_a_constant_velocity_is_that_displacement():
    velocity = torch.tensor([0.5, -2.0, 1.25]).view(1, 3, 1, 1, 1).expand(1, 3, 16, 16, 16)
    torch.testing.assert_close(integrate(velocity, 5), velocity, atol=1e-5, rtol=0)


def linear_field(matrix: torch.Tensor, shape: tuple[int, ...], voxel: float) -> torch.Tensor:
    """u(p) = M p in voxels, where p is the position in a box of fixed size whose voxels have their centres half a voxel inside."""
    axes = [(torch.arange(n) + 0.5) * voxel for n in shape]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return (torch.einsum("ij,jdhw->idhw", matrix, position) / voxel)[None]


@pytest.mark.parametrize(
    ("old", "new"), [((8, 10, 12), (16, 20, 24)), ((16, 20, 24), (8, 10, 12)), ((4, 5, 6), (16, 20, 24))]
)
def test_resized_field_is_the_same_in_space(old, new):
    torch.manual_seed(0)
    matrix, voxel = 0.1 * torch.randn(3, 3), 24 / old[2]
    resized = resize_ddf(linear_field(matrix, old, voxel), new)
    margin = max(1, new[2] // old[2])  # at the border there is nothing to interpolate with
    expected = linear_field(matrix, new, 24 / new[2])
    torch.testing.assert_close(interior(resized, margin), interior(expected, margin), atol=1e-5, rtol=1e-5)


def test_resized_constant_field_scales_by_axis():
    resized = resize_ddf(torch.ones(1, 3, 4, 4, 4), (8, 16, 4))
    assert torch.equal(resized.mean(dim=(0, 2, 3, 4)), torch.tensor([2.0, 4.0, 1.0]))
    assert resized.std(dim=(2, 3, 4)).max() < 1e-6


def test_resizing_to_the_same_shape_changes_nothing():
    ddf = smooth_field((8, 8, 8), 2)
    assert resize_ddf(ddf, (8, 8, 8)) is ddf

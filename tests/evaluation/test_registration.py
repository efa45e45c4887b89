from __future__ import annotations

import math

import itk
import numpy as np
import pytest
import torch

from fedsr_monai.evaluation import folded_percent, jacobian_determinant, ncc


def smooth_ddf(amplitude, shape=(20, 18, 16)):
    x, y, z = torch.meshgrid(*(torch.linspace(0, 2 * math.pi, n) for n in shape), indexing="ij")
    return amplitude * torch.stack([torch.sin(y) * torch.cos(z), torch.cos(x) * torch.sin(z), torch.sin(x + y)])


def test_ncc_is_pearsons_correlation_in_the_mask():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 8, 8, 8))
    mask = generator.random((8, 8, 8)) > 0.5
    assert ncc(first, second, mask) == pytest.approx(np.corrcoef(first[mask], second[mask])[0, 1])
    assert ncc(first, second) == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    assert ncc(first, 3 * first + 2) == pytest.approx(1)
    assert ncc(first, -first) == pytest.approx(-1)


def test_ncc_is_nan_where_it_is_undefined():
    image = np.ones((4, 4, 4), np.float32)
    assert math.isnan(ncc(image, np.arange(64.0).reshape(4, 4, 4)))
    assert math.isnan(ncc(image, image, np.zeros((4, 4, 4), bool)))


def test_jacobian_of_known_maps():
    x = torch.stack(torch.meshgrid(*(torch.arange(8.0),) * 3, indexing="ij"))
    assert torch.equal(jacobian_determinant(torch.zeros(3, 8, 8, 8)), torch.ones(8, 8, 8))
    scale = torch.tensor([0.5, 2.0, 3.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(jacobian_determinant((scale - 1) * x), torch.full((8, 8, 8), 3.0))
    shear = torch.stack([0.7 * x[1] - 0.2 * x[2], torch.zeros_like(x[0]), torch.zeros_like(x[0])])
    torch.testing.assert_close(jacobian_determinant(shear), torch.ones(8, 8, 8))
    rotation = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, -0.1], [-0.3, 0.0, 0.5], [0.1, -0.5, 0.0]]))
    rotated = torch.einsum("ij,j...->i...", rotation, x) - x
    torch.testing.assert_close(jacobian_determinant(rotated), torch.ones(8, 8, 8))


@pytest.mark.slow
def test_jacobian_agrees_with_itk():
    ddf = smooth_ddf(1.5)
    # ITK: axes in reverse order, components in the order of its own axes (x is the last axis of the array)
    vectors = np.ascontiguousarray(ddf.flip(0).movedim(0, -1).numpy())
    field = itk.image_from_array(vectors, ttype=itk.Image[itk.Vector[itk.F, 3], 3])
    determinant = itk.displacement_field_jacobian_determinant_filter(field)
    inside = (slice(1, -1),) * 3  # at the border ITK halves its differences
    np.testing.assert_allclose(jacobian_determinant(ddf)[inside], itk.array_from_image(determinant)[inside], atol=1e-5)


def test_jacobian_of_a_batch():
    ddf = torch.stack([smooth_ddf(1.0), smooth_ddf(2.0)])
    assert torch.equal(jacobian_determinant(ddf)[1], jacobian_determinant(ddf[1]))
    with pytest.raises(
        ValueError, match=r"^jacobian_determinant\(\) expects a ddf \[..., 3, D, H, W\], got \(2, 8, 8, 8\)$"
    ):
        jacobian_determinant(torch.zeros(2, 8, 8, 8))


def test_folded_percent():
    assert folded_percent(torch.zeros(1, 3, 8, 8, 8)) == 0
    mirror = -2 * torch.stack(torch.meshgrid(*(torch.arange(8.0),) * 3, indexing="ij"))
    mirror[1:] = 0
    assert folded_percent(mirror) == 100
    mirror[0, :4] = mirror[0, 4]  # flat there: only the other half folds
    half = folded_percent(mirror)
    assert 30 < half < 60
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[5:] = True
    assert folded_percent(mirror, mask) == 100
    assert folded_percent(smooth_ddf(1.0)) == 0 and folded_percent(smooth_ddf(8.0)) > 1

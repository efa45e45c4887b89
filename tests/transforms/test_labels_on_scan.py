from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.errors import UserError
from fedsr_monai.spatial.resampling import sample, voxel_map
from fedsr_monai.transforms import LabelsOnScand, ResampleToGridd
from fedsr_monai.transforms.labels_on_scan import labels_on_grid, own_grid

GRID = standard_grid(6.0, (32, 32, 32))
AFFINE = np.array([[0.0, -3.9, 0.5, 60.0], [0.3, 0.4, 4.9, -130.0], [-4.2, 0.2, 0.4, 95.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (48, 46, 44)


def one_hot(label: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(label[0].long(), 14).movedim(-1, 0).float()


def test_the_box_of_the_foreground_gives_what_the_whole_grid_gives(phantom):
    matrix = voxel_map(GRID.affine, AFFINE)
    fractions = (4 * one_hot(phantom[1]) + torch.rand(14, 32, 32, 32)).softmax(dim=0)
    fractions[0] += 1 - fractions.sum(dim=0)
    everywhere = sample(fractions, matrix, SHAPE).argmax(dim=0, keepdim=True).to(torch.uint8)
    assert torch.equal(labels_on_grid(fractions, matrix, SHAPE), everywhere)
    assert len(torch.unique(everywhere)) == 14


def test_nothing_found_or_nothing_in_view_is_all_background(phantom):
    empty = torch.zeros(14, 32, 32, 32)
    empty[0] = 1
    assert not labels_on_grid(empty, voxel_map(GRID.affine, AFFINE), SHAPE).any()
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] += 1000
    assert not labels_on_grid(one_hot(phantom[1]), voxel_map(GRID.affine, elsewhere), SHAPE).any()


def test_on_the_same_grid_it_is_the_argmax(phantom):
    result = labels_on_grid(one_hot(phantom[1]), np.eye(4), (32, 32, 32))
    assert result.dtype == torch.uint8 and torch.equal(result, phantom[1])


def test_shape_affine_and_labels_of_an_oblique_permuted_scan(phantom):
    scan = MetaTensor(
        torch.rand(1, *SHAPE), affine=torch.as_tensor(AFFINE), meta={"filename_or_obj": "a/b.nii.gz", "qform_code": 3}
    )
    data = ResampleToGridd("image", GRID)({"image": scan})
    data["pred"] = 10 * one_hot(phantom[1]) + torch.rand(14, 32, 32, 32)  # noise, so that no two labels tie
    probabilities = data["pred"].softmax(0)
    result = LabelsOnScand("pred", orig_keys="image")(data)["pred"]
    assert torch.equal(LabelsOnScand("pred", orig_keys="image", inplace=True)(data)["pred"], result)
    assert torch.equal(data["pred"], probabilities)  # no copy of the logits was made
    assert result.shape == (1, *SHAPE) and result.dtype == torch.uint8
    assert np.array_equal(result.affine.numpy(), AFFINE)
    assert result.meta["filename_or_obj"] == "a/b.nii.gz" and result.meta["qform_code"] == 3
    expected = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True)(
        MetaTensor(probabilities, affine=torch.as_tensor(GRID.affine)),
        dst_affine=torch.as_tensor(AFFINE),
        spatial_size=SHAPE,
    ).argmax(dim=0, keepdim=True)
    assert float((result.as_tensor() != expected.as_tensor()).float().mean()) < 1e-4


def test_a_scan_that_was_not_resampled_is_refused():
    with pytest.raises(UserError, match="^preprocessing: found no ResampleToGridd"):
        own_grid(MetaTensor(torch.zeros(1, 4, 4, 4)))

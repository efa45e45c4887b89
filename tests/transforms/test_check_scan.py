from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.errors import UserError
from fedsr_monai.transforms import CheckScand
from fedsr_monai.transforms.check_scan import check_scan

GRID = standard_grid(6.0, (32, 32, 32))
A = GRID.affine


def moved(x: float) -> np.ndarray:
    affine = A.copy()
    affine[0, 3] += x
    return affine


def test_a_brain_in_the_box_passes_in_float_and_without_negative_values(phantom):
    image = phantom[0].clone()
    image[0, 0, 0, 0] = -0.01
    scan = MetaTensor((image * 1000).to(torch.int16), affine=torch.as_tensor(A))
    result = CheckScand("image", GRID)({"image": scan})["image"]
    assert result.dtype == torch.float32 and float(result.min()) == 0 and float(result.max()) == float(scan.max())
    check_scan(phantom[0], moved(20), GRID, "scan.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "affine", "message"),
    [
        (lambda v: v.expand(3, -1, -1, -1), A, "found 32 x 32 x 32 x 3 values.*; take one volume out of the series"),
        (lambda v: v, np.diag([6.0, 0.0, 6.0, 1.0]), "found a singular affine.*; fix the header"),
        (lambda v: v[..., :1], A, r"found a single slice, shape \(32, 32, 1\)"),
        (lambda v: v.where(v < 0.9, torch.nan), A, r"found \d+ voxels that are NaN or infinite"),
        (lambda v: v * 0 + 5, A, r"found a constant image \(all 5\)"),
        (lambda v: (v - 0.6) * (v > 0), A, r"found \d+ negative voxels.*; give the scan before normalisation"),
        (lambda v: v + 0.1, A, "found 7.1 litres above 0, .*skull-stripped brain .*; strip the skull"),
        (lambda v: v, A * np.array([0.1, 0.1, 0.1, 1])[:, None], r"found 0.0\d+ litres above 0.*check the voxel size"),
        (
            lambda v: v,
            moved(80),
            r"found \d\d % of the brain in the box.*80 % or more; align the scan to the atlas .fedsr segment does so with --raw",
        ),
        (
            lambda v: v,
            moved(2000),
            "found 0 % of the brain in the box.*; align the scan to the atlas .fedsr segment does so with --raw",
        ),
    ],
)
def test_what_cannot_be_segmented_is_named(phantom, spoil, affine, message):
    scan = MetaTensor(spoil(phantom[0]).clone(), affine=torch.as_tensor(affine), meta={"filename_or_obj": "s.nii"})
    with pytest.raises(UserError, match=f"^s.nii: {message}"):
        CheckScand("image", GRID)({"image": scan})

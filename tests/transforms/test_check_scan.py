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
        (
            lambda v: v.expand(3, -1, -1, -1),
            A,
            r"^s.nii: holds 32 x 32 x 32 x 3 values, expected one 3-D volume; take one volume out",
        ),
        (
            lambda v: v,
            np.diag([6.0, 0.0, 6.0, 1.0]),
            r"^s.nii: has a singular affine, expected voxels with a volume; mend the header$",
        ),
        (
            lambda v: v[..., :1],
            A,
            r"^s.nii: has the shape \(32, 32, 1\), expected a 3-D volume; a single slice cannot be segmented$",
        ),
        (
            lambda v: v.where(v < 0.9, torch.nan),
            A,
            r"^s.nii: \d+ voxels are NaN or infinite, expected numbers; mend the preprocessing",
        ),
        (lambda v: v * 0 + 5, A, r"^s.nii: is constant \(all 5\), expected a scan; export it again$"),
        (
            lambda v: (v - 0.6) * (v > 0),
            A,
            r"^s.nii: \d+ voxels are negative, expected a brain above 0 and a background of 0; give the scan",
        ),
        (
            lambda v: v + 0.1,
            A,
            r"^s.nii: 7.1 litres are not 0, expected a skull-stripped brain \(0.4 to 2.6 litres\) on a background of 0",
        ),
        (
            lambda v: v,
            A * np.array([0.1, 0.1, 0.1, 1])[:, None],
            r"^s.nii: 0.0\d+ litres are not 0, .*; strip the skull, and check the voxel",
        ),
        (
            lambda v: v,
            moved(80),
            r"^s.nii: \d\d % of the brain lies in the atlas' box, expected 80 % or more; align the scan roughly",
        ),
        (
            lambda v: v,
            moved(2000),
            r"^s.nii: 0 % of the brain lies in the atlas' box, expected 80 % or more; align the scan roughly",
        ),
    ],
)
def test_what_cannot_be_segmented_is_named(phantom, spoil, affine, message):
    scan = MetaTensor(spoil(phantom[0]).clone(), affine=torch.as_tensor(affine), meta={"filename_or_obj": "s.nii"})
    with pytest.raises(UserError, match=message):
        CheckScand("image", GRID)({"image": scan})

from __future__ import annotations

import torch

from fedsr_monai.transforms import ScaleBrainIntensityd
from fedsr_monai.transforms.scale_brain_intensity import scale_brain_intensity


def test_a_few_bright_voxels_do_not_darken_the_brain(phantom):
    scan = phantom[0] * 700
    scan[0, 16, 16, 16] = 1e6
    result = ScaleBrainIntensityd("image")({"image": scan})["image"]
    assert float(result.max()) == 1 and torch.equal(result == 0, scan == 0)
    assert 0.95 < float(result[phantom[1] == 2].mean() / phantom[0][phantom[1] == 2].mean() * phantom[0].max()) < 1.05


def test_scaling_twice_changes_nothing(phantom):
    once = scale_brain_intensity(phantom[0] * 3)
    torch.testing.assert_close(scale_brain_intensity(once), once)


def test_an_empty_scan_stays_empty():
    assert not scale_brain_intensity(torch.zeros(1, 4, 4, 4)).any()

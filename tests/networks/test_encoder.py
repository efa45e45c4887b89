from __future__ import annotations

import pytest
import torch

from fedsr_monai.networks.encoder import Encoder


def test_scales_and_widths():
    features = Encoder((4, 6, 8, 10, 12))(torch.rand(1, 1, 32, 48, 16))
    assert [tuple(f.shape) for f in features] == [
        (1, 4, 32, 48, 16),
        (1, 6, 16, 24, 8),
        (1, 8, 8, 12, 4),
        (1, 10, 4, 6, 2),
        (1, 12, 2, 3, 1),
    ]


def test_an_image_does_not_see_its_neighbours_in_the_batch():
    torch.manual_seed(0)
    encoder, images = Encoder((4, 6, 8, 10, 12)), torch.rand(2, 1, 32, 32, 32)
    for together, alone in zip(encoder(images), encoder(images[:1])):
        torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_no_running_statistics_to_leak():
    assert list(Encoder((4, 6, 8, 10, 12)).buffers()) == []


def test_wrong_number_of_stages():
    with pytest.raises(ValueError, match=r"^Encoder\(\) 'widths' needs 5 stages \(strides 1, 2, 4, 8, 16\), got 3$"):
        Encoder((4, 6, 8))

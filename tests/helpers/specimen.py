"""The smallest volumes that pass the check."""

from __future__ import annotations

import numpy as np

AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])


def scan(seed: int) -> np.ndarray:
    image = np.zeros((17, 16, 16), np.float32)
    image[3:13, 3:13, 3:13] = np.random.default_rng(seed).random((10, 10, 10), dtype=np.float32)
    return image


def labels() -> np.ndarray:
    label = np.zeros((17, 16, 16), np.uint8)
    label[3:13, 3:13, 3:13] = np.arange(1000).reshape(10, 10, 10) % 14
    return label

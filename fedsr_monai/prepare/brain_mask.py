"""The brain in a scan, found by the network of `networks.brain_network`, and the recognition of skull-stripped scans."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from monai.networks.nets import UNet
from scipy import ndimage

from fedsr_monai.bundle_path import installed_bundle
from fedsr_monai.networks.brain_network import brain_network, network_input
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.spatial.grid import mask_box
from fedsr_monai.spatial.resampling import sample, voxel_map
from fedsr_monai.transforms.check_scan import BRAIN_LITRES

WEIGHTS = ("fedsr_site", "models", "brain_mask.safetensors")  # bundle, and the file in it
# Least probability of brain in the mask, chosen on three heads: it leaves out 0.6 to 0.8 % of their cortex; 0.5 leaves out 2 to 3 %.
LEAST = 0.15
SURE = 20.0  # logit of voxels that are decided


@lru_cache(maxsize=1)
def brain_extraction() -> UNet:
    """Return the network with the weights that come with the bundle, read once per process.

    Raises:
        UserError: the weights are missing or damaged.
    """
    bundle, *file = WEIGHTS
    return load_weights(brain_network().half(), installed_bundle(bundle).joinpath(*file)).float().eval()


def is_stripped(volume: np.ndarray, affine: np.ndarray) -> bool:
    """Return whether a scan is skull-stripped: exact zeros around the brain, and a nonzero volume as large as a brain's."""
    faces = np.concatenate([np.take(volume, (0, -1), axis=axis).ravel() for axis in range(3)])
    litres = np.count_nonzero(volume) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    return (faces == 0).mean() > 0.9 and BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]


def filled(mask: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask with its holes filled: dark ventricles may be 0 in a stripped scan."""
    pieces, count = ndimage.label(mask)
    if count > 1:
        mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return ndimage.binary_fill_holes(mask)


@torch.no_grad()
def find_brain(volume: np.ndarray, affine: np.ndarray, threshold: float = LEAST) -> np.ndarray:
    """Find the brain in a whole head.

    The network's logits, on voxels of 3 mm, are interpolated to the voxels of the scan, so that the border is smooth. The
    mask is one piece without holes.

    Args:
        volume: the scan [D, H, W], 0 or above.
        affine: affine of the scan, [4, 4].
        threshold: least probability of brain in the mask.

    Returns:
        The brain, bool [D, H, W]; empty if the network finds none.
    """
    image, grid = network_input(volume, affine)
    mask = np.zeros(volume.shape, bool)
    if not image.any():
        return mask
    logits = brain_extraction()(image[None])[0] - float(np.log(threshold / (1 - threshold)))
    found = (logits[0] > 0).numpy()
    if not found.any():
        return mask
    brain = filled(found)
    # Other pieces are not brain, and holes are. The border is left to the interpolation.
    logits[0][torch.from_numpy(found & ~brain)] = -SURE
    logits[0][torch.from_numpy(brain & ~found)] = SURE
    matrix = voxel_map(grid.affine, affine)
    corners = np.array(np.meshgrid(*[(side.start - 1, side.stop) for side in mask_box(brain)])).reshape(3, -1)
    own = np.linalg.inv(matrix) @ np.vstack([corners, np.ones(8)])
    low = np.clip(np.floor(own[:3].min(1)).astype(int), 0, volume.shape)
    high = np.clip(np.ceil(own[:3].max(1)).astype(int) + 1, 0, volume.shape)
    shift = np.eye(4)
    shift[:3, 3] = low
    shape = [int(n) for n in high - low]
    near = sample(logits, matrix @ shift, shape, lambda values: values > 0, padding_mode="border")
    mask[tuple(slice(a, b) for a, b in zip(low, high))] = near[0].numpy()
    return mask

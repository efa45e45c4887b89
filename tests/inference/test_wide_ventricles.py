"""The weights that ship label ventricles that are several times as wide as the atlas', as old people have them."""

from __future__ import annotations

import pytest
import torch
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot

from fedsr_monai.atlas.standard import standard_atlas
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.synthesis.random_anatomy import RandomAnatomy

pytestmark = pytest.mark.slow

GRID = (2.0, (80, 96, 80))
THALAMUS, CAUDATE, LATERAL_VENTRICLE = 6, 7, 4


def test_wide_ventricles_are_no_caudate_and_no_thalamus():
    """Weights that had not seen such brains gave 0.64, 0.35 and 0.57 (segmentation), 0.65, 0.43 and 0.59 (registration)."""
    image, label = standard_atlas(*GRID)
    network = load_weights(FedSRNet(), bundle_path("fedsr_site") / "models" / "model.pt").set_atlas(image, label).eval()
    draw = RandomAnatomy(*GRID, any_contrast=0, any_pose=0, remnants=0, dilated=1)
    torch.manual_seed(2)
    scan, truth = draw(image[None], label[None])
    assert (truth == LATERAL_VENTRICLE).sum() > 5 * (label == LATERAL_VENTRICLE).sum()
    with torch.no_grad():
        prediction = network.predict(scan)
        found = {
            "segmentation": prediction.logits.argmax(dim=1, keepdim=True),
            "registration": network.warp_labels(prediction.ddf),
        }
    for task, labels in found.items():
        dice = DiceMetric()(one_hot(labels, 14), one_hot(truth, 14))[0]
        assert dice[LATERAL_VENTRICLE] > 0.88, task
        assert dice[CAUDATE] > 0.68 and dice[THALAMUS] > 0.76, task

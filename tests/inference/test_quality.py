from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsr_monai.inference.quality import DOUBTFUL, GOOD, LIMITS, REJECTED, Limit, Quality, assess
from fedsr_monai.inference.volume_ranges import OBSERVED, implausible_volumes, plausible_range
from fedsr_monai.labels import LABELS

USUAL = {label: (low + high) / 2 for label, (low, high) in OBSERVED.items()}


def measure(phantom, **changes):
    image, label = (volume[0].numpy() for volume in phantom)
    given = {
        "segmentation": label,
        "registration": label,
        "image": image,
        "warped_atlas": image,
        "ddf": torch.zeros(3, 32, 32, 32),
        "volumes": USUAL,
    }
    return assess(**given | changes)


def test_a_good_result(phantom):
    found = measure(phantom)
    assert (found.agreement, found.correlation, found.folded_percent) == (1.0, pytest.approx(1.0), 0.0)
    assert (found.verdict, found.reasons, found.missing, found.implausible) == (GOOD, (), (), ())


def test_heads_that_disagree_are_rejected(phantom):
    label = phantom[1][0].numpy()
    found = measure(phantom, registration=np.roll(label, 5, axis=0))
    assert found.agreement < LIMITS["agreement"].reject and found.verdict == REJECTED
    assert found.reasons == (f"segmentation and registration agree at a Dice of {found.agreement:.2f}",)


def test_an_inverted_scan_is_rejected(phantom):
    image = phantom[0][0].numpy()
    found = measure(phantom, image=np.where(image > 0, 1.05 - image, 0))
    assert found.correlation == pytest.approx(-1) and found.verdict == REJECTED


def test_a_deformation_that_folds(phantom):
    ddf = torch.zeros(3, 32, 32, 32)
    ddf[0, 14:18] = torch.tensor([3.0, 1.0, -1.0, -3.0])[:, None, None]  # the middle is turned inside out
    found = measure(phantom, ddf=ddf)
    assert found.folded_percent > LIMITS["folded_percent"].reject and found.verdict == REJECTED


def test_volumes_that_no_head_has(phantom):
    found = measure(phantom, volumes=USUAL | {6: 60.0, 12: 0.0})
    assert found.implausible == ("thalamus 60 ml (5.7 to 31.4)",) and found.missing == ("amygdala",)
    assert found.verdict == DOUBTFUL and len(found.reasons) == 2
    assert measure(phantom, volumes=dict.fromkeys(USUAL, 0.0)).verdict == REJECTED
    assert implausible_volumes({1: plausible_range(1)[0], 2: plausible_range(2)[1]}) == []


def test_a_brain_outside_the_grid(phantom):
    assert measure(phantom, outside_percent=10.0).verdict == DOUBTFUL


def test_what_cannot_be_measured_is_rejected(phantom):
    empty = np.zeros((32, 32, 32))
    found = measure(phantom, image=empty, segmentation=empty.astype(np.uint8), registration=empty.astype(np.uint8))
    assert found.verdict == REJECTED and np.isnan(found.agreement)


@pytest.mark.parametrize(
    ("limit", "good", "doubtful", "rejected"), [(Limit(0.7, 0.5), 0.7, 0.5, 0.4), (Limit(1, 3), 1, 3, 4)]
)
def test_limits(limit, good, doubtful, rejected):
    assert [limit.verdict(value) for value in (good, doubtful, rejected, float("nan"))] == [
        GOOD,
        DOUBTFUL,
        REJECTED,
        REJECTED,
    ]


def test_every_structure_has_a_range():
    assert set(OBSERVED) == set(LABELS) - {0}
    assert Quality(0.85, 0.9, 0, 0).verdict == GOOD

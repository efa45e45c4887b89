"""Label propagation by ANTs, which a user would run instead (extra `benchmark`: antspyx)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsr_monai.errors import UserError

# Settings of the deformable stage: iterations at each level, coarse to fine, and the similarity measure, which is
# mutual information (with 32 bins) unless named. None leaves the stage out.
METHODS: dict[str, dict[str, Any] | None] = {
    "affine": None,
    "n4_syn": {"reg_iterations": (40, 20, 0)},
    "n4_syn_60_40_20": {"reg_iterations": (60, 40, 20)},
    # Local cross-correlation with radius 4, and the number of iterations of the ANTs scripts.
    "n4_syn_cc": {"reg_iterations": (100, 70, 50, 20), "syn_metric": "CC", "syn_sampling": 4},
}


@dataclass
class Propagation:
    """Atlas labels on a scan ([D, H, W], uint8), wall seconds, and the percentage of folded voxels of the brain."""

    label: np.ndarray
    seconds: float
    folded_percent: float


def propagate(atlas_image: str, atlas_label: str, scan: str, method: str) -> Propagation:
    """Register the atlas to a scan and warp its labels to it, all files on one grid.

    `affine` is ANTs' affine alone; the `n4_syn` methods correct the scan's bias field first (N4 inside the brain) and
    run SyN with ANTs' defaults (`n4_syn`), with more iterations at full resolution, or as a careful user does (`n4_syn_cc`).

    Raises:
        UserError: antspyx is not installed.
    """
    try:
        import ants
    except ImportError:
        raise UserError(
            "methods",
            found=f"{method}, but no package antspyx",
            expected="the extra 'benchmark' to be installed",
            fix="run pip install 'fedsr-monai[benchmark]' or choose --methods none",
        ) from None
    fixed, moving, label = (ants.image_read(path) for path in (scan, atlas_image, atlas_label))
    start = time.perf_counter()
    brain = ants.threshold_image(fixed, 1e-6, 1e9)
    deformable = METHODS[method]
    if deformable is None:
        found = ants.registration(fixed, moving, type_of_transform="Affine", random_seed=1)
    else:
        fixed = ants.n4_bias_field_correction(fixed, mask=brain)
        found = ants.registration(fixed, moving, type_of_transform="SyN", random_seed=1, **deformable)
    warped = ants.apply_transforms(fixed, label, found["fwdtransforms"], interpolator="genericLabel")
    seconds = time.perf_counter() - start
    folded = 0.0
    if deformable is not None:
        warp = next(path for path in found["fwdtransforms"] if path.endswith(".nii.gz"))
        jacobian = ants.create_jacobian_determinant_image(fixed, warp, do_log=False).numpy()
        folded = 100 * float((jacobian[brain.numpy() > 0] <= 0).mean())
    return Propagation(warped.numpy().astype(np.uint8), seconds, folded)

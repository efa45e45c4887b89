"""Writing site folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedsr_monai.files import write_json
from fedsr_monai.labels import LABELS
from fedsr_monai.sites.contract import site_faults
from fedsr_monai.spatial.grid import fine_affine
from fedsr_monai.spatial.nifti import write_volume


def write_site(
    root: str | os.PathLike,
    name: str,
    atlas_image: np.ndarray,
    atlas_label: np.ndarray,
    affine: np.ndarray,
    training: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]] = (),
    test: Sequence[Mapping[str, str]] = (),
    labels: Mapping[int, str] = LABELS,
    fine_label: np.ndarray | None = None,
) -> Path:
    """Write the atlas and, last and atomically, `site.json`, so that a folder that has one is complete.

    The scans themselves must have been written before, with `write_volume`.

    Args:
        root: the site folder.
        name: name of the site.
        atlas_image: image [D, H, W] of the atlas, in [0, 1].
        atlas_label: its labels [D, H, W].
        affine: affine [4, 4] of all volumes, voxel to millimetre, RAS+.
        training: entries with the paths of `image` and, if one exists, `label`, relative to `root`.
        validation: like `training`; the labels are required.
        test: like `validation`.
        labels: names of the structures by label.
        fine_label: the atlas' labels on voxels a third the size (see `fine_shape`), if they are known.

    Returns:
        The absolute path of `root`.

    Raises:
        UserError: the folder would violate the contract, for example by an empty training list or a missing scan.
    """
    root = Path(root).absolute()
    spec: dict[str, Any] = {
        "name": name,
        "labels": {str(key): value for key, value in labels.items()},
        "spacing": [float(value) for value in nib.affines.voxel_sizes(affine)],
        "shape": list(atlas_label.shape),
        "atlas": {"image": "atlas/image.nii.gz", "label": "atlas/label.nii.gz"},
        "training": [dict(entry) for entry in training],
        "validation": [dict(entry) for entry in validation],
        "test": [dict(entry) for entry in test],
    }
    write_volume(root / spec["atlas"]["image"], atlas_image.astype(np.float32), affine)
    write_volume(root / spec["atlas"]["label"], atlas_label.astype(np.uint8), affine)
    if fine_label is not None:
        spec["atlas"]["fine_label"] = "atlas/fine_label.nii.gz"
        write_volume(root / spec["atlas"]["fine_label"], fine_label.astype(np.uint8), fine_affine(affine))
    for fault in site_faults(root, spec).values():
        raise fault
    write_json(root / "site.json", spec)
    return root

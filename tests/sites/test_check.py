from __future__ import annotations

import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.sites.check import check_site
from fedsr_monai.spatial.grid import fine_affine
from fedsr_monai.spatial.nifti import read_volume, write_volume
from tests.helpers.specimen import AFFINE, labels, scan


def violations(site) -> list[tuple[str, str, str]]:
    """Where each violation is (below the site folder), what was found and what expected."""
    return [(fault.where.removeprefix(f"{site}/"), fault.found, fault.expected) for fault in check_site(site)]


def test_a_sound_site_has_no_violation(site):
    assert check_site(site) == []


def drop(key):
    return lambda spec: spec.pop(key)


def put(key, value):
    return lambda spec: spec.update({key: value})


def first(section, **change):
    return lambda spec: spec[section][0].update(change)


# what is done to site.json, the key that is then named, and what is said to be found and expected there
IN_JSON = {
    "missing key": (drop("shape"), "shape", "nothing", "three whole numbers above 0, the largest of them 17 or more"),
    "zero spacing": (put("spacing", [2, 0, 2]), "spacing", "[2, 0, 2]", "three numbers above 0 (mm)"),
    "endless spacing": (put("spacing", [2, float("inf"), 2]), "spacing", "[2, Infinity, 2]", "three numbers above 0 (mm)"),
    "shape of floats": (put("shape", [16.0, 16, 16]), "shape", "[16.0, 16, 16]", "three whole numbers above 0, the largest of them 17 or more"),
    "shape of booleans": (put("shape", [True, 16, 16]), "shape", "[true, 16, 16]", "three whole numbers above 0, the largest of them 17 or more"),
    "name as a path": (put("name", "../ward"), "name", '"../ward"', "a name of at most 100 letters, digits, '.', '_' and '-'"),
    "labels with a gap": (put("labels", {"0": "background", "2": "brain"}), "labels", '{"0": "background", "2": "brain"}', "ids '0' to 'N' without a gap, each with a name"),
    "no atlas": (drop("atlas"), "atlas", "nothing", "an object with 'image' and 'label'"),
    "atlas without labels": (lambda spec: spec["atlas"].pop("label"), "atlas.label", "nothing", "a path below the site folder"),
    "atlas file gone": (lambda spec: spec["atlas"].update(image="atlas/x.nii.gz"), "atlas.image", "atlas/x.nii.gz, which does not exist", "an existing file"),
    "empty training": (put("training", []), "training", "[]", "a list of at least one scan"),
    "test as text": (put("test", "d"), "test", '"d"', "a list of scans"),
    "entry as text": (put("validation", ["images/c.nii.gz"]), "validation[0]", '"images/c.nii.gz"', "an object with 'image'"),
    "fine labels of a scan": (first("training", fine_label="labels/a.nii.gz"), "training[0].fine_label", "an unknown key", "only 'image' and 'label'"),
    "misspelt key": (first("training", lable="labels/a.nii.gz"), "training[0].lable", "an unknown key", "only 'image' and 'label'"),
    "test without label": (lambda spec: spec["test"][0].pop("label"), "test[0].label", "nothing", "a path below the site folder"),
    "path as number": (first("training", image=3), "training[0].image", "3", "a path below the site folder"),
    "absolute path": (first("training", image="/images/a.nii.gz"), "training[0].image", "the absolute path /images/a.nii.gz", "a path relative to the site folder"),
    "path outside": (first("training", image="images/../../a.nii.gz"), "training[0].image", "images/../../a.nii.gz, outside the site folder", "a path below it"),
    "training and test": (first("test", image="images/a.nii.gz"), "test[0].image", "images/a.nii.gz, which training[0].image names too", "each file once"),
    "twice in training": (lambda spec: spec["training"].append({"image": "./images/a.nii.gz"}), "training[2].image", "images/a.nii.gz, which training[0].image names too", "each file once"),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_JSON)
def test_violation_in_site_json(site, edit, case):
    change, key, found, expected = IN_JSON[case]
    edit(change)
    assert violations(site) == [(f"site.json: {key}", found, expected)]
    assert all(fault.fix != "correct it" for fault in check_site(site))


def image_of(array, affine=AFFINE, kind=nib.Nifti1Image):
    return gzip.compress(kind(array, affine).to_bytes())


def with_value(array, value, dtype=None):
    array = array.astype(dtype or array.dtype)
    array[5, 5, 5] = value
    return array


def no_pixdim():
    image = nib.Nifti1Image(scan(0), None)
    image.header["pixdim"][1:4] = 8, 0, 8
    return gzip.compress(image.header.binaryblock + b"\0" * 4 + scan(0).tobytes())


def moved(x):
    affine = AFFINE.copy()
    affine[0, 3] = x
    return affine


GOOD = image_of(scan(0))
IN_IMAGE = {
    "empty file": (b"", "an empty file", "a NIfTI or FreeSurfer volume"),
    "not NIfTI": (gzip.compress(b"DICM" * 200), "something else than NIfTI", "a NIfTI-1 or -2 volume"),
    "plain under a gzip name": (gzip.decompress(GOOD), "no gzip stream", ".nii.gz or .mgz for compressed and .nii or .mgh for plain volumes"),
    "truncated gzip": (GOOD[: len(GOOD) // 2], "a broken gzip stream", "a complete file"),
    "truncated before gzip": (gzip.compress(gzip.decompress(GOOD)[:1000]), "a file that ends after 1000 of ", "a complete volume"),
    "four dimensions": (image_of(np.stack([scan(0)] * 2, -1)), "the shape (17, 16, 16, 2)", "one 3-D volume"),
    "complex": (image_of(scan(0).astype(np.complex64)), "complex64 voxels", "whole numbers or floats"),
    "shape": (image_of(scan(0)[:, :, :15]), "shape (17, 16, 15)", "(17, 16, 16) (site.json)"),
    "spacing": (image_of(scan(0), np.diag([8, 7.5, 8, 1])), "spacing (8, 7.5, 8) mm", "(8, 8, 8) (site.json)"),
    "zero spacing": (no_pixdim(), "spacing (8, 0, 8) mm", "sizes above 0"),
    "orientation": (image_of(scan(0), np.diag([-8, 8, 8, 1])), "orientation LAS", "RAS"),
    "affine": (image_of(scan(0), moved(3)), "affine row 1 (8, 0, 0, 3)", "(8, 0, 0, 0) (the atlas image)"),
    "NaN": (image_of(with_value(scan(0), np.nan)), "1 voxels that are NaN or infinite", "numbers"),
    "constant": (image_of(np.full((17, 16, 16), 0.5, np.float32)), "a constant image (all 0.5)", "a scan"),
    "intensities": (image_of(with_value(scan(0), 3)), "intensities from 0 to 3", "[0, 1]"),
    "background": (image_of(np.maximum(scan(0), 0.125)), "a background that is not zero (0 % of the outer voxels are 0)", "exactly 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_IMAGE)
def test_violation_in_an_image(site, case):
    content, found, expected = IN_IMAGE[case]
    (site / "images/a.nii.gz").write_bytes(content)
    ((where, what, wanted),) = violations(site)
    assert (where, wanted) == ("images/a.nii.gz", expected) and what.startswith(found)


IN_LABEL = {
    "unknown ids": (with_value(labels(), 77), "unknown label ids 77", "0 to 13 (site.json)"),
    "label 14": (with_value(labels(), 14), "unknown label ids 14", "0 to 13 (site.json)"),
    "below 0": (with_value(labels(), -1, dtype=np.int16), "unknown label ids -1", "0 to 13 (site.json)"),
    "fraction": (with_value(labels(), 2.5, dtype=np.float32), "the label 2.5", "whole numbers"),
    "NaN": (with_value(labels(), np.nan, dtype=np.float32), "1 voxels that are NaN or infinite", "numbers"),
    "empty": (labels() * 0, "an empty label map", "at least one structure"),
    "shape": (labels()[:15], "shape (15, 16, 16)", "(17, 16, 16) (site.json)"),
}


@pytest.mark.parametrize("case", IN_LABEL)
def test_violation_in_a_label_map(site, case):
    volume, found, expected = IN_LABEL[case]
    write_volume(site / "labels/d.nii.gz", volume, AFFINE)
    assert violations(site) == [("labels/d.nii.gz", found, expected)]


def test_whole_numbers_kept_as_floats_are_labels(site):
    write_volume(site / "labels/d.nii.gz", labels().astype(np.float32), AFFINE)
    assert check_site(site) == []


@pytest.mark.parametrize("axes", [1, 2])
def test_axes_of_length_one_after_the_third_are_fine(site, axes):
    for file, voxels in (("images/d.nii.gz", scan(3)), ("labels/d.nii.gz", labels())):
        (site / file).write_bytes(image_of(voxels.reshape(voxels.shape + (1,) * axes)))
    assert check_site(site) == []


def test_nifti2_and_plain_nifti_are_fine(site, edit):
    (site / "images/a.nii.gz").write_bytes(image_of(scan(0), kind=nib.Nifti2Image))
    (site / "images/b.nii").write_bytes(nib.Nifti1Image(scan(1), AFFINE).to_bytes())
    edit(lambda spec: spec["training"][1].update(image="images/b.nii"))
    assert check_site(site) == []


def test_the_atlas_must_hold_every_structure(site):
    label = np.where(np.isin(labels(), (12, 4)), 0, labels()).astype(np.uint8)
    write_volume(site / "atlas/label.nii.gz", label, AFFINE)
    assert violations(site) == [
        ("atlas/label.nii.gz", "no voxel of lateral ventricle, amygdala", "all structures of site.json")
    ]


def test_a_copy_of_a_training_scan_in_the_test_is_found_by_its_voxels(site):
    (site / "images/d.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(scan(1), AFFINE).to_bytes(), 1))
    assert violations(site) == [
        ("images/d.nii.gz", f"the same voxels as in {site}/images/b.nii.gz (training)", "no scan in two sections")
    ]


def test_a_copy_within_a_section_is_found(site):
    (site / "images/b.nii.gz").write_bytes((site / "images/a.nii.gz").read_bytes())
    assert violations(site) == [
        ("images/b.nii.gz", f"the same voxels as in {site}/images/a.nii.gz (training)", "each scan once")
    ]


def test_all_violations_are_listed_at_once(site, edit):
    edit(lambda spec: (spec.update(spacing="2mm"), spec["test"][0].pop("label")))
    (site / "images/a.nii.gz").write_bytes(b"")
    write_volume(site / "images/b.nii.gz", with_value(scan(1), np.inf), AFFINE)
    where = [fault[0] for fault in violations(site)]
    assert where == ["site.json: spacing", "site.json: test[0].label", "images/a.nii.gz", "images/b.nii.gz"]
    assert all(len(str(fault).splitlines()) == 1 for fault in check_site(site))


@pytest.mark.parametrize("content", ["{", "[]", "null", '"site"', "{}", '{"training": 3, "atlas": [1], "test": [[]]}'])
def test_a_hopeless_description_raises_nothing(site, content):
    (site / "site.json").write_text(content)
    found = check_site(site)
    assert found and all(fault.where.startswith(f"{site}/site.json") for fault in found)


def test_a_grid_on_which_the_network_cannot_be_trained_is_refused(site, edit):
    edit(put("shape", [16, 16, 16]))
    assert violations(site)[0] == (
        "site.json: shape", "[16, 16, 16]", "three whole numbers above 0, the largest of them 17 or more"
    )  # fmt: skip


@pytest.mark.parametrize("size", [4, 16])
def test_a_brain_of_an_implausible_size_is_refused_where_it_is_refused_in_training(site, size):
    for path in site.rglob("*.nii.gz"):
        write_volume(path, read_volume(path).voxels, np.diag([size] * 3 + [1.0]))
    found = [(where, found) for where, found, _ in violations(site) if "litres" in found]
    assert len(found) == 5 and found[0] == ("atlas/image.nii.gz", f"{size**3 / 1000:.2g} litres above 0")


def test_the_atlas_alone_can_be_checked(site):
    (site / "images/a.nii.gz").write_bytes(b"")
    assert len(check_site(site)) == 1 and check_site(site, atlas_alone=True) == []
    write_volume(site / "atlas/label.nii.gz", with_value(labels(), 14), AFFINE)
    assert [fault.found for fault in check_site(site, atlas_alone=True)] == ["unknown label ids 14"]


def test_a_missing_folder_is_one_line(tmp_path):
    (fault,) = check_site(tmp_path / "x")
    assert (fault.where, fault.found) == (f"{tmp_path}/x", "no such folder") and "fedsr prepare" in fault.fix


def test_the_description_is_not_changed(site):
    before = (site / "site.json").read_bytes()
    check_site(site)
    assert (site / "site.json").read_bytes() == before and json.loads(before)["name"] == "ward"


def test_fine_labels_of_the_atlas_are_a_third_of_its_voxels(site, edit):
    """Those of another grid, or with other labels, are named."""
    edit(lambda spec: spec["atlas"].update(fine_label="atlas/fine_label.nii.gz"))
    file, affine = site / "atlas/fine_label.nii.gz", fine_affine(AFFINE)
    assert [fault.where for fault in check_site(site)] == [f"{site / 'site.json'}: atlas.fine_label"]
    fine = np.kron(labels(), np.ones((3, 3, 3), np.uint8))
    write_volume(file, fine[1:-1, 1:-1, 1:-1], affine)
    assert check_site(site) == []
    write_volume(file, fine, affine)
    (fault,) = check_site(site)
    assert fault.where == str(file) and "(51, 48, 48)" in fault.found and "(49, 46, 46)" in fault.expected
    write_volume(file, fine[1:-1, 1:-1, 1:-1], AFFINE)
    (fault,) = check_site(site)
    assert "affine row" in fault.found and "a third of the atlas' voxels" in fault.expected
    write_volume(file, np.minimum(fine[1:-1, 1:-1, 1:-1], 12), affine)
    (fault,) = check_site(site)
    assert fault.where == str(file) and "cerebellum cortex" in str(fault)

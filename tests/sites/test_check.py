from __future__ import annotations

import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.sites.check import check_site
from fedsr_monai.spatial.nifti import write_volume
from tests.helpers.specimen import AFFINE, labels, scan


def test_a_sound_site_has_no_breach(site):
    assert check_site(site) == []


def drop(key):
    return lambda spec: spec.pop(key)


def put(key, value):
    return lambda spec: spec.update({key: value})


def first(section, **change):
    return lambda spec: spec[section][0].update(change)


IN_JSON = {
    "missing key": (drop("shape"), "'shape' is missing, expected three whole numbers above 0: write the number of voxels of the images along x, y, z"),
    "zero spacing": (put("spacing", [2, 0, 2]), "'spacing' is [2, 0, 2], expected three numbers above 0 (mm): write the voxel size of the images"),
    "endless spacing": (put("spacing", [2, float("inf"), 2]), "'spacing' is [2, Infinity, 2], expected three numbers above 0 (mm): write the voxel size of the images"),
    "shape of floats": (put("shape", [16.0, 16, 16]), "'shape' is [16.0, 16, 16], expected three whole numbers above 0: write the number of voxels of the images along x, y, z"),
    "shape of booleans": (put("shape", [True, 16, 16]), "'shape' is [true, 16, 16], expected three whole numbers above 0: write the number of voxels of the images along x, y, z"),
    "name as a path": (put("name", "../ward"), "'name' is \"../ward\", expected a name of letters, digits, '.', '_' and '-': choose one, it names the site's folders in every run"),
    "labels with a gap": (put("labels", {"0": "background", "2": "brain"}), "'labels' is {\"0\": \"background\", \"2\": \"brain\"}, expected ids '0' to 'N' without a gap, each with a name: list all structures, background as '0'"),
    "no atlas": (drop("atlas"), "'atlas' is missing, expected an object with 'image' and 'label': name the atlas' two files"),
    "atlas without labels": (lambda spec: spec["atlas"].pop("label"), "'atlas.label' is missing, expected a path below the site folder: add the label of this case"),
    "atlas file gone": (lambda spec: spec["atlas"].update(image="atlas/x.nii.gz"), "'atlas.image' is atlas/x.nii.gz, which is not there, expected an existing file: restore the file or remove the entry"),
    "empty training": (put("training", []), "'training' is [], expected a list of at least one scan: add a scan of this site"),
    "test as text": (put("test", "d"), "'test' is \"d\", expected a list of scans: write [] if there is none"),
    "entry as text": (put("validation", ["images/c.nii.gz"]), "'validation[0]' is \"images/c.nii.gz\", expected an object with 'image': write {\"image\": \"images/NAME.nii.gz\"}"),
    "misspelt key": (first("training", lable="labels/a.nii.gz"), "'training[0].lable' is unknown, expected only 'image' and 'label': remove or rename it"),
    "test without label": (lambda spec: spec["test"][0].pop("label"), "'test[0].label' is missing, expected a path below the site folder: add the label of this case"),
    "path as number": (first("training", image=3), "'training[0].image' is 3, expected a path below the site folder: write it as text"),
    "absolute path": (first("training", image="/images/a.nii.gz"), "'training[0].image' is the absolute path /images/a.nii.gz, expected a path relative to the site folder: move or link the file into the folder"),
    "path outside": (first("training", image="images/../../a.nii.gz"), "'training[0].image' is images/../../a.nii.gz, outside the site folder, expected a path below it: move or link the file into the folder"),
    "training and test": (first("test", image="images/a.nii.gz"), "'test[0].image' is images/a.nii.gz, as is 'training[0].image', expected each file once: remove one of the two entries"),
    "twice in training": (lambda spec: spec["training"].append({"image": "./images/a.nii.gz"}), "'training[2].image' is images/a.nii.gz, as is 'training[0].image', expected each file once: remove one of the two entries"),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_JSON)
def test_breach_in_site_json(site, edit, case):
    change, message = IN_JSON[case]
    edit(change)
    assert check_site(site) == [f"{site}/site.json: {message}"]


def image_of(array, affine=AFFINE, kind=nib.Nifti1Image):
    return gzip.compress(kind(array, affine).to_bytes())


def with_value(array, value, place=(5, 5, 5), dtype=None):
    array = array.astype(dtype or array.dtype)
    array[place] = value
    return array


def no_pixdim():
    image = nib.Nifti1Image(scan(0), None)
    image.header["pixdim"][1:4] = 6, 0, 6
    return gzip.compress(image.header.binaryblock + b"\0" * 4 + scan(0).tobytes())


def moved(x):
    affine = AFFINE.copy()
    affine[0, 3] = x
    return affine


GOOD = image_of(scan(0))
IN_IMAGE = {
    "empty file": (b"", "empty file, expected a NIfTI volume: copy or export it again"),
    "not NIfTI": (gzip.compress(b"DICM" * 200), "is not NIfTI, expected a NIfTI-1 or -2 volume: convert it, for example with dcm2niix or nibabel"),
    "plain under a gzip name": (gzip.decompress(GOOD), "is not a gzip stream, expected .nii.gz for compressed and .nii for plain NIfTI: rename or compress it"),
    "truncated gzip": (GOOD[: len(GOOD) // 2], "broken gzip stream (Compressed file ended before the end-of-stream marker was reached), expected a complete file: copy or export it again"),
    "truncated before gzip": (gzip.compress(gzip.decompress(GOOD)[:1000]), "damaged NIfTI (Expected 16384 bytes, got 648 bytes from object - could the file be damaged?), expected a complete volume: copy or export it again"),
    "four dimensions": (image_of(np.stack([scan(0)] * 2, -1)), "has 4 dimensions (16, 16, 16, 2), expected a 3-D volume: keep one volume of the series"),
    "complex": (image_of(scan(0).astype(np.complex64)), "holds complex64 voxels, expected whole numbers or floats: export it as one channel"),
    "shape": (image_of(scan(0)[:, :, :15]), "shape (16, 16, 15), expected (16, 16, 16) (site.json): resample it to the site's grid"),
    "spacing": (image_of(scan(0), np.diag([6, 5.5, 6, 1])), "spacing (6, 5.5, 6) mm, expected (6, 6, 6) (site.json): resample it to the site's grid"),
    "zero spacing": (no_pixdim(), "spacing (6, 0, 6) mm, expected sizes above 0: mend the header's pixdim"),
    "orientation": (image_of(scan(0), np.diag([-6, 6, 6, 1])), "orientation LAS, expected RAS: reorient it, for example with nibabel.as_closest_canonical"),
    "affine": (image_of(scan(0), moved(3)), "affine row 1 is (6, 0, 0, 3), expected (6, 0, 0, 0) (the atlas image): resample it to the atlas' grid"),
    "NaN": (image_of(with_value(scan(0), np.nan)), "1 voxels are NaN or infinite, expected numbers in [0, 1]: mend the preprocessing of this scan"),
    "constant": (image_of(np.full((16, 16, 16), 0.5, np.float32)), "constant image (all 0.5), expected a scan: export it again or remove the entry"),
    "intensities": (image_of(with_value(scan(0), 3)), "intensities from 0 to 3, expected [0, 1]: rescale them"),
    "background": (image_of(np.maximum(scan(0), 0.125)), "background is not zero (0 % of the outer voxels are 0), expected exactly 0: strip the skull and mask"),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_IMAGE)
def test_breach_in_an_image(site, case):
    content, message = IN_IMAGE[case]
    (site / "images/a.nii.gz").write_bytes(content)
    assert check_site(site) == [f"{site}/images/a.nii.gz: {message}"]


IN_LABEL = {
    "unknown ids": (with_value(labels(), 77), "unknown label ids 77, expected 0 to 13 (site.json): map or remove them"),
    "fraction": (with_value(labels(), 2.5, dtype=np.float32), "label 2.5 is not a whole number, expected ids: resample label maps with nearest neighbour"),
    "NaN": (with_value(labels(), np.nan, dtype=np.float32), "NaN or infinite labels, expected whole numbers: export the label map again"),
    "empty": (labels() * 0, "empty label map, expected at least one structure: export it again or remove the entry"),
    "shape": (labels()[:15], "shape (15, 16, 16), expected (16, 16, 16) (site.json): resample it to the site's grid"),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_LABEL)
def test_breach_in_a_label_map(site, case):
    volume, message = IN_LABEL[case]
    write_volume(site / "labels/d.nii.gz", volume, AFFINE)
    assert check_site(site) == [f"{site}/labels/d.nii.gz: {message}"]


def test_whole_numbers_kept_as_floats_are_labels(site):
    write_volume(site / "labels/d.nii.gz", labels().astype(np.float32), AFFINE)
    assert check_site(site) == []


def test_nifti2_and_plain_nifti_are_fine(site, edit):
    (site / "images/a.nii.gz").write_bytes(image_of(scan(0), kind=nib.Nifti2Image))
    (site / "images/b.nii").write_bytes(nib.Nifti1Image(scan(1), AFFINE).to_bytes())
    edit(lambda spec: spec["training"][1].update(image="images/b.nii"))
    assert check_site(site) == []


def test_the_atlas_must_hold_every_structure(site):
    write_volume(
        site / "atlas/label.nii.gz", np.where(np.isin(labels(), (12, 4)), 0, labels()).astype(np.uint8), AFFINE
    )
    assert check_site(site) == [
        f"{site}/atlas/label.nii.gz: no voxel of lateral ventricle, amygdala, expected all structures of site.json: "
        "label them or shorten the list"
    ]


def test_a_copy_of_a_training_scan_in_the_test_is_found_by_its_voxels(site):
    (site / "images/d.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(scan(1), AFFINE).to_bytes(), 1))
    assert check_site(site) == [
        f"{site}/images/d.nii.gz: holds the same voxels as {site}/images/b.nii.gz (training), expected no scan in two "
        "sections: remove one of the two"
    ]


def test_a_copy_within_a_section_is_found(site):
    (site / "images/b.nii.gz").write_bytes((site / "images/a.nii.gz").read_bytes())
    assert check_site(site) == [
        f"{site}/images/b.nii.gz: holds the same voxels as {site}/images/a.nii.gz (training), expected each scan once: "
        "remove one of the two"
    ]


def test_all_breaches_are_listed_at_once(site, edit):
    edit(lambda spec: (spec.update(spacing="2mm"), spec["test"][0].pop("label")))
    (site / "images/a.nii.gz").write_bytes(b"")
    write_volume(site / "images/b.nii.gz", with_value(scan(1), np.inf), AFFINE)
    found = check_site(site)
    assert [line.split(": ")[0].removeprefix(f"{site}/") for line in found] == [
        "site.json", "site.json", "images/a.nii.gz", "images/b.nii.gz"
    ]  # fmt: skip
    assert all("expected" in line and "\n" not in line for line in found)


@pytest.mark.parametrize("content", ["{", "[]", "null", '"site"', "{}", '{"training": 3, "atlas": [1], "test": [[]]}'])
def test_a_hopeless_description_raises_nothing(site, content):
    (site / "site.json").write_text(content)
    assert check_site(site) and all(line.startswith(f"{site}/site.json: ") for line in check_site(site))


def test_a_missing_folder_is_one_line(tmp_path):
    assert check_site(tmp_path / "x") == [
        f"{tmp_path}/x: no such folder, expected a site folder with site.json: write one of your scans with `fedsr prepare`, or a simulated one with `fedsr simulate`"
    ]


def test_the_description_is_not_changed(site):
    before = (site / "site.json").read_bytes()
    check_site(site)
    assert (site / "site.json").read_bytes() == before and json.loads(before)["name"] == "ward"

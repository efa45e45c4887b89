from __future__ import annotations

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.prepare import site as module
from fedsr_monai.prepare.atlas import AtlasFiles
from fedsr_monai.prepare.site import prepare_site
from fedsr_monai.sites.check import check_site
from fedsr_monai.sites.site import load_site
from tests.helpers.raw_scans import SHAPE, SPACING, atlas, raw_scan, save

GRID = {"spacing": SPACING, "shape": SHAPE}
FLIPPED = "a better fit to the atlas turned by 180 degrees about y than as the header says"


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory):
    """A site of three scans and one that was refused, made once."""
    root = tmp_path_factory.mktemp("made") / "clinic"
    with pytest.raises(UserError) as caught:
        prepare_site(scans, root, processes=2, **GRID)
    return root, caught.value.errors


def bytes_of(root) -> dict:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_bad_scan_is_named_and_the_others_make_a_site(made, scans):
    root, (fault,) = made
    assert (fault.where, fault.found) == (f"{scans}/flip.nii.gz", FLIPPED)
    assert check_site(root) == []
    site = load_site(root)
    assert (site.name, site.shape, site.spacing) == ("clinic", SHAPE, (SPACING,) * 3)
    sections = {
        key: [entry["image"].rsplit("/", 1)[1] for entry in getattr(site, key)]
        for key in ("training", "validation", "test")
    }
    assert sections["training"] == ["eve.nii.gz"] and sections["validation"] == [] and len(sections["test"]) == 2
    with open(root / "prepare/scans.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(("ann", "bob", "eve"), "prepared") | {
        "flip": "refused"
    }
    assert (
        rows["flip"]["reason"] == str(fault)
        and float(rows["ann"]["overlap"]) > 0.85
        and rows["ann"]["mask"] == "stripped"
    )
    assert all((root / "prepare" / f"{name}.png").stat().st_size > 20000 for name in ("ann", "bob", "eve"))


def test_scans_and_labels_are_registered_to_the_atlas(made):
    root, _ = made
    image, label, _ = atlas()
    for name in ("ann", "bob"):
        scan, own = (np.asarray(nib.load(root / kind / f"{name}.nii.gz").dataobj) for kind in ("images", "labels"))
        assert np.corrcoef(scan.ravel(), image.ravel())[0, 1] > 0.95
        dice = [2 * ((own == k) & (label == k)).sum() / ((own == k).sum() + (label == k).sum()) for k in (2, 3, 10, 13)]
        assert min(dice) > 0.7


def test_the_matrix_of_the_record_is_the_pose_of_the_scan(made):
    root, _ = made
    _, label, grid = atlas()
    for seed, name in enumerate(("ann", "bob", "eve")):
        place = raw_scan(seed)[3]
        loop = (
            np.array(json.loads((root / f"prepare/{name}.json").read_text())["matrix"]) @ place
        )  # atlas to scan to atlas
        points = np.argwhere(label > 0) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        error = np.linalg.norm(points @ loop[:3, :3].T + loop[:3, 3] - points, axis=1)
        assert error.mean() < 3  # half a voxel of the grid that it was found on


def test_a_finished_run_does_nothing_and_a_killed_one_resumes(made, scans, tmp_path, monkeypatch):
    root = shutil.copytree(made[0], tmp_path / "clinic")
    before = bytes_of(root)
    (root / "prepare/eve.json").unlink()  # what a kill in the middle of a scan leaves
    (root / "site.json").unlink()
    asked = []
    monkeypatch.setattr(
        module, "prepare_job", lambda job, do=module.prepare_job: asked.append(job.source.name) or do(job)
    )
    with pytest.raises(UserError):
        prepare_site(scans, root, processes=1, **GRID)
    assert sorted(asked) == ["eve", "flip"]  # refused scans are tried again: they may have been fixed
    after = bytes_of(root)
    same = [path for path in before if path.suffix == ".gz" or path.name == "site.json"]
    assert len(same) == 8 and all(after[path] == before[path] for path in same)


def test_a_folder_of_other_settings_or_other_files_is_left_alone(made, scans, tmp_path):
    with pytest.raises(UserError, match="clinic: found a site of other settings"):
        prepare_site(scans, made[0], spacing=5.0, shape=(40, 44, 40))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(UserError, match="mine: found files of something else.*another folder for --out"):
        prepare_site(scans, tmp_path / "mine", **GRID)


def test_the_site_s_own_atlas_of_freesurfer_ids(scans, tmp_path):
    """The atlas' image is one of the scans: it is then no training scan."""
    back = {1: 14, 2: 41, 3: 1003, 4: 4, 5: 7, 6: 49, 7: 11, 8: 12, 9: 13, 10: 16, 11: 17, 12: 18, 13: 8}
    label = nib.load(scans / "ann_dseg.nii.gz")
    ids = np.zeros(2000, np.int32)
    ids[list(back)] = list(back.values())
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ann", "eve"):
        shutil.copy(scans / f"{name}.nii.gz", source)
    save(tmp_path / "aparc.nii.gz", ids[np.asarray(label.dataobj)], label.affine)
    root = prepare_site(
        source, tmp_path / "site", AtlasFiles(source / "ann.nii.gz", tmp_path / "aparc.nii.gz"), processes=1, **GRID
    )
    assert check_site(root) == []
    site = load_site(root)
    assert [entry["image"].rsplit("/", 1)[1] for entry in site.training] == ["eve.nii.gz"] and not site.test
    own, standard = np.asarray(nib.load(site.atlas["label"]).dataobj), atlas()[1]
    assert set(np.unique(own)) == set(range(14))
    assert 2 * ((own == 2) & (standard == 2)).sum() / ((own == 2).sum() + (standard == 2).sum()) > 0.75
    assert (root / "prepare/atlas.png").is_file()

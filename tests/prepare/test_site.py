from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.files import write_bytes
from fedsr_monai.prepare import site as module
from fedsr_monai.prepare.atlas import AtlasFiles
from fedsr_monai.prepare.pipeline import Prepared
from fedsr_monai.prepare.quality import Quality
from fedsr_monai.prepare.site import Job, claim, prepare_site
from fedsr_monai.prepare.sources import Source
from fedsr_monai.sites.check import check_site
from fedsr_monai.sites.site import load_site
from fedsr_monai.spatial.grid import Grid
from tests.helpers.dicom_series import write_series
from tests.helpers.killing import killed_at_its_writes
from tests.helpers.raw_scans import SHAPE, SPACING, atlas, raw_scan, save

pytestmark = pytest.mark.slow

GRID = {"spacing": SPACING, "shape": SHAPE}
SEEDS = {"ann": 0, "bob": 1, "eve": 2}  # of raw_scan, see `scans`
FLIPPED = "a better fit to the atlas turned by 180 degrees about y than as the header says"


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory):
    """A site of three scans and one that was refused, made once."""
    root = tmp_path_factory.mktemp("made") / "clinic"
    with pytest.raises(UserError) as caught:
        prepare_site(scans, root, processes=2, **GRID)
    return root, caught.value.errors


@pytest.fixture
def known(monkeypatch) -> None:
    """A registration that knows the answer, in no time: the pose of raw_scan."""

    def prepare_scan(scan, mask, atlas, grid, name):
        if "flip" in name:
            raise UserError(name, FLIPPED, "x to the right")
        if "itk" in name:
            raise RuntimeError("itk::ERROR:\n singular")
        place = raw_scan(SEEDS.get(Path(name).name.partition(".")[0], 2))[3]
        own = Grid(scan.affine, scan.voxels.shape)
        fit = Quality(0.9, 0.8, (1.0, 1.0, 1.0), 0.0)
        return Prepared(scan.voxels, scan.voxels > 0, "given", own, np.linalg.inv(place), fit)

    monkeypatch.setattr(module, "prepare_scan", prepare_scan)


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


def killed(target, until) -> None:
    """Run `target` in a process of its own and kill it as soon as `until()` is true."""
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    while process.is_alive() and not until():
        time.sleep(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_run_resumes_and_a_finished_one_does_nothing(known, scans, tmp_path, monkeypatch):
    whole, root = tmp_path / "whole", tmp_path / "clinic"
    with pytest.raises(UserErrors, match="flip.nii.gz"):
        prepare_site(scans, whole, name="clinic", processes=1, **GRID)
    prepare_job = module.prepare_job

    def hang_at_bob() -> None:
        module.prepare_job = lambda job: time.sleep(600) if job.source.name == "bob" else prepare_job(job)
        prepare_site(scans, root, processes=1, **GRID)

    killed(hang_at_bob, (root / "prepare/ann.json").is_file)
    assert not (root / "site.json").exists()
    asked = []
    monkeypatch.setattr(module, "prepare_job", lambda job: asked.append(job.source.name) or prepare_job(job))
    with pytest.raises(UserErrors, match="flip.nii.gz"):
        prepare_site(scans, root, processes=1, **GRID)
    assert asked == ["bob", "eve", "flip"]  # refused scans are tried again: they may have been fixed
    before, after = bytes_of(whole), bytes_of(root)
    same = [path for path in before if path.suffix == ".gz" or path.name == "site.json"]
    assert len(same) == 9 and all(after[path] == before[path] for path in same)
    asked.clear()
    with pytest.raises(UserErrors):
        prepare_site(scans, root, processes=1, **GRID)
    assert asked == ["flip"]


def test_killed_at_any_write_it_ends_in_the_same_bytes(known, scans, tmp_path, monkeypatch):
    """At the claim of the folder, in the middle of a scan, between two scans."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ann.nii.gz", "ann_dseg.nii.gz", "eve.nii.gz"):
        (source / name).symlink_to(scans / name)
    monkeypatch.setattr(module, "write_qc", lambda path, *_: write_bytes(path, b"a picture"))  # drawing takes longest

    def run(root: Path) -> None:
        prepare_site(source, root, name="clinic", processes=1, **GRID)

    def results(root: Path) -> dict[Path, bytes]:
        """All files but the records and the table, which tell the seconds."""
        return {
            path: content
            for path, content in bytes_of(root).items()
            if path.suffix == ".gz" or path.name == "site.json"
        }

    run(tmp_path / "whole")
    assert killed_at_its_writes(lambda: run(tmp_path / "writes")) >= 4
    assert len(results(tmp_path / "whole")) == 7
    assert results(tmp_path / "writes") == results(tmp_path / "whole")


def test_a_kill_while_the_folder_is_claimed_does_not_block_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
    killed(lambda: claim(tmp_path / "clinic", {"spacing": 2.0}), lambda: False)
    monkeypatch.undo()
    assert list((tmp_path / "clinic/prepare").iterdir())  # what it was writing
    claim(tmp_path / "clinic", {"spacing": 2.0})
    assert (tmp_path / "clinic/prepare/settings.json").is_file()


def spoiled(folder: Path, scans: Path) -> dict[str, str]:
    """Fill a folder with scans that cannot be prepared, and with a sound one, as it is, in metres and as DICOM; return what is found."""
    folder.mkdir()
    sound = nib.load(scans / "eve.nii.gz")
    voxels = np.asarray(sound.dataobj)
    nib.save(sound, folder / "sound.nii.gz")
    save(folder / "series.nii.gz", np.stack([voxels] * 2, -1), sound.affine)
    (folder / "link.nii.gz").symlink_to(folder / ".git/annex/objects/link.nii.gz")
    save(folder / os.fsdecode("Andr\u00e9.nii.gz".encode("latin-1")), voxels, sound.affine)
    save(folder / "itk.nii.gz", voxels, sound.affine)
    flat = sound.affine.copy()
    flat[1] = 0
    image = nib.Nifti1Image(voxels, sound.affine)
    for axis in "xyz":
        image.header[f"srow_{axis}"] = flat["xyz".index(axis)]
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    (folder / "row.nii").write_bytes(image.header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    metre = nib.Nifti1Image(voxels, np.diag([0.001, 0.001, 0.001, 1]) @ sound.affine)
    metre.header.set_xyzt_units("meter")
    nib.save(metre, folder / "metre.nii.gz")
    write_series(folder / "dicom", voxels, sound.affine)
    write_series(folder / "hole", voxels, sound.affine, skip=(9,))
    return {
        "hole": "1 missing slice",
        "series.nii.gz": "the shape",
        "link.nii.gz": "a link to",
        "Andr\\xe9.nii.gz": "a name that is not UTF-8",
        "itk.nii.gz": "RuntimeError: itk::ERROR: singular",
        "row.nii": "a singular affine",
    }


def test_every_scan_is_its_own_unit_of_failure(known, scans, tmp_path, capsys):
    """The others are prepared, and each refusal is printed when it happens and raised at the end."""
    folder, root = tmp_path / "raw", tmp_path / "site"
    expected = spoiled(folder, scans)

    with pytest.raises(UserErrors) as caught:
        prepare_site(folder, root, processes=1, **GRID)
    found = {fault.where.rsplit("/", 1)[1].partition(":")[0]: fault.found for fault in caught.value.errors}
    assert set(found) == set(expected) and all(found[name].startswith(text) for name, text in expected.items())
    assert [line.removeprefix("fedsr: ") for line in capsys.readouterr().err.splitlines() if "fedsr: " in line] == [
        str(fault) for fault in caught.value.errors
    ]
    site = load_site(root)
    assert sorted(Path(entry["image"]).name for entry in site.training) == [
        "dicom.nii.gz",
        "metre.nii.gz",
        "sound.nii.gz",
    ]
    sound, metre, dicom = (
        np.asarray(nib.load(root / f"images/{name}.nii.gz").dataobj) for name in ("sound", "metre", "dicom")
    )
    assert sound.max() == 1 and np.abs(sound - metre).max() < 1e-3 and np.abs(sound - dicom).max() < 1e-3
    with open(root / "prepare/scans.csv", newline="") as file:
        status = {row["name"].rsplit("/", 1)[-1]: row["status"] for row in csv.DictReader(file)}
    assert list(status.values()).count("refused") == 6 and status["sound"] == status["metre"] == "prepared"


def die_of_the_killer(job) -> None:
    if job.source.name == "killer":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_costs_the_scan_that_it_dies_of(tmp_path, monkeypatch):
    jobs = [
        Job(tmp_path, Source(name, name, tmp_path / f"{name}.nii.gz"), "training", {})
        for name in ("ann", "bob", "killer", "eve")
    ]
    monkeypatch.setattr(module, "prepare_job", die_of_the_killer)
    result = {job.source.name: fault for job, fault in module.run_jobs(jobs, 2)}
    assert set(result) == {"ann", "bob", "killer", "eve"}
    assert result.pop("killer").found == "that its process was killed" and not any(result.values())


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


def marked(volume: np.ndarray, number: int) -> np.ndarray:
    """Another scan of the same brain."""
    return np.where(volume > 0, volume + number, 0).astype(np.int16)


def test_templates_are_left_out_and_it_is_said(known, tmp_path, capsys):
    volume, label, grid, _ = raw_scan(2)
    for number, name in enumerate(("fsaverage5", "cvs_avg35", "sub-01", "sub-02")):
        for kind, voxels in (("T1", marked(volume, number)), ("brainmask", volume)):
            path = tmp_path / "subjects" / name / "mri" / f"{kind}.mgz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.MGHImage(voxels.astype(np.float32), grid.affine), path)
    root = prepare_site(tmp_path / "subjects", tmp_path / "site", processes=1, **GRID)
    assert [Path(entry["image"]).name for entry in load_site(root).training] == ["sub-01.nii.gz", "sub-02.nii.gz"]
    said = capsys.readouterr().err
    assert all(f"{name}/mri/T1.mgz: left out" in said for name in ("fsaverage5", "cvs_avg35"))
    with open(root / "prepare/scans.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["fsaverage5"]["status"] == "left out" and "template" in rows["fsaverage5"]["reason"]


def test_scans_with_maps_of_tissues_train_without_labels_and_it_is_said(known, tmp_path, capsys):
    volume, label, grid, _ = raw_scan(2)
    tissues = np.array([0, 1, 3, 2, *[2] * 10], np.uint8)[label]  # fluid, grey and white matter
    for number in (1, 2):
        scan, derived = (f"sub-0{number}/anat/sub-0{number}", f"derivatives/fmriprep/sub-0{number}/anat/sub-0{number}")
        save(tmp_path / "bids" / f"{scan}_T1w.nii.gz", marked(volume, number), grid.affine)
        save(tmp_path / "bids" / f"{derived}_dseg.nii.gz", tissues, grid.affine)
    root = prepare_site(tmp_path / "bids", tmp_path / "site", processes=1, **GRID)
    site = load_site(root)
    assert len(site.training) == 2 and not site.validation and not site.test and check_site(root) == []
    said = capsys.readouterr().err
    assert said.count("_dseg.nii.gz: a map of tissues") == 2

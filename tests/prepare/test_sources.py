from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.sources import find_sources
from tests.helpers.dicom_series import write_series


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def summary(root: Path, layout: str | None = None) -> dict:
    def relative(path):
        return path and str(path.relative_to(root))

    return {
        s.name: (s.person, relative(s.image), relative(s.mask), relative(s.label))
        for s in find_sources(root, layout).sources
    }


def test_bids(tmp_path):
    pre = "derivatives/fmriprep/sub-01/ses-1/anat/sub-01_ses-1"
    touch(
        tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii", "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz", "sub-02/func/sub-02_task-rest_bold.nii.gz", f"{pre}_desc-brain_mask.nii.gz", f"{pre}_dseg.nii.gz",
        f"{pre}_desc-aparcaseg_dseg.nii.gz", f"{pre}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", "dataset_description.json",
    )  # fmt: skip
    assert summary(tmp_path) == {
        "sub-01_ses-1_T1w": ("sub-01", "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", f"{pre}_desc-brain_mask.nii.gz", f"{pre}_desc-aparcaseg_dseg.nii.gz"),
        "sub-01_ses-2_T1w": ("sub-01", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii", None, None),
        "sub-02_T1w": ("sub-02", "sub-02/anat/sub-02_T1w.nii.gz", None, None),
    }  # fmt: skip


def test_freesurfer(tmp_path):
    touch(
        tmp_path, "ann/mri/orig.mgz", "ann/mri/T1.mgz", "ann/mri/brainmask.mgz", "ann/mri/aseg.mgz", "ann/mri/aparc+aseg.mgz",
        "bob/mri/T1.mgz", "eve_t1/mri/orig.mgz", "eve_t1.long.eve/mri/orig.mgz",
        "eve_t2.long.eve/mri/orig.mgz", "eve/mri/orig.mgz", "eve/base-tps", "unfinished/mri/rawavg.mgz",
    )  # fmt: skip
    assert summary(tmp_path) == {
        "ann": ("ann", "ann/mri/orig.mgz", "ann/mri/brainmask.mgz", "ann/mri/aparc+aseg.mgz"),
        "bob": ("bob", "bob/mri/T1.mgz", None, None),
        "eve_t1.long.eve": ("eve", "eve_t1.long.eve/mri/orig.mgz", None, None),
        "eve_t2.long.eve": ("eve", "eve_t2.long.eve/mri/orig.mgz", None, None),
    }


@pytest.mark.parametrize("folder", ["ann", "ann/mri"])
def test_one_subject_of_freesurfer(tmp_path, folder):
    touch(
        tmp_path, "ann/mri/orig.mgz", "ann/mri/brainmask.mgz", "ann/mri/aseg.mgz", "ann/mri/wm.mgz", "ann/surf/lh.white"
    )
    (source,) = find_sources(tmp_path / folder).sources
    mri = tmp_path / "ann" / "mri"
    assert (source.name, source.image, source.mask) == ("ann", mri / "orig.mgz", mri / "brainmask.mgz")
    assert source.label == mri / "aseg.mgz"


def test_flat(tmp_path):
    touch(
        tmp_path, "a.nii.gz", "a_mask.nii.gz", "a_dseg.nii.gz", "b_v1.nii", "b_v2.nii", "b_v1_brain_mask.nii", "labels/b_v2.nii.gz", "c.nii.gz",
        "masks/c_mask.nii.gz", "notes.txt", "sub-7_ses-1_T1w.nii.gz", "brain_mask.nii.gz", "sub-8_T1w.nii.gz", "sub-8_dseg.nii.gz",
        "masks/sub-8_mask.nii.gz", "sub-9_T1w.nii.gz", "sub-9_T1w_dseg.nii.gz",
    )  # fmt: skip
    assert summary(tmp_path) == {
        "a": ("a", "a.nii.gz", "a_mask.nii.gz", "a_dseg.nii.gz"),
        "b_v1": ("b", "b_v1.nii", "b_v1_brain_mask.nii", None),
        "b_v2": ("b", "b_v2.nii", None, "labels/b_v2.nii.gz"),
        "c": ("c", "c.nii.gz", "masks/c_mask.nii.gz", None),
        "sub-7_ses-1_T1w": ("sub-7", "sub-7_ses-1_T1w.nii.gz", None, None),
        "sub-8_T1w": ("sub-8", "sub-8_T1w.nii.gz", "masks/sub-8_mask.nii.gz", "sub-8_dseg.nii.gz"),
        "sub-9_T1w": ("sub-9", "sub-9_T1w.nii.gz", None, "sub-9_T1w_dseg.nii.gz"),
    }


def test_what_is_not_a_source(tmp_path):
    for folder, layout, message in (
        (tmp_path / "none", None, f"{tmp_path}/none: found no such folder"),
        (tmp_path, None, f"{tmp_path}: found no scan, expected sub-*/anat/*_T1w.nii.gz (BIDS)"),
        (tmp_path, "minc", "--layout: found 'minc', expected one of bids, freesurfer, flat, dicom"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            find_sources(folder, layout)
        assert str(caught.value).startswith(message)


def persons(root: Path, **options) -> dict[str, str]:
    return {source.name: source.person for source in find_sources(root, **options).sources}


def test_one_name_stands_for_one_scan(tmp_path):
    found = find_sources(touch(tmp_path, "x.nii", "x.nii.gz", "y.nii.gz"))
    assert [source.image.name for source in found.sources] == ["x.nii", "y.nii.gz"]
    ((where, fault),) = found.refused.items()
    assert where == f"{tmp_path}/x.nii.gz" and fault.found == f"the name of {tmp_path}/x.nii"


TEMPLATES = (
    "fsaverage",
    "fsaverage5",
    "fsaverage_sym",
    "cvs_avg35",
    "cvs_avg35_inMNI152",
    "V1_average",
    "lh.EC_average",
)


def test_volumes_of_freesurfer_in_a_flat_folder(tmp_path):
    touch(
        tmp_path,
        "a.mgz",
        "a_brainmask.mgz",
        "a_aseg.mgz",
        "b.mgh",
        "labels/b_aparc+aseg.mgz",
        "c.nii.gz",
        "masks/c.mgz",
    )
    assert summary(tmp_path) == {
        "a": ("a", "a.mgz", "a_brainmask.mgz", "a_aseg.mgz"),
        "b": ("b", "b.mgh", None, "labels/b_aparc+aseg.mgz"),
        "c": ("c", "c.nii.gz", "masks/c.mgz", None),
    }


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_masks_and_label_maps_without_their_scans_are_no_scans(tmp_path, suffix):
    maps = ["a_dseg", "a_brain_mask", "b-labels", "c_desc-aparcaseg_dseg", "d_aseg", "aparc+aseg", "mask", "seg"]
    touch(
        tmp_path,
        "scan.nii.gz",
        "maskedT1.nii.gz",
        "labelled.nii",
        "unseg.nii.gz",
        *[f"{name}{suffix}" for name in maps],
    )
    found = find_sources(tmp_path)
    assert [source.name for source in found.sources] == ["labelled", "maskedT1", "scan", "unseg"]
    assert {source.name for source, _ in found.left_out} == set(maps)
    assert all("whose scan is not beside it" in reason for _, reason in found.left_out)
    touch(tmp_path, "a.nii.gz")
    (own,) = (source for source in find_sources(tmp_path).sources if source.name == "a")
    assert own.label == tmp_path / f"a_dseg{suffix}" and own.mask == tmp_path / f"a_brain_mask{suffix}"


def test_templates_of_freesurfer_are_not_patients(tmp_path):
    """FreeSurfer links its templates into the folder of the subjects."""
    touch(tmp_path / "home", *[f"{name}/mri/orig.mgz" for name in TEMPLATES])
    touch(tmp_path / "subjects", "sub-01/mri/T1.mgz")
    for name in TEMPLATES:
        (tmp_path / "subjects" / name).symlink_to(tmp_path / "home" / name)
    found = find_sources(tmp_path / "subjects")
    assert [source.name for source in found.sources] == ["sub-01"]
    assert {source.name for source, _ in found.left_out} == set(TEMPLATES)
    assert all("template" in reason for _, reason in found.left_out)


def save_labels(path: Path, ids) -> None:
    volume = np.zeros((4, 4, 4), np.uint8)
    volume.flat[: len(ids)] = ids
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.diag([2, 2, 2, 1])), path)


def test_maps_of_tissues_are_not_labels(tmp_path):
    """fMRIPrep's dseg without desc, and FSL's _seg: fluid, grey and white matter. A file's name may say that it has structures."""
    below = "derivatives/fmriprep/sub-0{0}/anat/sub-0{0}"
    touch(
        tmp_path,
        "bids/sub-01/anat/sub-01_T1w.nii.gz",
        "bids/sub-02/anat/sub-02_T1w.nii.gz",
        "bids/sub-03/anat/sub-03_T1w.nii.gz",
    )
    save_labels(tmp_path / "bids" / (below.format(1) + "_dseg.nii.gz"), range(4))
    save_labels(tmp_path / "bids" / (below.format(2) + "_dseg.nii.gz"), range(14))
    save_labels(tmp_path / "bids" / (below.format(3) + "_desc-aseg_dseg.nii.gz"), range(4))
    found = find_sources(tmp_path / "bids")
    assert [source.label is not None for source in found.sources] == [False, True, True]
    assert [path.name for path in found.tissue_maps] == ["sub-01_dseg.nii.gz"]
    touch(tmp_path / "flat", "a.nii.gz", "b.nii.gz")
    save_labels(tmp_path / "flat/a_seg.nii.gz", range(4))
    save_labels(tmp_path / "flat/b_seg.nii.gz", range(14))
    found = find_sources(tmp_path / "flat")
    assert [source.label is not None for source in found.sources] == [False, True]
    assert [path.name for path in found.tissue_maps] == ["a_seg.nii.gz"]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    root, archive = tmp_path / "bids", tmp_path / "archive"
    touch(archive, "ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    touch(archive, "fmriprep/sub-02/anat/sub-02_desc-brain_mask.nii.gz")
    touch(root, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "derivatives/README")
    (root / "sub-01/ses-2").symlink_to(archive / "ses-2")
    (root / "sub-01/ses-3").symlink_to(root / "sub-01/ses-1")  # the same session again
    (root / "sub-02").symlink_to(archive / "sub-02")
    (root / "derivatives/fmriprep").symlink_to(archive / "fmriprep")
    (archive / "fmriprep/sub-02/loop").symlink_to(archive / "fmriprep")
    assert list(summary(root)) == ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_T1w"]
    (other,) = [source for source in find_sources(root).sources if source.person == "sub-02"]
    assert other.mask is not None and other.mask.name == "sub-02_desc-brain_mask.nii.gz"
    assert find_sources(root).refused == {}


def test_links_without_a_target_are_scans_and_names_of_other_encodings_are_refused(tmp_path):
    touch(tmp_path, "b.nii.gz")
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / ".git/annex/a.nii.gz")
    touch(tmp_path, os.fsdecode("Andr\u00e9.nii.gz".encode("latin-1")))
    found = find_sources(tmp_path)
    assert [source.name for source in found.sources] == ["a", "b"]
    (fault,) = found.refused.values()
    assert "Andr\\xe9.nii.gz" in fault.where and "UTF-8" in fault.found and str(fault).isprintable()
    touch(tmp_path, "bids/sub-02/anat/sub-02_T1w.nii.gz")
    (tmp_path / "bids/sub-01/anat").mkdir(parents=True)
    (tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/01")  # not fetched
    assert list(summary(tmp_path / "bids")) == ["sub-01_T1w", "sub-02_T1w"]
    for folder in ("ann", "bob"):
        (tmp_path / "fs" / folder / "mri").mkdir(parents=True)
    (tmp_path / "fs/ann/mri/orig.mgz").symlink_to("nowhere")
    (tmp_path / "fs/bob/mri/orig.mgz").symlink_to("nowhere")
    touch(tmp_path, "fs/bob/mri/T1.mgz")
    assert [source.image.name for source in find_sources(tmp_path / "fs").sources] == ["orig.mgz", "T1.mgz"]


@pytest.mark.parametrize(
    ("names", "people"),
    [
        (("OAS1_0001_MR1", "OAS1_0001_MR2", "OAS1_0002_MR1"), {"OAS1_0001", "OAS1_0002"}),
        (("OAS1_0001_MR1_mpr-1_anon", "OAS1_0001_MR2_mpr-1_anon"), {"OAS1_0001"}),
        (("study_mr001", "study_mr002"), {"study_mr001", "study_mr002"}),  # numbers of people
        (("p1_v1", "p1-ses-2", "p1_scan2", "p2"), {"p1", "p2"}),
        (("sub-7_ses-1_T1w", "sub-7_ses-2_T1w"), {"sub-7"}),
    ],
)
def test_visits_of_one_person(tmp_path, names, people):
    touch(tmp_path, *[f"{name}.nii.gz" for name in names])
    assert set(persons(tmp_path).values()) == people


def test_a_pattern_says_who_a_scan_shows(tmp_path):
    touch(tmp_path, "A17-first.nii.gz", "A17-second.nii.gz", "B02-first.nii.gz")
    expected = {"A17-first": "A17", "A17-second": "A17", "B02-first": "B02"}
    assert persons(tmp_path, person_pattern="[A-Z][0-9]+") == expected
    assert persons(tmp_path, person_pattern="^(.+)-(first|second)") == expected
    for pattern, found in (("[", "'['"), ("^A", "'^A'"), ("(x)?", "'(x)?'")):
        with pytest.raises(UserError) as caught:
            find_sources(tmp_path, person_pattern=pattern)
        assert caught.value.where == "--person_pattern" and caught.value.found.startswith(found)


def test_folders_of_dicom_studies_are_scans(tmp_path):
    voxels, affine = np.ones((3, 3, 2), np.uint16), np.eye(4)
    for name in ("ann/v1", "ann/v2", "bob_v1"):
        write_series(tmp_path / name, voxels, affine)
    touch(tmp_path, "eve.nii.gz", "bob_v1_mask.nii.gz", "labels/ann_v2.nii.gz")
    assert summary(tmp_path) == {
        "ann_v1": ("ann", "ann/v1", None, None),
        "ann_v2": ("ann", "ann/v2", None, "labels/ann_v2.nii.gz"),
        "bob_v1": ("bob", "bob_v1", "bob_v1_mask.nii.gz", None),
        "eve": ("eve", "eve.nii.gz", None, None),
    }
    write_series(tmp_path / "eve", voxels, affine)  # what eve.nii.gz was converted from
    assert summary(tmp_path)["eve"][1] == "eve.nii.gz" and summary(tmp_path, "dicom")["eve"][1] == "eve"
    assert "bob_v1" in summary(tmp_path, "dicom") and len(summary(tmp_path, "dicom")) == 4
    write_series(tmp_path / "ann_v1", voxels, affine)
    assert list(find_sources(tmp_path).refused) == [
        str(tmp_path / "ann_v1")
    ]  # its results would have the name of ann/v1's
    (alone,) = find_sources(tmp_path / "bob_v1").sources
    assert (alone.name, alone.person, alone.image) == ("bob_v1", "bob", tmp_path / "bob_v1")
    write_series(tmp_path / "carl_seg", voxels, affine)  # only the name of a file says what it is
    assert "carl_seg" in summary(tmp_path)

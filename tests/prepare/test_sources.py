from __future__ import annotations

from pathlib import Path

import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.sources import find_sources


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def summary(root: Path, layout: str | None = None) -> dict:
    def relative(path):
        return path and str(path.relative_to(root))

    return {
        s.name: (s.person, relative(s.image), relative(s.mask), relative(s.label)) for s in find_sources(root, layout)
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
        "bob/mri/T1.mgz", "fsaverage/mri/orig.mgz", "eve_t1/mri/orig.mgz", "eve_t1.long.eve/mri/orig.mgz",
        "eve_t2.long.eve/mri/orig.mgz", "eve/mri/orig.mgz", "eve/base-tps", "unfinished/mri/rawavg.mgz",
    )  # fmt: skip
    assert summary(tmp_path) == {
        "ann": ("ann", "ann/mri/orig.mgz", "ann/mri/brainmask.mgz", "ann/mri/aparc+aseg.mgz"),
        "bob": ("bob", "bob/mri/T1.mgz", None, None),
        "eve_t1.long.eve": ("eve", "eve_t1.long.eve/mri/orig.mgz", None, None),
        "eve_t2.long.eve": ("eve", "eve_t2.long.eve/mri/orig.mgz", None, None),
    }


def test_flat(tmp_path):
    touch(
        tmp_path, "a.nii.gz", "a_mask.nii.gz", "a_dseg.nii.gz", "b_v1.nii", "b_v2.nii", "b_v1_brain_mask.nii", "labels/b_v2.nii.gz", "c.nii.gz",
        "masks/c_mask.nii.gz", "notes.txt", "sub-7_ses-1_T1w.nii.gz", "brain_mask.nii.gz",
    )  # fmt: skip
    assert summary(tmp_path) == {
        "a": ("a", "a.nii.gz", "a_mask.nii.gz", "a_dseg.nii.gz"),
        "b_v1": ("b", "b_v1.nii", "b_v1_brain_mask.nii", None),
        "b_v2": ("b", "b_v2.nii", None, "labels/b_v2.nii.gz"),
        "brain_mask": ("brain_mask", "brain_mask.nii.gz", None, None),
        "c": ("c", "c.nii.gz", "masks/c_mask.nii.gz", None),
        "sub-7_ses-1_T1w": ("sub-7", "sub-7_ses-1_T1w.nii.gz", None, None),
    }


def test_what_is_not_a_source(tmp_path):
    for folder, layout, message in (
        (tmp_path / "none", None, f"{tmp_path}/none: found no such folder"),
        (tmp_path, None, f"{tmp_path}: found no scan, expected sub-*/anat/*_T1w.nii.gz (BIDS)"),
        (tmp_path, "dicom", "--layout: found 'dicom', expected one of bids, freesurfer, flat"),
        (touch(tmp_path / "twice", "x.nii", "x.nii.gz"), None, f"{tmp_path}/twice/x.nii.gz: found the name of {tmp_path}/twice/x.nii"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            find_sources(folder, layout)
        assert str(caught.value).startswith(message)

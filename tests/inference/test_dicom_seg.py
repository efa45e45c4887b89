from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from fedsr_monai import __version__
from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.cli import main
from fedsr_monai.commands.segment import how_to_warp
from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.inference import run as module
from fedsr_monai.inference.quality import Quality
from fedsr_monai.inference.segment import segment
from fedsr_monai.labels import COLOURS, LABELS, SNOMED_CT
from fedsr_monai.spatial.dicom import find_series
from fedsr_monai.spatial.resampling import resample_image, voxel_map
from tests.helpers.dicom_series import PATIENT, write_series

GRID = standard_grid(6.0, (32, 32, 32))
SHAPE = (56, 50, 30)
AFFINE = np.eye(4)  # oblique, permuted axes, three different sides, left-handed
AFFINE[:3, :3] = (
    Rotation.from_euler("xyz", (6, -9, 12), degrees=True).as_matrix() @ np.eye(3)[:, [1, 2, 0]] * (3.5, 4, -6)
)
AFFINE[:3, 3] = (GRID.affine @ [15.5, 15.5, 15.5, 1])[:3] - AFFINE[:3, :3] @ ((np.array(SHAPE) - 1) / 2)


@pytest.fixture
def voxels(phantom) -> np.ndarray:
    volume = resample_image(phantom[0], voxel_map(GRID.affine, AFFINE), SHAPE)[0].numpy()
    return (1000 * np.where(volume < 0.05, 0, volume)).astype(np.int16)


@pytest.fixture
def run(tmp_path, weights, site_folder, knows_both, monkeypatch):
    """Segment with a network that knows the phantom; its two heads are said to agree at the Dice that is given."""
    site = site_folder()

    def run(*scans: Path, agreement: float = 1.0, **options):
        monkeypatch.setattr(module, "judge", lambda *_: Quality(agreement, 1.0, 0.0, 0.0))
        options = {"weights": weights, "site": site, "progress": False} | options
        return segment(scans, tmp_path / "out", **options)

    return run


def test_the_labels_of_a_series_are_those_of_the_nifti_and_of_the_seg(tmp_path, voxels, run):
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "nifti.nii.gz")
    folder = write_series(tmp_path / "scan", voxels, AFFINE)
    from_nifti, from_dicom = run(tmp_path / "nifti.nii.gz")[0], run(folder, dicom_seg=True)[0]
    assert from_dicom.name == "scan_dseg.nii.gz"
    nifti, labels = nib.load(from_nifti), nib.load(from_dicom)
    expected = np.asarray(nifti.dataobj)[:, :, ::-1]  # slices come along the normal of the images
    assert np.array_equal(labels.dataobj, expected) and len(np.unique(expected)) == 14
    corner = nib.affines.apply_affine(nifti.affine, [0, 0, SHAPE[2] - 1])
    np.testing.assert_allclose(labels.affine[:3, 3], corner, atol=1e-3)
    np.testing.assert_allclose(labels.affine[:3, :3], nifti.affine[:3, :3] * [1, 1, -1], atol=1e-5)

    # In space: each frame says where its image lies, and which structure it shows.
    seg = pydicom.dcmread(tmp_path / "out" / "scan_dseg.dcm")
    shared = seg.SharedFunctionalGroupsSequence[0]
    iop = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    to_voxel = np.linalg.inv(nifti.affine)
    found = np.zeros(SHAPE, np.uint8)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence):
        label = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        j, i = np.nonzero(frame)
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        lps = place + i[:, None] * columns * iop[0] + j[:, None] * rows * iop[1]
        index = nib.affines.apply_affine(to_voxel, lps * (-1, -1, 1))
        assert np.abs(index - index.round()).max() < 1e-3
        found[tuple(index.round().astype(int).T)] = label
    assert np.array_equal(found, nifti.dataobj)
    volume = hd.seg.Segmentation.from_dataset(seg).get_volume(combine_segments=True)  # and as highdicom reads it
    assert {int(k): int((volume.array == k).sum()) for k in LABELS if k} == {
        k: int((found == k).sum()) for k in LABELS if k
    }


def test_the_seg_belongs_to_the_study_and_describes_itself(tmp_path, voxels, run):
    folder = write_series(tmp_path / "scan", voxels, AFFINE)
    run(folder, dicom_seg=True)
    series, seg = find_series(folder), pydicom.dcmread(tmp_path / "out" / "scan_dseg.dcm")
    images = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, series.files)}
    image = next(iter(images.values()))
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate", "AccessionNumber",
        "FrameOfReferenceUID", "Rows", "Columns",
    ):  # fmt: skip
        assert seg[keyword].value == image[keyword].value, keyword
    assert (seg.Modality, seg.SegmentationType, seg.SeriesNumber) == ("SEG", "BINARY", 1004)
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4" and seg.SeriesDescription == "FedSR brain structures"
    assert seg.SeriesInstanceUID != series.uid and seg.SOPInstanceUID not in images
    for uid in (seg.SeriesInstanceUID, seg.SOPInstanceUID):
        assert pydicom.uid.UID(uid).is_valid
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.uid
    for groups in seg.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        place = groups.PlanePositionSequence[0].ImagePositionPatient
        assert images[source.ReferencedSOPInstanceUID].ImagePositionPatient == place
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == list(range(1, 14))
    for label, segment_ in enumerate(seg.SegmentSequence, 1):
        assert segment_.SegmentLabel == LABELS[label] and segment_.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment_.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("fedsr-monai", __version__)
        colour = hd.color.CIELabColor.from_dicom_value(segment_.RecommendedDisplayCIELabValue).to_rgb()
        assert np.abs(np.subtract(colour, COLOURS[label])).max() <= 1


def test_names_in_any_alphabet_are_carried_over(tmp_path, voxels, run):
    def change(image, k):
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Müller^Jürgen"

    run(write_series(tmp_path / "scan", voxels, AFFINE, change=change), dicom_seg=True)
    assert pydicom.dcmread(tmp_path / "out" / "scan_dseg.dcm").PatientName == "Müller^Jürgen"


def test_codes_are_those_of_dicom_s_dictionary():
    from pydicom.sr.codedict import codes

    names = (
        "BrainVentricle", "CerebralWhiteMatter", "CerebralCortex", "LateralVentricle", "CerebellarWhiteMatter", "Thalamus", "CaudateNucleus",
        "Putamen", "GlobusPallidus", "BrainStem", "Hippocampus", "Amygdala", "CerebellarCortex",
    )  # fmt: skip
    known = [getattr(codes.SCT, name) for name in names]
    assert [SNOMED_CT[label] for label in range(1, 14)] == [(code.value, code.meaning) for code in known]


def test_a_patient_s_name_is_in_dicom_alone(tmp_path, voxels, run, capsys):
    folder = write_series(tmp_path / "scan", voxels, AFFINE)
    run(folder, dicom_seg=True, register=True, progress=True)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and file.suffix != ".dcm"]
    assert {"fedsr-segment.json", "scan_dseg.nii.gz", "quality.csv"} <= {file.name for file in files}
    words = (PATIENT, "1867")
    texts = [nib.load(file).header.binaryblock.decode("latin1") for file in files if file.suffix == ".gz"]
    texts += [file.read_text() for file in files if file.suffix in (".csv", ".json", ".tsv")]
    assert not any(word in text for word in words for text in [*texts, *map(str, files), *capsys.readouterr()])


def test_what_is_not_believed_is_not_shown_by_a_pacs(tmp_path, voxels, run):
    folder, seg = write_series(tmp_path / "scan", voxels, AFFINE), tmp_path / "out" / "scan_dseg.dcm"
    run(folder, dicom_seg=True, agreement=0.8)
    assert pydicom.dcmread(seg).SeriesDescription == "FedSR brain structures (doubtful)"
    with pytest.raises(UserErrors, match="implausible"):
        run(folder, dicom_seg=True, agreement=0.1, keep_rejected=True)
    assert (tmp_path / "out" / "scan_dseg.rejected").is_file() and not seg.exists()
    with pytest.raises(UserErrors, match="implausible"):
        run(write_series(tmp_path / "other", voxels, AFFINE), dicom_seg=True, agreement=0.1)
    assert not list((tmp_path / "out").glob("other*"))
    with pytest.raises(UserError, match="--dicom_seg: found --no_quality with it"):
        run(folder, dicom_seg=True, quality=False)


def test_one_bad_folder_does_not_end_the_batch(tmp_path, voxels, run):
    study = tmp_path / "exports"
    good = write_series(study / "ann" / "2026", voxels, AFFINE, study="1.2.3")
    write_series(study / "ann" / "localizer", voxels[:, :, :3], AFFINE, study="1.2.3", number=1, description="scout")
    write_series(study / "bob", voxels, AFFINE, skip=(9,))
    nameless = write_series(
        study / "eve", voxels, AFFINE, change=lambda image, k: delattr(image, "FrameOfReferenceUID")
    )
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "nifti.nii.gz")
    with pytest.raises(UserErrors) as caught:
        run(study, tmp_path / "nifti.nii.gz", next(good.iterdir()), dicom_seg=True)
    lines = [str(error).replace(str(tmp_path), "") for error in caught.value.errors]
    assert [line.split(": found")[0].split(":")[0] for line in lines[:2]] == [
        "/nifti.nii.gz",
        f"/exports/ann/2026/{next(good.iterdir()).name}",
    ]
    assert "a volume that is no DICOM series" in lines[0] and "give the folder of the series" in lines[1]
    assert "bob: series 4 (t1_mprage_sag, 29 images): found 1 missing slice" in lines[2]
    assert str(nameless.name) in lines[3] and "no FrameOfReferenceUID" in lines[3]
    assert {file.name for file in (tmp_path / "out").glob("*.dcm")} == {"ann_dseg.dcm"}
    recorded = json.loads((tmp_path / "out" / "fedsr-segment.json").read_text())["results"]
    assert "ann_dseg.dcm" in recorded["ann"]["files"]


def test_a_series_is_chosen_by_number(tmp_path, voxels, run):
    study = tmp_path / "study"
    for number in (3, 4):
        write_series(study / str(number), voxels, AFFINE, study="1.2.3", number=number)
    with pytest.raises(UserErrors, match="study: found 2 MR series, 2 that may be the T1 scan"):
        run(study)
    results = []
    run(study, series="4", dicom_seg=True, register=True, on_result=results.append)
    assert pydicom.dcmread(tmp_path / "out" / "study_dseg.dcm").SeriesNumber == 1004
    line = how_to_warp(dataclasses.replace(results[0], atlas=Path("my atlas")))
    assert "-i 'my atlas' -r " + str(results[0].labels) in line  # ANTs reads no folder; the line is to be copied


def test_the_command_says_what_is_missing(tmp_path, voxels, monkeypatch, capsys):
    folder = write_series(tmp_path / "scan", voxels[:, :, :4], AFFINE)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "highdicom" else find(name, *rest)
    )
    assert main(["segment", str(folder), "--dicom_seg", "--out", str(tmp_path / "out")]) == 2
    assert "package highdicom: found no installation" in capsys.readouterr().err

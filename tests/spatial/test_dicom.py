from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage
from scipy.spatial.transform import Rotation

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.load import read_scan
from fedsr_monai.spatial.dicom import find_series, find_studies, is_dicom, read_series
from fedsr_monai.spatial.reader import VolumeReader
from tests.helpers.dicom_series import PATIENT, write_series

SHAPE = (10, 14, 8)
VOXELS = np.random.default_rng(0).integers(0, 30000, SHAPE).astype(np.uint16)
AFFINE = np.eye(4)
AFFINE[:3, :3] = (
    Rotation.from_euler("xyz", (6, -9, 12), degrees=True).as_matrix() @ np.eye(3)[:, [2, 0, 1]] * (4, 5, 3.5)
)
AFFINE[:3, 3] = (-50, 30, 20)


def put(folder: Path, voxels=VOXELS, affine=AFFINE, **options) -> Path:
    return write_series(folder, voxels, affine, **options)


def setting(**elements):
    """A change of every image."""
    return lambda image, k: [setattr(image, key, value) for key, value in elements.items()]


@pytest.mark.parametrize("side", [1, -1], ids=["right-handed", "left-handed"])
def test_voxels_are_where_the_volume_had_them(tmp_path, side):
    affine = AFFINE * [1, 1, side, 1]
    volume = read_series(put(tmp_path / "scan", affine=affine))
    # Slices come along the normal of the images, which is the last axis or its opposite.
    expected, voxels = affine.copy(), VOXELS
    if np.linalg.det(affine) < 0:
        expected[:3, 3], expected[:3, 2] = (affine @ [0, 0, SHAPE[2] - 1, 1])[:3], -affine[:3, 2]
        voxels = VOXELS[:, :, ::-1]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-5)
    assert np.array_equal(volume.voxels, voxels) and volume.voxels.dtype == np.float32
    assert np.array_equal(volume.header.get_best_affine().round(4), volume.affine.round(4))


def test_each_image_is_decompressed_and_rescaled(tmp_path):
    def change(image, k):
        image.RescaleSlope, image.RescaleIntercept = str(1 + k / 4), "3"
        image.compress("1.2.840.10008.1.2.5")  # run lengths

    assert np.array_equal(
        read_series(put(tmp_path / "scan", change=change)).voxels, VOXELS * (1 + np.arange(8) / 4) + 3
    )


def test_every_reader_takes_the_folder_of_a_series(tmp_path):
    folder = put(tmp_path / "scan")
    volume = read_series(folder)
    assert np.array_equal(read_scan(folder).voxels, volume.voxels)
    image = LoadImage(reader=VolumeReader(), ensure_channel_first=True)(folder)
    assert np.array_equal(image[0], volume.voxels) and np.array_equal(image.affine, volume.affine)
    assert PATIENT not in str(image.meta)


def moved(image, k, by=(0, 0, 0)):
    image.ImagePositionPatient = [f"{float(x) + y:.6f}" for x, y in zip(image.ImagePositionPatient, by)]


def tilted(image, k):
    moved(image, k, k * np.array(image.ImageOrientationPatient[:3], dtype=float))


def garbage(image, k):
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    image.PixelData = pydicom.encaps.encapsulate([b"nonsense" * 20])


def two_orientations(image, k):
    if k % 2:
        image.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]


def echoes(folder: Path) -> Path:
    put(folder)
    images = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    for number, image in enumerate(images):
        image.SOPInstanceUID, image.EchoTime = pydicom.uid.generate_uid(), "5.5"
        image.save_as(folder / f"second{number}")
    return folder


def cut(folder: Path, size: int) -> Path:
    file = min(put(folder).iterdir())
    file.write_bytes(file.read_bytes()[:size])
    return folder


def text(folder: Path) -> Path:
    folder.mkdir()
    (folder / "readme.txt").write_text("nothing here")
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (text, "no DICOM file, expected a T1-weighted MR series"),
        (lambda f: put(f, change=setting(Modality="CT")), "1 series of CT, expected a T1-weighted MR series"),
        (lambda f: put(f, change=setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1")), "enhanced multi-frame MR.*dcm2niix"),
        (lambda f: put(f, change=setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")), "not MR Image Storage"),
        (lambda f: put(f, change=setting(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])), "mosaics"),
        (lambda f: put(f, change=setting(PhotometricInterpretation="RGB")), "colours"),
        (lambda f: put(f, change=setting(PixelSpacing=None)), "8 images without PixelSpacing"),
        (lambda f: put(f, change=setting(PixelSpacing=["30", "30"])), r"voxels of \(30, 30, 3.5\) mm"),
        (lambda f: put(f, change=setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), "no two directions"),
        (lambda f: put(f, change=two_orientations), "2 orientations of slices"),
        (lambda f: put(f, change=lambda image, k: k and setattr(image, "Rows", 7)), "2 sizes of images"),
        (lambda f: put(f, skip=(3,)), "1 missing slice, first behind slice 3 of 7"),
        (lambda f: put(f, change=lambda image, k: moved(image, k, [0.3 * k**2] * 3)), "apart, up to .* mm from equal steps"),
        (lambda f: put(f, change=tilted), "sheared slices"),
        (lambda f: put(f, voxels=VOXELS[:, :, :1]), "a single slice"),
        (echoes, r"several images at one position \(echo times 2.98, 5.5 ms\)"),
        (lambda f: put(f, change=garbage), r"IM\d+: found an image that cannot be decoded \(High-Throughput JPEG 2000"),
        (lambda f: cut(f, -20), r"IM\d+: found an image that cannot be decoded \(Explicit"),
        (lambda f: cut(f, 300), r"IM\d+: found "),
    ],
    ids=[
        "no DICOM", "CT", "enhanced", "secondary capture", "mosaic", "colour", "no spacing", "voxels of 30 mm", "no axes",
        "orientations", "sizes", "missing slice", "uneven", "tilted", "single slice", "echoes", "no codec", "cut", "cut header",
    ],
)  # fmt: skip
def test_what_is_no_volume_is_refused_in_one_line(tmp_path, make, words):
    with pytest.raises(UserError, match=words) as caught:
        read_series(make(tmp_path / "scan"))
    line = str(caught.value)
    assert line.startswith(str(tmp_path / "scan")) and "\n" not in line and PATIENT not in line


def test_of_several_series_the_t1_is_taken_or_one_is_asked_for(tmp_path):
    study = tmp_path / "study"
    few = VOXELS[:, :, :3]
    put(
        study / "1",
        few,
        study="1.2",
        number=1,
        description="t1 localizer",
        change=setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    t1 = find_series(put(study / "2", study="1.2", number=2, description="Sag 3D MP-RAGE"))
    put(study / "3", few, study="1.2", number=3, description="t2_space")
    (study / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    shutil.copytree(study / "2", study / "copy")  # the same images once more
    assert find_studies(study) == [study]
    assert find_series(study).uid == t1.uid and len(find_series(study).headers) == 8
    assert find_series(study, "3").number == "3" and find_series(study, t1.uid).number == "2"
    put(study / "4", study="1.2", number=4, description="t1_mprage_p2")
    with pytest.raises(
        UserError, match=r"4 MR series, 2 that may be the T1 scan: series 1 .*series 2 \(Sag 3D MP-RAGE, 8 images\) UID"
    ) as caught:
        find_series(study)
    assert t1.uid in str(caught.value) and "--series" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--series 9: found no such MR series among series 1"):
        find_series(study, "9")
    shutil.rmtree(study / "2"), shutil.rmtree(study / "copy"), shutil.rmtree(study / "4")
    with pytest.raises(UserError, match="2 MR series, none that is called T1"):
        find_series(study)


def test_a_folder_of_studies(tmp_path):
    few = VOXELS[:, :, :2]
    for name in ("ann/v1", "ann/v2", "bob"):
        put(tmp_path / name, few)
    put(tmp_path / "results", few[:, :, :1], change=setting(Modality="SEG"))
    assert find_studies(tmp_path) == [tmp_path / "ann/v1", tmp_path / "ann/v2", tmp_path / "bob"]
    assert find_studies(tmp_path / "bob") == [tmp_path / "bob"] and find_studies(tmp_path / "results") == []


def test_a_pipe_is_no_dicom_file_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    assert not is_dicom(tmp_path / "pipe.dcm") and not find_studies(tmp_path)
    with pytest.raises(UserError, match="no DICOM file"):
        find_series(tmp_path)

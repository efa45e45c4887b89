"""DICOM series of a volume, as an MR scanner would write them: one file for each slice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
PATIENT = "Curie^Marie"  # must not be found in anything but a DICOM file


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    study: str | None = None,
    number: int = 4,
    description: str = "t1_mprage_sag",
    change: Callable[[Dataset, int], None] = lambda image, k: None,
    skip: tuple[int, ...] = (),
) -> Path:
    """Write whole numbers [D, H, W] with a RAS+ affine: axes 0, 1 and 2 are columns, rows and slices.

    `change` is called with each image and the number of its slice before it is written. The files are named in no order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    sides = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / sides
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    for k in range(voxels.shape[2]):
        if k in skip:
            continue
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = MR_IMAGE, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = PATIENT, "1867", "18671107", "F"
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260102", "101500", "S1", "A1"
        image.SeriesDate, image.SeriesTime, image.ContentDate, image.ContentTime = (*("20260102", "101501") * 2,)
        image.ReferringPhysicianName, image.PositionReferenceIndicator, image.Laterality = "", "", ""
        image.Modality, image.Manufacturer, image.SeriesNumber = "MR", "Somebody", number
        image.SeriesDescription, image.InstanceNumber = description, k + 1
        image.ImageType, image.ScanningSequence, image.SequenceVariant = ["ORIGINAL", "PRIMARY", "M"], "GR", "SP"
        image.ScanOptions, image.MRAcquisitionType, image.EchoTrainLength = "", "3D", 1
        image.RepetitionTime, image.EchoTime, image.SliceThickness = "2300", "2.98", f"{sides[2]:.6g}"
        image.ImagePositionPatient = [f"{value:.6f}" for value in (lps @ [0, 0, k, 1])[:3]]
        image.ImageOrientationPatient = [f"{value:.8f}" for value in directions[:, :2].T.ravel()]
        image.PixelSpacing = [f"{sides[1]:.6g}", f"{sides[0]:.6g}"]
        image.Rows, image.Columns, image.SamplesPerPixel = voxels.shape[1], voxels.shape[0], 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelData = np.ascontiguousarray(voxels[:, :, k].T, dtype="<u2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        change(image, k)
        image.save_as(folder / f"IM{(7 * k + 3) % 1000:04d}{k}", enforce_file_format=True)
    return folder

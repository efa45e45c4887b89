"""DICOM SEG: the labels of a DICOM series as an object of the same study, for a PACS and its viewers. Needs highdicom."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedsr_monai import __version__
from fedsr_monai.errors import UserError, one_line
from fedsr_monai.files import write_bytes
from fedsr_monai.labels import COLOURS, LABELS, SNOMED_CT
from fedsr_monai.spatial.dicom import Series

ALGORITHM = "fedsr-monai"
SERIES_OFFSET = 1000  # added to the series number of the source to give that of the result
LARGEST_NUMBER = 2**31 - 1  # largest series number (DICOM stores it as an integer string)


def write_dicom_seg(
    path: str | os.PathLike,
    labels: np.ndarray,
    series: Series,
    checksums: Mapping[str, str],
    protocol: str | None = None,
    note: str = "",
) -> None:
    """Write a label map as DICOM SEG (BINARY, one segment for each structure, numbered like the labels).

    Patient, study and frame of reference are those of the source series, every frame names the image that it lies on,
    and slices without a structure are left out. The object forms a series of its own, with new identifiers each time.

    Args:
        path: the file.
        labels: ids [D, H, W] on the voxels of the series: columns, rows, slices.
        series: from `find_series`.
        checksums: checksums of the weights, by name, which identify the algorithm.
        protocol: label protocol whose borders the labels follow; None if it is not known.
        note: remark for the reader, appended to the series description.

    Raises:
        UserError: the series lacks elements that the object needs, the disk is full or the folder cannot be written.
    """
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    if not images[0].get("FrameOfReferenceUID"):
        fix = "leave out --dicom_seg, or correct the export"
        raise UserError(series.folder, f"no FrameOfReferenceUID in {series}", "one, for DICOM SEG", fix)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=ALGORITHM,
        version=__version__,
        family=codes.DCM.ArtificialIntelligence,
        parameters={**checksums, **({"protocol": protocol} if protocol else {})},
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=label,
            segment_label=LABELS[label],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(code, "SCT", meaning),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*COLOURS[label]),
        )
        for label, (code, meaning) in SNOMED_CT.items()
    ]
    description = "FedSR brain structures" + (f", {protocol}" if protocol else "")
    number = int(series.number) if series.number.isdigit() else 0
    try:
        seg = hd.seg.Segmentation(
            source_images=images,
            pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0), dtype=np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=min(number + SERIES_OFFSET, LARGEST_NUMBER),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=ALGORITHM,
            manufacturer_model_name="fedsr segment",
            software_versions=__version__,
            device_serial_number="none",
            series_description=description + (f" ({note})" if note else ""),
            content_label="BRAIN_STRUCTURES",
            content_description="13 structures of the brain, left and right together",
        )
    except (AttributeError, ValueError, TypeError) as error:
        fix = "leave out --dicom_seg, or correct the export"
        raise UserError(
            series.folder,
            f"{series} from which no DICOM SEG can be made ({one_line(error)})",
            "the usual elements",
            fix,
        ) from None
    file = io.BytesIO()
    seg.save_as(file)
    write_bytes(Path(path), file.getvalue())

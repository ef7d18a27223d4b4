"""labels of a DICOM series -> DICOM SEG that refers to the series; highdicom writes the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import ModelCard
from leuda_deploy.scans.dicom import Series

NOTHING_FOUND = "nothing was found in the scan; DICOM SEG cannot say that, NIfTI can"
# type 2 of the modules of patient, study and frame of reference
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
MUST_BE_THERE = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")


def write_dicom_seg(path: Path, labels: NDArray[np.uint8], series: Series, card: ModelCard) -> None:
    """Write labels (X, Y, Z) uint8 as DICOM SEG, one binary segment a structure found.

    Frame of reference, patient and study are those of the series. Structures are coded as
    "Tissue / Tissue" (SCT 85756007), since a card holds names and no codes.
    """
    import highdicom
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    if not labels.any():
        raise InputError(NOTHING_FOUND)
    datasets = [_with_what_a_seg_needs(dataset) for dataset in series.datasets]
    tissue = Code("85756007", "SCT", "Tissue")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"leuda {card.name}"[:64],
        version=card.sha256[:16] or "unknown",
        family=Code("123109", "DCM", "Artificial Intelligence"),
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=structure.value,
            segment_label=structure.name[:64],
            segmented_property_category=tissue,
            segmented_property_type=tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for structure in card.structures
    ]
    seg = highdicom.seg.Segmentation(
        source_images=datasets,
        pixel_array=series.on_frames(labels),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="leuda",
        manufacturer_model_name=card.name[:64],
        software_versions=card.sha256[:16] or "unknown",
        device_serial_number="none",
    )
    with atomic_path(path) as temporary:
        seg.save_as(temporary)


def _with_what_a_seg_needs(dataset: Any) -> Any:
    """The data set with the attributes that may be empty, but not missing; anonymised files lack
    them.
    """
    for name in MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    missing = [name for name in MUST_BE_THERE if not dataset.get(name)]
    if missing:
        raise InputError(f"the series has no {', '.join(missing)}; a DICOM SEG must refer to it")
    return dataset

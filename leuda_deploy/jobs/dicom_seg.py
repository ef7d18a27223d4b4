"""labels of a DICOM series -> DICOM SEG that refers to the series; highdicom writes the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import ModelCard
from leuda_deploy.scans.dicom import Series


def write_dicom_seg(path: Path, labels: NDArray[np.uint8], series: Series, card: ModelCard) -> None:
    """Write labels (X, Y, Z) uint8 as DICOM SEG, one binary segment a structure found.

    Frame of reference, patient and study are those of the series. Structures are coded as
    "Tissue / Tissue" (SCT 85756007), since a card holds names and no codes.
    """
    import highdicom
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    if not labels.any():
        raise InputError("nothing was found in the scan; DICOM SEG cannot say that, NIfTI can")
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
        source_images=list(series.datasets),
        pixel_array=np.ascontiguousarray(labels.T),  # (slices, rows, columns)
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

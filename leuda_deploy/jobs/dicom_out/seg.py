"""findings -> DICOM SEG, one segment a structure found; highdicom writes the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.jobs.dicom_out.findings import (
    AI,
    MAKER,
    Findings,
    category_and_type,
    concept,
    software,
)
from leuda_deploy.machine.files import atomic_path

SegType = Literal["binary", "labelmap"]
SERIES_NUMBER = 900


def write_seg(path: Path, findings: Findings, kind: SegType = "binary") -> Any:
    """Write a SEG, and return its data set.

    Frame of reference, patient and study are those of the series. Segments are numbered from 1 in
    the order of the card. If nothing was found, all structures are described, and one empty frame
    says so.

    Args:
        path: Of the file.
        findings: The labels and what they are of.
        kind: "binary": a bit a pixel, for each segment; all viewers read it. "labelmap": one image
            of segment numbers, of 2024; few viewers read it yet.

    Raises:
        InputError: The series lacks what a SEG must refer to.
    """
    import highdicom

    seg = highdicom.seg.Segmentation(
        source_images=findings.datasets,
        segmentation_type=kind.upper(),
        segment_descriptions=_segments(findings),
        series_instance_uid=findings.uid("SEG series", kind),
        series_number=SERIES_NUMBER,
        sop_instance_uid=findings.uid("SEG", kind),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=findings.card.name[:64],
        software_versions=[software(), findings.model_sha256],
        device_serial_number="none",
        content_label="LEUDA",
        content_description=f"Structures found by {findings.card.name}"[:64],
        series_description=f"Segmentation by {findings.card.name}"[:64],
        **_pixels(findings),
    )
    with atomic_path(path) as temporary:
        seg.save_as(temporary)
    return seg


def _pixels(findings: Findings) -> dict[str, Any]:
    """Segment numbers (frames, rows, columns); of an empty result one frame, with its place."""
    import highdicom

    if findings.found:
        return {"pixel_array": findings.series.on_frames(renumbered(findings))}
    grid = findings.series.grid
    middle = grid.images[len(grid.images) // 2]
    place = highdicom.PlanePositionSequence("PATIENT", middle.position_mm)
    return {
        "pixel_array": np.zeros((1, middle.rows, middle.columns), np.uint8),
        "plane_positions": [place],
        "omit_empty_frames": False,
    }


def renumbered(findings: Findings) -> NDArray[np.uint8]:
    """Labels (X, Y, Z) whose values are segment numbers: 1, 2, ... for the structures found."""
    table = np.zeros(256, np.uint8)
    for number, structure in enumerate(findings.found, start=1):
        table[structure.value] = number
    same = all(table[value] in (0, value) for value in range(256))
    return findings.labels if same else table[findings.labels]


def _segments(findings: Findings) -> list[Any]:
    import highdicom
    from highdicom.color import CIELabColor

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"leuda {findings.card.name}"[:64],
        version=findings.model_sha256,
        family=concept(AI),
    )
    segments = []
    for number, structure in enumerate(findings.described, start=1):
        category, kind = category_and_type(structure)
        segments.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=structure.name[:64],
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                tracking_uid=findings.uid("structure", structure.name),
                tracking_id=structure.name[:64],
                display_color=CIELabColor.from_rgb(*structure.colour),
            )
        )
    return segments

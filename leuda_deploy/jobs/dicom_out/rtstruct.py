"""findings -> RT Structure Set: the outlines of each structure, slice by slice.

An outline runs half-way between the centres of pixels, so that it holds exactly the centres of the
structure's pixels. A hole is reached by a channel of no width: it is walked both ways, so that any
rule of what lies inside finds the hole.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import MissingExtraError
from leuda_deploy.jobs.dicom_out.findings import (
    MAKER,
    Findings,
    concept,
    software,
)
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import Structure
from leuda_deploy.scans.dicom.attributes import ImageFacts

SERIES_NUMBER = 902
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, and still what RTSTRUCT refers to a study by
Points = NDArray[np.float64]


def write_rtstruct(path: Path, findings: Findings) -> Any:
    """Write an RT Structure Set, and return its data set. If nothing was found, it has no outlines.

    Raises:
        InputError: The series lacks what it must refer to.
        MissingExtraError: contourpy is not installed.
    """
    from highdicom.base import SOPClass
    from pydicom.sequence import Sequence
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

    source = findings.datasets[0]
    made = SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=findings.uid("RTSTRUCT series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=findings.uid("RTSTRUCT"),
        sop_class_uid=RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer=MAKER,
        manufacturer_model_name=findings.card.name[:64],
        software_versions=[software(), findings.model_sha256],
        device_serial_number="none",
        series_description=f"Outlines by {findings.card.name}"[:64],
        # an outline may have more text than fits into an element of the explicit syntax
        transfer_syntax_uid=ImplicitVRLittleEndian,
        specific_character_set=source.get("SpecificCharacterSet"),
    )
    made.copy_patient_and_study_information(source)
    made.OperatorsName = ""
    made.FrameOfReferenceUID = source.FrameOfReferenceUID
    made.PositionReferenceIndicator = source.PositionReferenceIndicator
    made.StructureSetLabel = "LEUDA"
    made.StructureSetName = findings.card.name[:64]
    made.StructureSetDate = made.InstanceCreationDate
    made.StructureSetTime = made.InstanceCreationTime
    made.ReferencedFrameOfReferenceSequence = Sequence([_referenced(findings)])
    rois = list(enumerate(findings.described, start=1))
    made.StructureSetROISequence = Sequence([_roi(n, each, findings) for n, each in rois])
    made.ROIContourSequence = Sequence([_contours(n, each, findings) for n, each in rois])
    made.RTROIObservationsSequence = Sequence([_observation(n, each) for n, each in rois])
    made.ApprovalStatus = "UNAPPROVED"
    with atomic_path(path) as temporary:
        made.save_as(temporary)
    return made


def outlines(mask: NDArray[np.bool_]) -> list[Points]:
    """Polygons (N, 2) of a plane (rows, columns) in (column, row), whose first point is the last's
    neighbour; each with its holes.
    """
    try:
        from contourpy import FillType, contour_generator
    except ImportError as missing:
        raise MissingExtraError("writing RTSTRUCT", "contourpy", "dicom") from missing
    if not mask.any():
        return []
    lines = contour_generator(z=np.pad(mask, 1).astype(np.float64), fill_type=FillType.OuterOffset)
    polygons, offsets = lines.filled(0.5, 2.0)
    found = []
    for points, places in zip(polygons, offsets, strict=True):
        rings = [_corners(points[start : end - 1] - 1.0) for start, end in pairwise(places)]
        found.append(_with_holes(rings[0], rings[1:]))
    return found


def _corners(ring: Points) -> Points:
    """A closed line without the points that lie on the straight between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[np.abs(turns) > 1e-9]


def _with_holes(outer: Points, holes: list[Points]) -> Points:
    """One closed line: from the outer ring to each hole by the shortest way, round it, and back."""
    for hole in holes:
        apart = np.square(outer[:, None] - hole[None]).sum(axis=2)
        at, to = np.unravel_index(int(apart.argmin()), apart.shape)
        round_trip = np.concatenate([np.roll(hole, -int(to), axis=0), hole[to][None]])
        outer = np.concatenate([outer[: at + 1], round_trip, outer[at:]])
    return outer


def _in_patient(points: Points, image: ImageFacts) -> Points:
    """(column, row) of an image -> (x, y, z) in mm, LPS."""
    between_rows, between_columns = image.spacing_mm
    columns, rows = points[:, :1] * between_columns, points[:, 1:] * between_rows
    along_row, down_column = np.array(image.orientation[:3]), np.array(image.orientation[3:])
    placed: Points = np.array(image.position_mm) + columns * along_row + rows * down_column
    return placed


def _contours(number: int, structure: Structure, findings: Findings) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    found = []
    slices = findings.series.on_slices(findings.labels)
    for k, image in enumerate(findings.series.grid.images):
        for line in outlines(np.equal(slices[:, :, k].T, structure.value)):
            contour = Dataset()
            contour.ContourImageSequence = Sequence([_reference(image, findings)])
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(line)
            placed = _in_patient(line, image).ravel()
            contour.ContourData = [f"{value:.4f}" for value in placed.tolist()]
            found.append(contour)
    made = Dataset()
    made.ReferencedROINumber = number
    made.ROIDisplayColor = list(structure.colour)
    if found:
        made.ContourSequence = Sequence(found)
    return made


def _roi(number: int, structure: Structure, findings: Findings) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    made.ROINumber = number
    made.ReferencedFrameOfReferenceUID = findings.datasets[0].FrameOfReferenceUID
    made.ROIName = structure.name[:64]
    made.ROIVolume = f"{findings.ml(structure):.3f}"
    made.ROIGenerationAlgorithm = "AUTOMATIC"
    made.ROIGenerationDescription = f"leuda {findings.card.name}"[:64]
    return made


def _observation(number: int, structure: Structure) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    made = Dataset()
    made.ObservationNumber = made.ReferencedROINumber = number
    made.RTROIInterpretedType = "ORGAN"
    made.ROIInterpreter = ""
    if structure.code is not None:
        made.RTROIIdentificationCodeSequence = Sequence([concept(structure.code)])
    return made


def _referenced(findings: Findings) -> Any:
    """Frame of reference > study > series > images."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    source = findings.datasets[0]
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = Sequence(
        [_reference(image, findings) for image in findings.series.grid.images]
    )
    study = Dataset()
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = source.StudyInstanceUID
    study.RTReferencedSeriesSequence = Sequence([series])
    frame = Dataset()
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Sequence([study])
    return frame


def _reference(image: ImageFacts, findings: Findings) -> Any:
    from pydicom.dataset import Dataset

    dataset = findings.dataset_of[image.file]
    made = Dataset()
    if image.frame is not None:
        made.ReferencedFrameNumber = image.frame + 1
    made.ReferencedSOPClassUID = dataset.SOPClassUID
    made.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    return made

"""findings and their SEG -> structured report (TID 1500): volumes, model, confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leuda_deploy.jobs.dicom_out.findings import (
    AI,
    MAKER,
    OWN_SCHEME,
    Findings,
    category_and_type,
    concept,
    software,
)
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import Code, Structure

SERIES_NUMBER = 901
VOLUME = Code("SCT", "118565006", "Volume")
CUBIC_CM = Code("UCUM", "cm3", "cubic centimeter")
PERCENT = Code("UCUM", "%", "Percent")
LOW = Code(OWN_SCHEME, "low-confidence", "Voxels with a class probability below 0.7")
WHOLE = Code(OWN_SCHEME, "all-structures", "All structures of the model together")
PROCEDURES = {
    "CT": Code("LN", "25045-6", "CT unspecified body region"),
    "MR": Code("LN", "25056-3", "MRI unspecified body region"),
}


def write_sr(path: Path, findings: Findings, seg: Any) -> Any:
    """Write a Comprehensive SR, and return its data set.

    A structure that was found has its volume and refers to its segment; one that was not has a
    volume of 0. One group more says how much of all is of low confidence. The model is the
    observer: its name, and the SHA-256 of its file.

    Args:
        path: Of the file.
        findings: The labels and what they are of.
        seg: The data set of the SEG of the same findings.

    Raises:
        InputError: The series lacks what a report must refer to.
    """
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    images = findings.datasets
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer(findings)),
        procedure_reported=concept(
            PROCEDURES.get(str(images[0].get("Modality", "")), PROCEDURES["CT"])
        ),
        imaging_measurements=[
            *(
                _found(findings, structure, seg, number)
                for number, structure in enumerate(findings.found, start=1)
            ),
            *(
                _not_found(findings, structure)
                for structure in findings.card.structures
                if structure not in findings.found
            ),
            _confidence(findings),
        ],
    )
    document = sr.ComprehensiveSR(
        evidence=[*images, seg],
        content=report,
        series_instance_uid=findings.uid("SR series", str(seg.SOPInstanceUID)),
        series_number=SERIES_NUMBER,
        sop_instance_uid=findings.uid("SR", str(seg.SOPInstanceUID)),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=findings.card.name[:64],
        software_versions=[software(), findings.model_sha256],
        device_serial_number="none",
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(OWN_SCHEME, name="leuda's own terms")],
        series_description=f"Volumes by {findings.card.name}"[:64],
    )
    with atomic_path(path) as temporary:
        document.save_as(temporary)
    return document


def _observer(findings: Findings) -> Any:
    from uuid import NAMESPACE_OID, uuid5

    from highdicom import sr

    model = uuid5(NAMESPACE_OID, f"leuda model {findings.model_sha256}").int
    return sr.ObserverContext(
        observer_type=sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=f"2.25.{model}",
            name=f"leuda {findings.card.name}",
            manufacturer_name=MAKER,
            model_name=findings.card.name,
            serial_number=findings.model_sha256,
        ),
    )


def _algorithm(findings: Findings) -> Any:
    from highdicom import sr

    return sr.AlgorithmIdentification(
        name=f"leuda {findings.card.name}",
        version=findings.model_sha256,
        parameters=[f"software: {software()}"],
        family=concept(AI),
        manufacturer=MAKER,
    )


def _volume(findings: Findings, structure: Structure) -> Any:
    from highdicom import sr

    ml = round(findings.ml(structure), 3)
    return sr.Measurement(name=concept(VOLUME), value=ml, unit=concept(CUBIC_CM))


def _found(findings: Findings, structure: Structure, seg: Any, number: int) -> Any:
    from highdicom import sr

    category, kind = category_and_type(structure)
    source = findings.datasets[0]
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(findings, structure),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(
                referenced_series_instance_uid=source.SeriesInstanceUID
            ),
        ),
        finding_category=category,
        finding_type=kind,
        algorithm_id=_algorithm(findings),
        measurements=[_volume(findings, structure)],
    )


def _not_found(findings: Findings, structure: Structure) -> Any:
    from highdicom import sr

    category, kind = category_and_type(structure)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(findings, structure),
        finding_category=category,
        finding_type=kind,
        algorithm_id=_algorithm(findings),
        measurements=[_volume(findings, structure)],
    )


def _confidence(findings: Findings) -> Any:
    from highdicom import sr

    percent = sr.Measurement(
        name=concept(LOW),
        value=round(100 * findings.low_confidence, 2),
        unit=concept(PERCENT),
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=findings.uid("all structures"), identifier="all structures"
        ),
        finding_type=concept(WHOLE),
        algorithm_id=_algorithm(findings),
        measurements=[percent],
    )


def _tracking(findings: Findings, structure: Structure) -> Any:
    from highdicom import sr

    return sr.TrackingIdentifier(
        uid=findings.uid("structure", structure.name), identifier=structure.name[:64]
    )

"""labels, series, model -> what all DICOM objects of one result have in common.

UIDs follow from the content: the same labels of the same series by the same model have the same, so
that an archive that is sent an object twice keeps one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.model.card import Code, ModelCard, Structure
from leuda_deploy.scans.dicom import Series
from leuda_deploy.scans.dicom.sources import DicomFile

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

UTF8 = "ISO_IR 192"
MANY_BYTES = ("ISO 2022 IR 87", "ISO 2022 IR 159", "ISO 2022 IR 58")  # none may come first

MAKER = "leuda"
ANATOMY = Code("SCT", "91723000", "Anatomical Structure")
ABNORMAL = Code("SCT", "49755003", "Morphologically Abnormal Structure")
TISSUE = Code("SCT", "85756007", "Tissue")
AI = Code("DCM", "123109", "Artificial Intelligence")
OWN_SCHEME = "99LEUDA"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in a series.

    labels          (X, Y, Z) uint8 on the grid of the series' volume
    model_sha256    of the model file
    low_confidence  share of the structures' voxels whose class has a probability below 0.7
    """

    labels: NDArray[np.uint8]
    series: Series
    card: ModelCard
    model_sha256: str
    low_confidence: float

    @cached_property
    def found(self) -> tuple[Structure, ...]:
        """The structures that have a voxel."""
        return tuple(s for s in self.card.structures if self.voxels[s.value])

    @cached_property
    def voxels(self) -> NDArray[np.int64]:
        """(256,) how many of each value there are."""
        counts = np.zeros(256, dtype=np.int64)
        for part in np.moveaxis(self.labels, -1, 0):  # bincount widens to 8 bytes a voxel
            counts += np.bincount(part.ravel(order="K"), minlength=256)
        return counts

    @cached_property
    def datasets(self) -> list[Any]:
        """Those of the series, with the attributes that may be empty, but not missing.

        Raises:
            InputError: One lacks what an object that refers to it needs.
        """
        return [_with_what_is_needed(dataset) for dataset in self.series.datasets]

    @cached_property
    def dataset_of(self) -> dict[DicomFile, Any]:
        """The data set of each file."""
        files = dict.fromkeys(image.file for image in self.series.grid.images)
        return dict(zip(files, self.datasets, strict=True))

    @property
    def described(self) -> tuple[Structure, ...]:
        """The structures of a SEG or RTSTRUCT: those found; all, without a voxel, if none is."""
        return self.found or self.card.structures

    def ml(self, structure: Structure) -> float:
        """Volume of a structure in millilitres."""
        return float(self.voxels[structure.value]) * self.series.volume.voxel_ml

    def uid(self, *what: str) -> str:
        """The UID of something in this result: the same for the same content."""
        return f"2.25.{uuid5(NAMESPACE_OID, ' '.join(('leuda', self._content, *what))).int}"

    @cached_property
    def _content(self) -> str:
        digest = hashlib.sha256(self.model_sha256.encode())
        for dataset in self.series.datasets:
            digest.update(f" {dataset.get('SOPInstanceUID', '')}".encode())
        for plane in np.moveaxis(self.labels, -1, 0):
            digest.update(np.asfortranarray(plane).T.data)
        return digest.hexdigest()


def uncoded_line(card: ModelCard) -> str:
    """What is to be said of structures that a card has no code for; "" if it has all."""
    names = [structure.name for structure in card.structures if structure.code is None]
    if not names:
        return ""
    return (
        f"the card of {card.name} has no code for {', '.join(names)}: DICOM objects call that "
        '"Tissue", beside its name; add [codes] to the cohort.toml, or a code to the card'
    )


def category_and_type(structure: Structure) -> tuple[Any, Any]:
    """The two coded concepts of a structure, e.g. Anatomical Structure and Liver."""
    from pydicom.sr.codedict import codes

    if structure.code is None:
        return concept(TISSUE), concept(TISSUE)
    lesions = {code.value for code in codes.cid7159.concepts.values()}
    abnormal = structure.code.scheme == "SCT" and structure.code.value in lesions
    return concept(ABNORMAL if abnormal else ANATOMY), concept(structure.code)


def concept(code: Code) -> Any:
    """A code as highdicom has it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def software() -> str:
    """This program and its version."""
    from importlib.metadata import version

    return f"leuda {version('leuda')}"


def _with_what_is_needed(dataset: Any) -> Any:
    for name in MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    missing = [name for name in MUST_BE_THERE if not dataset.get(name)]
    if missing:
        raise InputError(f"the series has no {', '.join(missing)}; DICOM objects must refer to it")
    if not _is_taken(dataset.get("SpecificCharacterSet")):
        dataset.decode()
        dataset.SpecificCharacterSet = UTF8
    return dataset


def _is_taken(characters: Any) -> bool:
    r"""Whether highdicom takes a character set. It knows neither "\ISO 2022 IR 87", as series of
    Japan have it, nor the Korean one, nor what is misspelt; such text is written as UTF-8.
    """
    from highdicom.enum import SpecificCharacterSetValues

    if characters is None:
        return True
    said = [characters] if isinstance(characters, str) else [*characters]
    known = {each.value for each in SpecificCharacterSetValues}
    if not said or not known.issuperset(said):
        return False
    return len(said) == 1 or (
        all(one.startswith("ISO 2022") for one in said) and said[0] not in MANY_BYTES
    )

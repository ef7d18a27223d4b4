"""a series that was found: what its headers say, where its slices stand, what is wrong with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.dicom.attributes import ImageFacts
from leuda_deploy.scans.dicom.geometry.grid import Grid, make_grid
from leuda_deploy.scans.dicom.geometry.stacks import (
    Phases,
    check_whole,
    split_phases,
    usable_images,
)
from leuda_deploy.scans.dicom.sources import DicomFile

_log = logging.getLogger(__name__)

SCANS = ("CT", "MR")
DERIVED = ("DERIVED", "SECONDARY", "MIP", "MPR", "PROJECTION IMAGE")


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """One series, as its files' headers describe it. Nothing of the patient is in it.

    source               where it was found
    uid, study_uid       SeriesInstanceUID, StudyInstanceUID
    number               SeriesNumber, or None
    modality             e.g. "CT", "MR", "SEG"; "" if it is not said
    description          SeriesDescription
    study_description    StudyDescription
    image_type           of its first image, e.g. ("ORIGINAL", "PRIMARY", "AXIAL")
    slice_thickness_mm   or None
    contrast             ContrastBolusAgent; "" if none is said
    files                all of its DICOM files, in the order of their names
    images               what each image, or frame, says of itself; empty if it has none
    faults               what is wrong with files of it, or beside it in the same folder
    """

    source: Path
    uid: str
    study_uid: str
    number: int | None
    modality: str
    description: str
    study_description: str
    image_type: tuple[str, ...]
    slice_thickness_mm: float | None
    contrast: str
    files: tuple[DicomFile, ...]
    images: tuple[ImageFacts, ...] = field(repr=False)
    faults: tuple[ScanError, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        number = "" if self.number is None else f"{self.number} "
        return f"series {number}'{self.description}' of {self.source}"

    @property
    def is_localiser(self) -> bool:
        """Whether it is a scout, by its ImageType."""
        return bool(self.images) and all(image.localiser for image in self.images)

    @property
    def is_derived(self) -> bool:
        """Whether it was made of other images, by its ImageType."""
        return any(word in self.image_type for word in DERIVED)

    @cached_property
    def orientation(self) -> str:
        """ "axial", "coronal", "sagittal", "oblique", "mixed"; "" if it has no images."""
        kinds = {_orientation(image) for image in self.images}
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else ""

    def phases(self) -> Phases:
        """Its stacks. Raises ScanError if its images are no stacks."""
        if not self.images:
            raise ScanError("missing", f"{self.name} has no images")
        return split_phases(usable_images(self.images, self.name), self.name)

    def grid(self, *, phase: int | None = None, allow_partial: bool = False) -> Grid:
        """Where its slices stand.

        Args:
            phase: Of several, counted from 0.
            allow_partial: Take what is there of a series that is not whole.

        Raises:
            ScanError: It is no scan, it is not whole, its images make no stack of slices, or it has
                several phases of which none was chosen. `fault` says which.
        """
        if self.faults and not allow_partial:
            raise self.faults[0]
        for fault in self.faults:
            if fault.fault != "partial":
                raise fault
            _log.warning("%s", fault)
        if self.modality not in SCANS:
            raise ScanError("modality", f"{self.name} is {self.modality}; CT and MR are read")
        if not allow_partial:
            check_whole(self.images, self.name)
        phases = self.phases()
        count = len(phases.stacks)
        if phase is None and count > 1:
            shown = ", ".join(filter(None, phases.values[:6])) + (", ..." if count > 6 else "")
            by = f" by {phases.key} ({shown})" if phases.key else ""
            raise ScanError(
                "frames",
                f"{self.name} has {count} phases{by}; choose one with --frame 0..{count - 1}, or "
                "--frame all",
            )
        if phase is not None and not 0 <= phase < count:
            raise ScanError(
                "frames",
                f"{self.name} has {count} phase(s); --frame {phase} is not in 0..{count - 1}",
            )
        return make_grid(phases.stacks[phase or 0], self.name, allow_partial=allow_partial)

    @cached_property
    def fault(self) -> ScanError | None:
        """Why it cannot be read as a scan; None if it can be, or each of its phases can."""
        try:
            several = bool(self.images) and len(self.phases().stacks) > 1
            self.grid(phase=0 if several else None)
        except ScanError as error:
            return error
        return None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the single images."""
        return {
            "uid": self.uid,
            "study_uid": self.study_uid,
            "number": self.number,
            "modality": self.modality,
            "description": self.description,
            "study_description": self.study_description,
            "image_type": list(self.image_type),
            "images": len(self.images),
            "files": len(self.files),
            "orientation": self.orientation,
            **_sizes(self),
            "slice_thickness_mm": self.slice_thickness_mm,
            "contrast": self.contrast,
            "localiser": self.is_localiser,
            "derived": self.is_derived,
            "fault": None if self.fault is None else self.fault.fault,
            "why_not": None if self.fault is None else str(self.fault),
        }


def _orientation(image: ImageFacts) -> str:
    """The plane of an image: that of the world whose normal is within 30 degrees of its own."""
    across = np.abs(image.normal)
    if across.max() < np.cos(np.radians(30)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[int(across.argmax())]


def _sizes(found: FoundSeries) -> dict[str, Any]:
    """Pixels, mm, and how many phases there are; None where that cannot be said."""
    sizes: dict[str, Any] = {"shape": None, "spacing_mm": None, "phases": None}
    sizes |= {"tilt_degrees": None, "uneven": None}
    try:
        stacks = found.phases().stacks
        grid = make_grid(stacks[0], found.name, allow_partial=True)
    except ScanError:
        return sizes
    return {
        "shape": list(grid.shape),
        "spacing_mm": [round(size, 4) for size in (*grid.pixel_mm, grid.distance_mm)],
        "phases": len(stacks),
        "tilt_degrees": round(grid.tilt_degrees, 2),
        "uneven": grid.is_uneven,
    }

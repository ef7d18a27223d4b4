"""DICOM data set -> the few facts that a volume is made of, or a line on what it lacks.

Type 2 attributes may be there and empty, and files that were anonymised lack others; each is asked
for here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.dicom.sources import DicomFile

MAX_PIXELS = 1 << 16  # a side, as the format has it
STORED = {
    (8, 0): "uint8",
    (8, 1): "int8",
    (16, 0): "uint16",
    (16, 1): "int16",
    (32, 0): "uint32",
    (32, 1): "int32",
}
FLOAT_PIXELS, DOUBLE_PIXELS = 0x7FE00008, 0x7FE00009  # tags of pixels that are no whole numbers
FLOATS = {FLOAT_PIXELS: "float32", DOUBLE_PIXELS: "float64"}
GREY = ("MONOCHROME1", "MONOCHROME2")
# what may tell the phases of a series apart, the surest first
PHASE_KEYS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "DiffusionBValue",
    "EchoNumbers",
    "EffectiveEchoTime",
    "EchoTime",
    "AcquisitionNumber",
    "AcquisitionTime",
    "FrameType",
    "ImageType",
)


class Attributes(Protocol):
    """A data set, or one frame of it: values by their keywords."""

    def get(self, name: str, default: Any = None) -> Any: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What one image, or one frame of a file of several, says of itself.

    file                where it lies
    frame               counted from 0, in a file of several; None: the file is one image
    uid                 its SOPInstanceUID
    series              its SeriesInstanceUID
    spacing_mm          between rows, and between columns
    orientation         direction along a row, then down a column: six numbers, LPS
    stored              the type of its values
    table               whether its values are scaled by a table, in place of slope and intercept
    padding             (lowest, highest) stored value that stands for no tissue, or None
    number              its InstanceNumber, or None
    stated_images       how many images it says there are, or None
    localiser           whether it is a scout
    phase               what may tell it from another image at the same place, see PHASE_KEYS
    """

    file: DicomFile
    frame: int | None
    uid: str
    series: str
    frame_of_reference: str
    rows: int
    columns: int
    spacing_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    position_mm: tuple[float, ...]
    stored: np.dtype[Any]
    slope: float
    intercept: float
    table: bool
    padding: tuple[int, int] | None
    number: int | None
    stated_images: int | None
    localiser: bool
    phase: Mapping[str, float | str]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Across the slice, from its rows to its columns."""
        normal: NDArray[np.float64] = np.cross(self.orientation[:3], self.orientation[3:])
        return normal


def image_facts(
    dataset: Attributes, file: DicomFile, *, frame: int | None = None, pixels_tag: int | None = None
) -> ImageFacts:
    """Ask an image for all that is needed.

    Args:
        dataset: Of a file of several frames, one of them; see `frames_of`.
        file: Where it lies.
        frame: Counted from 0, in a file of several.
        pixels_tag: Of the element with its pixels; None if it is not known.

    Raises:
        ScanError: Something is missing, empty or not of its kind; or this is no grey image.
    """
    colour = str(dataset.get("PhotometricInterpretation", "MONOCHROME2") or "MONOCHROME2")
    samples = _numbers(dataset, "SamplesPerPixel", file, 1, default=(1,))
    if colour not in GREY or samples[0] != 1:
        raise ScanError("no real numbers", f"{file} is a colour image ({colour})")
    stored = np.dtype(FLOATS[pixels_tag]) if pixels_tag in FLOATS else _stored_type(dataset, file)
    rows, columns = (int(_numbers(dataset, name, file, 1)[0]) for name in ("Rows", "Columns"))
    if not (1 <= rows <= MAX_PIXELS and 1 <= columns <= MAX_PIXELS):
        raise ScanError("axes", f"{file} has {rows} rows and {columns} columns")
    spacing = _numbers(dataset, "PixelSpacing", file, 2)
    if min(spacing) <= 0:
        raise ScanError("degenerate", f"{file} has a PixelSpacing of {spacing} mm")
    return ImageFacts(
        file=file,
        frame=frame,
        uid=str(dataset.get("SOPInstanceUID", "") or ""),
        series=_series_uid(dataset, file),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "") or ""),
        rows=rows,
        columns=columns,
        spacing_mm=spacing,
        orientation=_orientation(dataset, file),
        position_mm=_numbers(dataset, "ImagePositionPatient", file, 3),
        stored=stored,
        slope=_slope(dataset, file),
        intercept=_numbers(dataset, "RescaleIntercept", file, 1, default=(0.0,))[0],
        table=bool(dataset.get("ModalityLUTSequence")),
        padding=_padding(dataset, file, stored),
        number=None if frame is not None else whole_number(dataset, "InstanceNumber"),
        stated_images=None if frame is not None else _stated_images(dataset),
        localiser="LOCALIZER" in image_type(dataset),
        phase=_phase(dataset),
    )


def image_type(dataset: Attributes) -> tuple[str, ...]:
    """E.g. ("ORIGINAL", "PRIMARY", "AXIAL"), in capitals; empty if it is not said."""
    found = texts(dataset, "FrameType") or texts(dataset, "ImageType")
    return tuple(part.upper() for part in found)


def texts(dataset: Attributes, name: str) -> tuple[str, ...]:
    """An attribute that nothing depends on, as texts; empty if it is missing or damaged."""
    try:
        value = dataset.get(name)
        values = [] if value is None or value == "" else np.atleast_1d(np.array(value)).tolist()
        return tuple(str(part).strip() for part in values)
    except Exception:  # noqa: BLE001  (a damaged value raises anything when it is looked at)
        return ()


def number_or_none(dataset: Attributes, name: str) -> float | None:
    """A number that nothing depends on: None if it is missing or odd."""
    try:
        value = float(dataset.get(name))
    except Exception:  # noqa: BLE001  (a damaged value raises anything when it is looked at)
        return None
    return value if np.isfinite(value) else None


def whole_number(dataset: Attributes, name: str) -> int | None:
    """A whole number that nothing depends on: None if it is missing or odd."""
    try:
        return int(dataset.get(name))
    except Exception:  # noqa: BLE001  (a damaged value raises anything when it is looked at)
        return None


def _stated_images(dataset: Attributes) -> int | None:
    names = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
    return max(whole_number(dataset, name) or 0 for name in names) or None


def _phase(dataset: Attributes) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name in PHASE_KEYS:
        if (number := number_or_none(dataset, name)) is not None:
            found[name] = number
        elif text := "/".join(texts(dataset, name)):
            found[name] = text
    return found


def _series_uid(dataset: Attributes, file: DicomFile) -> str:
    uid = str(dataset.get("SeriesInstanceUID", "") or "")
    if not uid:
        raise ScanError(
            "unlike slices", f"{file} has no SeriesInstanceUID; its series is not known"
        )
    return uid


def _stored_type(dataset: Attributes, file: DicomFile) -> np.dtype[Any]:
    allocated = int(_numbers(dataset, "BitsAllocated", file, 1)[0])
    sign = int(_numbers(dataset, "PixelRepresentation", file, 1)[0])
    if (allocated, sign) not in STORED:
        raise ScanError(
            "no real numbers",
            f"{file} has pixels of {allocated} bits (PixelRepresentation {sign}); 8, 16 and 32 "
            "are read",
        )
    return np.dtype(STORED[allocated, sign])


def _orientation(dataset: Attributes, file: DicomFile) -> tuple[float, ...]:
    orientation = _numbers(dataset, "ImageOrientationPatient", file, 6)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(row @ column)) > 1e-2:
        raise ScanError(
            "degenerate",
            f"{file} has an ImageOrientationPatient of {orientation}: no two right-angled "
            "directions of length 1",
        )
    return orientation


def _slope(dataset: Attributes, file: DicomFile) -> float:
    slope = _numbers(dataset, "RescaleSlope", file, 1, default=(1.0,))[0]
    if slope == 0:
        raise ScanError("nothing in it", f"{file} has a RescaleSlope of 0: all values are alike")
    return slope


def _padding(dataset: Attributes, file: DicomFile, stored: np.dtype[Any]) -> tuple[int, int] | None:
    """PixelPaddingValue, up to PixelPaddingRangeLimit. Its own sign may have been read wrongly."""
    if stored.kind == "f":
        return None
    found = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(name)
        if value is None or value == "":
            continue
        number = int(_numbers(dataset, name, file, 1)[0])
        limits = np.iinfo(stored)
        if not limits.min <= number <= limits.max:  # the same 16 bits, read with the other sign
            number += (1 << limits.bits) if number < 0 else -(1 << limits.bits)
        if limits.min <= number <= limits.max:
            found.append(number)
    return (min(found), max(found)) if found else None


def _numbers(
    dataset: Attributes,
    name: str,
    file: DicomFile,
    count: int,
    default: tuple[float, ...] | None = None,
) -> tuple[float, ...]:
    """An attribute's numbers, so many. Missing or empty it is the default, if there is one."""
    try:
        value = dataset.get(name)
        values = [] if value is None or value == "" else np.atleast_1d(value).tolist()
        numbers = tuple(float(part) for part in values)
    except Exception as error:  # a damaged value raises anything when it is looked at
        raise ScanError("damaged", f"{file} has a damaged {name}") from error
    if not numbers and default is not None:
        return default
    if not numbers:
        raise ScanError("unlike slices", f"{file} has no {name}; it cannot be read as a slice")
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ScanError("damaged", f"{file} has {len(numbers)} numbers as {name}: {numbers[:6]}")
    return numbers

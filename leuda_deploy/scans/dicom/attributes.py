"""DICOM data set -> the few facts that a volume is made of, or a line on what it lacks.

Type 2 attributes may be there and empty, and files that were anonymised lack others; each is asked
for here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError

MOST_PIXELS = 1 << 16  # a side, as the format has it
STORED = {
    (8, 0): "uint8",
    (8, 1): "int8",
    (16, 0): "uint16",
    (16, 1): "int16",
    (32, 0): "uint32",
    (32, 1): "int32",
}
GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, kw_only=True)
class SliceFacts:
    """What one image says of itself.

    dataset             all of it, but the pixels
    series              its SeriesInstanceUID
    spacing_mm          between rows, and between columns
    orientation         direction along a row, then down a column: six numbers, LPS
    stored              the type of its values
    padding             (lowest, highest) stored value that stands for no tissue, or None
    number              its InstanceNumber, or None
    stated_images       how many images it says there are, or None
    """

    path: Path
    dataset: Any
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
    padding: tuple[int, int] | None
    number: int | None
    stated_images: int | None

    @property
    def normal(self) -> NDArray[np.float64]:
        """Across the slice, from its rows to its columns."""
        normal: NDArray[np.float64] = np.cross(self.orientation[:3], self.orientation[3:])
        return normal


def slice_facts(dataset: Any, path: Path) -> SliceFacts:
    """Ask an image for all that is needed.

    Raises:
        ScanError: Something is missing, empty or not of its kind; or this is no grey image of one
            frame whose values are whole numbers on a linear scale.
    """
    frames = _numbers(dataset, "NumberOfFrames", path, 1, default=(1,))
    if frames[0] > 1:
        raise ScanError(
            "frames", f"{path} is a file of {frames[0]:g} frames; convert it to NIfTI first"
        )
    if "ModalityLUTSequence" in dataset:
        raise ScanError(
            "unlike slices",
            f"{path} scales its values by a table (ModalityLUTSequence); export "
            "it with a RescaleSlope",
        )
    colour = str(dataset.get("PhotometricInterpretation", "MONOCHROME2") or "MONOCHROME2")
    samples = _numbers(dataset, "SamplesPerPixel", path, 1, default=(1,))
    if colour not in GREY or samples[0] != 1:
        raise ScanError("no real numbers", f"{path} is a colour image ({colour})")
    stored = _stored_type(dataset, path)
    rows, columns = (int(_numbers(dataset, name, path, 1)[0]) for name in ("Rows", "Columns"))
    if not (1 <= rows <= MOST_PIXELS and 1 <= columns <= MOST_PIXELS):
        raise ScanError("axes", f"{path} has {rows} rows and {columns} columns")
    spacing = _numbers(dataset, "PixelSpacing", path, 2)
    if min(spacing) <= 0:
        raise ScanError("degenerate", f"{path} has a PixelSpacing of {spacing} mm")
    return SliceFacts(
        path=path,
        dataset=dataset,
        series=_series_uid(dataset, path),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "") or ""),
        rows=rows,
        columns=columns,
        spacing_mm=spacing,
        orientation=_orientation(dataset, path),
        position_mm=_numbers(dataset, "ImagePositionPatient", path, 3),
        stored=stored,
        slope=_slope(dataset, path),
        intercept=_numbers(dataset, "RescaleIntercept", path, 1, default=(0.0,))[0],
        padding=_padding(dataset, path, stored),
        number=_count(dataset, "InstanceNumber"),
        stated_images=max(
            _count(dataset, "ImagesInAcquisition") or 0,
            _count(dataset, "NumberOfSeriesRelatedInstances") or 0,
        )
        or None,
    )


def _series_uid(dataset: Any, path: Path) -> str:
    uid = str(dataset.get("SeriesInstanceUID", "") or "")
    if not uid:
        raise ScanError(
            "unlike slices", f"{path} has no SeriesInstanceUID; its series is not known"
        )
    return uid


def _stored_type(dataset: Any, path: Path) -> np.dtype[Any]:
    allocated = int(_numbers(dataset, "BitsAllocated", path, 1)[0])
    sign = int(_numbers(dataset, "PixelRepresentation", path, 1)[0])
    if (allocated, sign) not in STORED:
        raise ScanError(
            "no real numbers",
            f"{path} has pixels of {allocated} bits (PixelRepresentation {sign}); 8, 16 and 32 "
            "are read",
        )
    return np.dtype(STORED[allocated, sign])


def _orientation(dataset: Any, path: Path) -> tuple[float, ...]:
    orientation = _numbers(dataset, "ImageOrientationPatient", path, 6)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(row @ column)) > 1e-2:
        raise ScanError(
            "degenerate",
            f"{path} has an ImageOrientationPatient of {orientation}: no two right-angled "
            "directions of length 1",
        )
    return orientation


def _slope(dataset: Any, path: Path) -> float:
    slope = _numbers(dataset, "RescaleSlope", path, 1, default=(1.0,))[0]
    if slope == 0:
        raise ScanError("nothing in it", f"{path} has a RescaleSlope of 0: all values are alike")
    return slope


def _padding(dataset: Any, path: Path, stored: np.dtype[Any]) -> tuple[int, int] | None:
    """PixelPaddingValue, up to PixelPaddingRangeLimit. Its own sign may have been read wrongly."""
    found = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(name)
        if value is None or value == "":
            continue
        number = int(_numbers(dataset, name, path, 1)[0])
        limits = np.iinfo(stored)
        if not limits.min <= number <= limits.max:  # the same 16 bits, read with the other sign
            number += (1 << limits.bits) if number < 0 else -(1 << limits.bits)
        if limits.min <= number <= limits.max:
            found.append(number)
    return (min(found), max(found)) if found else None


def _count(dataset: Any, name: str) -> int | None:
    """A whole number that nothing depends on: None if it is missing or odd."""
    try:
        return int(dataset.get(name))
    except Exception:  # noqa: BLE001  (a damaged value raises anything when it is looked at)
        return None


def _numbers(
    dataset: Any, name: str, path: Path, count: int, default: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """An attribute's numbers, so many. Missing or empty it is the default, if there is one."""
    try:
        value = dataset.get(name)
        values = [] if value is None or value == "" else np.atleast_1d(value).tolist()
        numbers = tuple(float(part) for part in values)
    except Exception as error:  # a damaged value raises anything when it is looked at
        raise ScanError("damaged", f"{path} has a damaged {name}") from error
    if not numbers and default is not None:
        return default
    if not numbers:
        raise ScanError("unlike slices", f"{path} has no {name}; it cannot be read as a slice")
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ScanError("damaged", f"{path} has {len(numbers)} numbers as {name}: {numbers[:6]}")
    return numbers

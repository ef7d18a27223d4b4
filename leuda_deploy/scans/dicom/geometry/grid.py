"""images of one stack -> their order and where they stand: on a regular grid, or on none.

DICOM's world is LPS, that of a Volume RAS. A slice lies at its offset from the first one: along a
row, down a column, and across the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.dicom.attributes import ImageFacts

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_WITHIN = 1e-3
MAX_TILT_DEGREES = 45.0  # a gantry tilts by 30 at most
# by which a slice may be off its place and is still taken to be there:
ROUNDED_MM = 0.075  # positions are often rounded to 0.1 mm
SHIFT_SHARE = 0.25  # of a pixel, within the slice
GAP_SHARE = 0.05  # of the slice distance, across it
MISSING_SHARE = 0.05  # by which a gap may miss a whole number of slice distances


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Slices in the order in which they lie, from the rows' direction to the columns'.

    images      the slices
    offsets_mm  (D, 3) of each from the first: along a row, down a column, across
    missing     how many slices are taken to be missing between others
    """

    images: tuple[ImageFacts, ...]
    offsets_mm: NDArray[np.float64]
    missing: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices)."""
        return self.images[0].columns, self.images[0].rows, len(self.images)

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3) LPS, in columns: along a row, down a column, across; each of length 1."""
        row, column = (np.array(self.images[0].orientation[k : k + 3]) for k in (0, 3))
        row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
        return np.stack([row, column, self.images[0].normal], axis=1)

    @property
    def steps_mm(self) -> NDArray[np.float64]:
        """(D - 1,) from slice to slice, across."""
        return np.diff(self.offsets_mm[:, 2])

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """From column to column, and from row to row."""
        down, along = self.images[0].spacing_mm
        return along, down

    @property
    def distance_mm(self) -> float:
        """From slice to slice, on the whole."""
        return self._even[1]

    @cached_property
    def _even(self) -> tuple[float, float]:
        """Where the first slice of the even grid next to the slices is, and their distance."""
        across = self.offsets_mm[:, 2]
        places = np.arange(len(across))
        distance = float(across[-1]) / (len(across) - 1)
        if np.abs(across - places * distance).max() <= SAME_WITHIN:
            return 0.0, distance
        slope, start = np.polyfit(
            places, across, 1
        )  # rounded positions: none is better than others
        return float(start), float(slope)

    @cached_property
    def tilt_degrees(self) -> float:
        """By which the slices are shifted along the stack; 0 if by less than can be seen."""
        shift = self.offsets_mm[:, :2]
        most = np.maximum(SHIFT_SHARE * np.array(self.pixel_mm), ROUNDED_MM)
        if (np.abs(shift) <= most).all():
            return 0.0
        whole = self.offsets_mm[-1]
        return float(np.degrees(np.arctan2(np.linalg.norm(whole[:2]), whole[2])))

    @cached_property
    def is_shifted(self) -> bool:
        """Whether slices are shifted within their plane by more than a quarter of a pixel."""
        most = np.maximum(SHIFT_SHARE * np.array(self.pixel_mm), ROUNDED_MM)
        return bool((np.abs(self.offsets_mm[:, :2]) > most).any())

    @cached_property
    def is_uneven(self) -> bool:
        """Whether a slice is off its place on an even grid by more than rounding."""
        across = self.offsets_mm[:, 2]
        start, distance = self._even
        off = np.abs(across - start - np.arange(len(across)) * distance).max()
        return bool(off > max(GAP_SHARE * self.distance_mm, ROUNDED_MM))

    @property
    def is_regular(self) -> bool:
        """Whether one affine says where each voxel is."""
        return not (self.is_shifted or self.is_uneven)

    def affine(
        self, *, start_mm: tuple[float, float] = (0.0, 0.0), distance_mm: float | None = None
    ) -> NDArray[np.float64]:
        """(4, 4) index (column, row, slice) -> RAS+ in mm, of an orthogonal grid.

        Args:
            start_mm: Where its first voxel is from that of the first slice: along row and column.
            distance_mm: From slice to slice; None: that of the slices.
        """
        directions, (along, down) = self.directions, self.pixel_mm
        matrix = np.eye(4)
        matrix[:3, :3] = directions * [along, down, distance_mm or self.distance_mm]
        start = (*start_mm, 0.0 if self.is_uneven else self._even[0])
        matrix[:3, 3] = self.images[0].position_mm + directions @ np.array(start)
        affine: NDArray[np.float64] = RAS_OF_LPS @ matrix
        return affine


def make_grid(stack: Sequence[ImageFacts], name: str, *, allow_partial: bool = False) -> Grid:
    """Order the images of a stack, and see where they stand.

    Args:
        stack: One image a place, alike in shape and direction.
        name: What messages call the series.
        allow_partial: Take a stack that misses slices in between.

    Raises:
        ScanError: There is one image, slices are missing, or shifted by more than a gantry tilts.
    """
    if len(stack) == 1:
        raise ScanError("axes", f"{name} holds one slice; its thickness alone makes no volume")
    along = np.array([image.position_mm for image in stack]) @ stack[0].normal
    ordered = tuple(stack[index] for index in np.argsort(along, kind="stable"))
    places = np.array([image.position_mm for image in ordered])
    grid = Grid(images=ordered, offsets_mm=np.zeros((len(stack), 3)))
    grid = Grid(images=ordered, offsets_mm=(places - places[0]) @ grid.directions)
    if grid.tilt_degrees > MAX_TILT_DEGREES:
        raise ScanError(
            "sheared",
            f"the slices of {name} are shifted by {grid.tilt_degrees:.0f} degrees: no gantry tilts "
            f"by more than {MAX_TILT_DEGREES:.0f}",
        )
    if not grid.is_uneven:
        return grid
    missing, where = _missing(grid)
    if missing and not allow_partial:
        usual = float(np.median(grid.steps_mm))
        raise ScanError(
            "missing slice",
            f"{name} misses about {missing} slice(s), the first after slice {where}: a step of "
            f"{grid.steps_mm[where]:.2f} mm where the others are {usual:.2f} mm; copy the series "
            "again, or fill the gaps from the slices beside them with --allow-partial",
        )
    return Grid(images=ordered, offsets_mm=grid.offsets_mm, missing=missing)


def _missing(grid: Grid) -> tuple[int, int]:
    """How many slices are missing, and after which slice first: 0 where they only lie unevenly.

    The images' own numbers decide, where they have any in order; else a gap of a whole number of
    slice distances is one of missing slices.
    """
    steps, usual = grid.steps_mm, float(np.median(grid.steps_mm))
    numbers: list[Any] = [image.number for image in grid.images]
    counts = np.zeros(len(steps), dtype=int)
    wide = steps > 1.5 * usual
    if None not in numbers and len(set(numbers)) == len(numbers):
        gaps = np.diff(numbers)
        if (gaps > 0).all() or (gaps < 0).all():
            one = max(1, int(np.median(np.abs(gaps))))
            counts[wide] = np.abs(gaps[wide]) // one - 1
            return _first(counts)
    whole = np.rint(steps / usual)
    is_whole = np.abs(steps - whole * usual) <= MISSING_SHARE * usual + ROUNDED_MM
    counts[wide & is_whole] = (whole - 1)[wide & is_whole].astype(int)
    return _first(counts)


def _first(counts: NDArray[np.int64]) -> tuple[int, int]:
    counts = np.maximum(counts, 0)
    return int(counts.sum()), int(np.argmax(counts > 0))

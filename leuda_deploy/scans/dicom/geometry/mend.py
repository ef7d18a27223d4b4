"""slices that are shifted or lie unevenly -> an orthogonal grid; its labels -> the slices again.

Each slice is shifted back within its plane (linear, two pixels a side); where slices lie unevenly,
those of the new grid are mixed of the two beside them. Slices pass one by one: besides the new
volume two are held.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.scans.dicom.geometry.grid import Grid

MAX_SLICES_SHARE = 2.0  # times as many slices as there were, at most
SMALL = 1e-6
Real = NDArray[np.floating[Any]]  # float32; float64 for values of more than 16 bits


@dataclass(frozen=True, kw_only=True)
class Mending:
    """How slices (columns, rows, slices) come to lie on an orthogonal grid, and back.

    grid  the slices as they are
    """

    grid: Grid

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        """(D, 2) of each slice from the new grid's first pixel, in columns and rows; none < 0."""
        if not self.grid.is_shifted:
            return np.zeros((len(self.grid.images), 2))
        shift: NDArray[np.float64] = self.grid.offsets_mm[:, :2] / np.array(self.grid.pixel_mm)
        shift -= shift.min(axis=0)
        return shift

    @cached_property
    def across_mm(self) -> NDArray[np.float64]:
        """(D,) of the slices; on an even grid they lie where it has them."""
        if self.grid.is_uneven:
            return self.grid.offsets_mm[:, 2]
        return np.arange(len(self.grid.images), dtype=np.float64) * self.grid.distance_mm

    @cached_property
    def distance_mm(self) -> float:
        """Of the new slices: the least there is, but no more than twice as many slices."""
        if not self.grid.is_uneven:
            return self.grid.distance_mm
        most = int(MAX_SLICES_SHARE * len(self.grid.images))
        return max(float(self.grid.steps_mm.min()), float(self.across_mm[-1]) / (most - 1))

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices) of the new grid; it holds all pixels of all slices."""
        columns, rows, _ = self.grid.shape
        more = np.ceil(self.shift.max(axis=0) - SMALL).astype(int)
        slices = int(np.floor(self.across_mm[-1] / self.distance_mm + SMALL)) + 1
        return columns + int(more[0]), rows + int(more[1]), slices

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) of the new grid, RAS+ in mm."""
        pixel = np.array(self.grid.pixel_mm)
        start = np.zeros(2)
        if self.grid.is_shifted:
            start = (self.grid.offsets_mm[0, :2] / pixel - self.shift[0]) * pixel
        return self.grid.affine(
            start_mm=(float(start[0]), float(start[1])), distance_mm=self.distance_mm
        )

    def resample(
        self, slices: Iterable[NDArray[Any]], dtype: np.dtype[Any], padding: tuple[int, int] | None
    ) -> tuple[NDArray[Any], tuple[float, float] | None]:
        """Slices (rows, columns), in order -> values (columns, rows, slices), and their padding.

        What no slice covers gets the padding of the series, or a value below its lowest.
        """
        values = np.empty(self.shape, dtype=dtype, order="F")
        lowest, done = np.inf, 0
        before: Real = np.zeros((0, 0), np.float32)
        for at, each in enumerate(slices):
            lowest = min(lowest, float(each.min()))
            here = self._shifted(each, at)
            while done < self.shape[2] and self._place(done) <= at + SMALL:
                share = np.float32(at - self._place(done))
                mixed = here if share <= SMALL else here + share * (before - here)
                values[..., done] = _as_stored(mixed, dtype).T
                done += 1
            before = here
        if not self.grid.is_shifted:
            return values, padding
        return values, self._fill(values, lowest, padding)

    def labels_on_slices(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of the new grid -> of the slices (columns, rows, slices): the nearest voxel's."""
        columns, rows, depth = self.grid.shape
        found = np.zeros((columns, rows, depth), dtype=np.uint8, order="F")
        nearest = np.rint(self.across_mm / self.distance_mm).astype(int)
        nearest = np.clip(nearest, 0, self.shape[2] - 1)
        start = np.rint(self.shift).astype(int)
        start = np.minimum(start, np.array(self.shape[:2]) - (columns, rows))
        for k, (z, (x, y)) in enumerate(zip(nearest, start, strict=True)):
            found[..., k] = labels[x : x + columns, y : y + rows, z]
        return found

    def _place(self, index: int) -> float:
        """Where a new slice lies among the slices: 1.5 is halfway from the second to the third."""
        at = index * self.distance_mm
        return float(np.interp(at, self.across_mm, np.arange(len(self.across_mm))))

    def _shifted(self, pixels: NDArray[Any], index: int) -> Real:
        """(rows, columns) on the new grid's plane; its border goes on beyond it."""
        columns, rows, _ = self.shape
        moved: Real = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
        for axis, size, by in ((0, rows, self.shift[index, 1]), (1, columns, self.shift[index, 0])):
            moved = _moved(moved, axis, size, float(by))
        return moved

    def _covered(self, index: int) -> tuple[slice, slice]:
        """Columns and rows of a slice's plane that lie within it."""
        columns, rows, _ = self.grid.shape
        (x, y) = self.shift[index]
        first = (int(np.ceil(x - SMALL)), int(np.ceil(y - SMALL)))
        last = (int(np.floor(x + columns - 1 + SMALL)), int(np.floor(y + rows - 1 + SMALL)))
        return slice(first[0], last[0] + 1), slice(first[1], last[1] + 1)

    def _fill(
        self, values: NDArray[Any], lowest: float, padding: tuple[int, int] | None
    ) -> tuple[float, float]:
        """Put the padding where no slice is; of two that were mixed, both must be there."""
        if padding is None:
            least = -np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).min
            value = lowest - 1 if lowest - 1 >= least else lowest
            padding = (int(np.floor(value)), int(np.floor(value)))
        for index in range(self.shape[2]):
            place = self._place(index)
            outside = np.ones(self.shape[:2], dtype=bool)
            parts = [self._covered(k) for k in {int(place + SMALL), int(np.ceil(place - SMALL))}]
            columns = slice(max(p[0].start for p in parts), min(p[0].stop for p in parts))
            rows = slice(max(p[1].start for p in parts), min(p[1].stop for p in parts))
            outside[columns, rows] = False
            values[..., index][outside] = padding[0]
        return padding


def _moved(pixels: Real, axis: int, size: int, by: float) -> Real:
    """Pixels moved along an axis by `by` >= 0 pixels, on `size` pixels."""
    whole = int(np.floor(by + SMALL))
    share = np.float32(max(0.0, by - whole))
    have = pixels.shape[axis]
    index = np.clip(np.arange(size) - whole, 0, have - 1)
    moved: Real = np.take(pixels, index, axis=axis)
    if share > SMALL:
        left = np.take(pixels, np.clip(np.arange(size) - whole - 1, 0, have - 1), axis=axis)
        moved += share * (left - moved)
    return moved


def _as_stored(values: Real, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)

"""all voxels of a scan -> clip limits and normalisation, in scanner units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.volume import Volume

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Intensity:
    """Clip to [low, high], then (value - shift) / scale.

    quartiles  of the scan's values, in scanner units; they say what a scan looks like
    """

    low: float
    high: float
    shift: float
    scale: float
    quartiles: tuple[float, ...] = ()

    def __call__(self, values: Float32) -> Float32:
        """Scanner units -> normalised, any shape, in place; NaN becomes the floor."""
        np.clip(values, self.low, self.high, out=values)  # infinities become the limits
        np.copyto(values, np.float32(self.low), where=np.isnan(values))
        values -= np.float32(self.shift)
        values /= np.float32(self.scale)
        return values

    @property
    def floor(self) -> float:
        """The normalised value of the darkest voxel; what lies outside the scan is given it."""
        return (self.low - self.shift) / self.scale

    @property
    def ceiling(self) -> float:
        """The normalised value of the brightest voxel."""
        return (self.high - self.shift) / self.scale


def fit_intensity(volume: Volume, recipe: Recipe) -> Intensity:
    """Percentiles, mean and deviation over the scan's finite voxels, in scanner units.

    Whole-scan statistics in the scan's native grid, so that cropping cannot change them.
    Raises ScanError for a scan in which nothing differs.
    """
    values, counts = _histogram(volume)
    if values.size == 0:
        raise ScanError("nothing in it", f"{volume.name} has no finite voxel")
    low, high = _percentiles(values, counts, recipe.clip_percentiles)
    if not high > low:  # e.g. a mask, or a scan that is nearly all air
        low, high = float(values[0]), float(values[-1])
    if not high > low:
        raise ScanError(
            "nothing in it", f"every voxel of {volume.name} is {low:g}; there is nothing to segment"
        )
    quartiles = _percentiles(values, counts, (25.0, 50.0, 75.0))
    if recipe.normalisation == "minmax":
        return Intensity(low, high, (low + high) / 2, (high - low) / 2, quartiles)
    clipped = np.clip(values, low, high)
    mean = float(np.average(clipped, weights=counts))
    deviation = float(np.sqrt(np.average((clipped - mean) ** 2, weights=counts)))
    return Intensity(low, high, mean, deviation, quartiles)


def _histogram(volume: Volume) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sorted distinct values of the scan, in scanner units, and how often each occurs."""
    raw = volume.raw
    if raw.dtype.kind in "iub":
        low = int(raw.min())
        if int(raw.max()) - low < 1 << 20:
            # slice by slice, so that a wide copy of the whole scan never exists
            counts = np.zeros(int(raw.max()) - low + 1, dtype=np.int64)
            for part in np.moveaxis(raw, -1, 0):
                shifted = part.ravel(order="K").astype(np.int64) - low
                counts += np.bincount(shifted, minlength=counts.size)
            present = np.flatnonzero(counts)
            values, counts = (present + low).astype(np.float64), counts[present]
        else:
            values, counts = np.unique(raw, return_counts=True)
    else:
        values, counts = np.unique(raw[np.isfinite(raw)], return_counts=True)
    values = values.astype(np.float64) * volume.slope + volume.inter
    return (values, counts) if volume.slope > 0 else (values[::-1], counts[::-1])


def _percentiles(
    values: NDArray[np.float64], counts: NDArray[np.int64], percent: tuple[float, ...]
) -> tuple[float, ...]:
    """numpy.percentile's linear rule, from a histogram."""
    last_rank = np.cumsum(counts) - 1
    rank = np.asarray(percent) / 100.0 * last_rank[-1]
    below = values[np.searchsorted(last_rank, np.floor(rank))]
    above = values[np.searchsorted(last_rank, np.ceil(rank))]
    return tuple((below + (above - below) * (rank - np.floor(rank))).tolist())

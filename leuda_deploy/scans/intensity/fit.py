"""all voxels of a scan -> clip limits and normalisation, in scanner units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.intensity.distribution import Counts, distribution_of
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

    def rounded(self) -> dict[str, float | tuple[float, ...]]:
        """All of it by name, to four digits."""
        found = {name: round(getattr(self, name), 4) for name in ("low", "high", "shift", "scale")}
        return found | {"quartiles": tuple(round(value, 4) for value in self.quartiles)}

    @property
    def ceiling(self) -> float:
        """The normalised value of the brightest voxel."""
        return (self.high - self.shift) / self.scale


def fit_intensity(volume: Volume, recipe: Recipe, inside: Counts | None = None) -> Intensity:
    """Percentiles, mean and deviation over the scan's finite voxels, in scanner units.

    Whole-scan statistics in the scan's native grid, so that cropping cannot change them. Padding is
    no tissue and enters none of them, nor does what is not inside.
    Raises ScanError for a scan in which nothing differs, unless the normalisation is fixed.
    """
    if recipe.only_nonzero:
        zero = -volume.inter / volume.slope
        volume = volume.with_padding(zero, zero)
    values = distribution_of(volume, inside)
    if values.count == 0:
        raise ScanError("nothing in it", f"{volume.name} has no finite voxel that is not padding")
    if recipe.fixed is not None:
        fixed, quartiles = recipe.fixed, values.percentiles((25.0, 50.0, 75.0))
        return Intensity(fixed.low, fixed.high, fixed.shift, fixed.scale, quartiles)
    low, high = values.percentiles(recipe.clip_percentiles)
    if not high > low:  # e.g. a mask, or a scan that is nearly all air
        low, high = values.percentiles((0.0, 100.0))
    if not high > low:
        raise ScanError(
            "nothing in it", f"every voxel of {volume.name} is {low:g}; there is nothing to segment"
        )
    quartiles = values.percentiles((25.0, 50.0, 75.0))
    if recipe.normalisation == "minmax":
        return Intensity(low, high, (low + high) / 2, (high - low) / 2, quartiles)
    mean, deviation = values.mean_and_deviation(low, high)
    return Intensity(low, high, mean, deviation, quartiles)

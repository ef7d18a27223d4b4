"""scan + labels + modality -> the range of values that is shown between black and white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.scans.volume import Volume

SOFT_TISSUE = (-160.0, 240.0)  # HU, the usual window of the abdomen: width 400, level 40
AIR_HU = -500.0  # a CT in Hounsfield units has values below it
SAMPLES = 2_000_000  # voxels looked at, at most
MARGIN = 0.75  # of the structures' own range, on either side of it


@dataclass(frozen=True, kw_only=True)
class GreyWindow:
    """Values in scanner units: low is black, high is white. chosen_by: the reason, to be shown."""

    low: float
    high: float
    chosen_by: str

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scanner units -> grey, 0 to 255; what is no number is black."""
        grey = (values - np.float32(self.low)) / np.float32(self.high - self.low)
        shades: NDArray[np.float32] = np.nan_to_num(np.clip(grey, 0, 1)) * np.float32(255)
        return shades

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g} ({self.chosen_by})"


def choose_window(volume: Volume, labels: NDArray[np.uint8], modality: str) -> GreyWindow:
    """A window in which the structures can be told from what is around them.

    CT in Hounsfield units has the soft tissue window, wider where a structure is brighter, e.g.
    blood with contrast. Any other scan is shown around the values inside its labels; without
    labels, from its 1st to its 99.5th percentile.
    """
    every = tuple(
        slice(None, None, step) for step in _steps(volume.raw.shape, max(1, volume.raw.size))
    )
    values = volume.raw[every].astype(np.float64) * volume.slope + volume.inter
    finite = np.isfinite(values)
    inside = values[finite & (labels[every] > 0)]
    values = values[finite]
    if not values.size:
        return GreyWindow(low=0.0, high=1.0, chosen_by="there is no number in the scan")
    least, low, high, most = np.percentile(values, (0, 1, 99.5, 100)).tolist()
    if modality.upper() == "CT" and least < AIR_HU:
        low, high = SOFT_TISSUE
        bright = float(np.percentile(inside, 95)) if inside.size else high
        if bright <= high:
            return GreyWindow(low=low, high=high, chosen_by="soft tissue, HU")
        return GreyWindow(low=low, high=1.1 * bright, chosen_by="soft tissue to structures, HU")
    reason = "1st to 99.5th percentile"
    if inside.size:
        first, last = np.percentile(inside, (2, 98)).tolist()
        if last > first:
            around = MARGIN * (last - first)
            low, high = max(least, first - around), min(most, last + around)
            reason = "around the structures"
    if not high > low:
        low, high = least, most if most > least else least + 1
    return GreyWindow(low=low, high=high, chosen_by=reason)


def _steps(shape: tuple[int, ...], size: int) -> list[int]:
    """Every n-th voxel of each axis, so that at most SAMPLES are looked at; thin axes are kept."""
    steps = [1] * len(shape)
    while size > SAMPLES:
        axis = max(range(len(shape)), key=lambda k: shape[k] / steps[k])
        steps[axis] += 1
        size = int(np.prod([-(-n // step) for n, step in zip(shape, steps, strict=True)]))
    return steps

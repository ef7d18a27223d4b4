"""a scan's slices and its intensity -> where it is more than air, and the box around that."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.scans.intensity.fit import Intensity
from leuda_deploy.scans.volume import Volume

Span = tuple[int, int]  # from, up to


def not_air(
    raw: NDArray[Any], volume: Volume, intensity: Intensity, air: float
) -> NDArray[np.bool_]:
    """Which pixels are no air in any slice: raw values (D, H, W) -> (H, W).

    air  share of the way from the scan's darkest value to its brightest, up to which it is air
    """
    # NaN is no tissue; a slope may turn the order around
    brightest = (np.fmax if volume.slope > 0 else np.fmin).reduce(raw, axis=0)
    values = brightest * np.float64(volume.slope) + volume.inter
    lit: NDArray[np.bool_] = values > intensity.low + air * (intensity.high - intensity.low)
    return lit


def box_around(lit: NDArray[np.bool_], shape: tuple[int, int]) -> tuple[Span, Span]:
    """Rows and columns, on a grid of this shape, around all that is lit; of nothing, the whole."""
    if not lit.any():
        return (0, shape[0]), (0, shape[1])
    return _span(np.any(lit, axis=1), shape[0]), _span(np.any(lit, axis=0), shape[1])


def _span(lit: NDArray[np.bool_], size: int) -> Span:
    """From the first to the last that is lit, on a grid of another size, and a pixel around."""
    places = np.flatnonzero(lit)
    first, stop = int(places[0]) * size // len(lit), -(-(int(places[-1]) + 1) * size // len(lit))
    return max(0, first - 1), min(size, stop + 1)

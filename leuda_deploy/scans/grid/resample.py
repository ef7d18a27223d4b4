"""images on one grid -> on another; or cut and padded about the centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Anchored:
    """Linear between the nearest two pixels, on a grid that begins where it is said.

    first  where the grid's first pixel centre lies, in pixels of what is resampled
    step   from one centre to the next
    """

    first: float
    step: float

    def back(self) -> Anchored:
        """From the grid to what was resampled."""
        return Anchored(-self.first / self.step, 1 / self.step)


# How an axis is resampled: linear, widening with the step when it shrinks (area-weighted, no
# aliasing); or between the nearest two, by cubic splines, or the nearest alone, whatever the step.
# All of these cover the same field of view; `Anchored` does not.
Kernel = Literal["smooth", "linear", "spline", "nearest"] | Anchored
Kernels = tuple[Kernel, Kernel, Kernel]
ANISOTROPIC = 3.0  # times the shortest edge of a voxel, from which on splines leave an axis alone
SPLINE_REACH = 12  # pixels: 2 parts in 10 million of a spline's weight lie further away


def left_alone(have_mm: tuple[float, ...], want_mm: tuple[float, ...]) -> tuple[bool, ...]:
    """Of each axis, whether the nearest is taken, as nnU-Net does from one voxel size to another.

    The longest axis of voxels over ANISOTROPIC times as long as wide, on either grid, if it is one.
    """
    for spacing in (have_mm, want_mm):
        longest = max(spacing)
        if longest > ANISOTROPIC * min(spacing):
            alone = [size == longest for size in spacing]
            return tuple(alone) if sum(alone) == 1 else (False,) * len(spacing)
    return (False,) * len(have_mm)


def along(kernel: Kernel, alone: tuple[bool, ...]) -> Kernels:
    """This kernel for D, H and W, and the nearest for those that are left alone."""
    first, second, third = ("nearest" if nearest else kernel for nearest in alone)
    return first, second, third


def resize(
    images: Float32, shape: tuple[int, int], kernels: tuple[Kernel, Kernel] = ("smooth", "smooth")
) -> Float32:
    """Resampling of (..., H, W) to (..., h, w).

    Pixel centres at (i + 0.5) / n of the field, or anchored. Two small sparse matrix products, one
    per axis.
    """
    height, width = images.shape[-2:]
    keeps = unchanged(height, shape[0], kernels[0]), unchanged(width, shape[1], kernels[1])
    if all(keeps):
        return images
    rows = _resize_matrix(height, shape[0], kernels[0])
    columns = _resize_matrix(width, shape[1], kernels[1])
    resized = np.empty((*images.shape[:-2], *shape), dtype=np.float32)
    planes = images.reshape(-1, height, width)
    for plane, out in zip(planes, resized.reshape(-1, *shape), strict=True):
        # the sparse product runs along memory when the axis it works on comes first
        half = plane if keeps[0] else rows @ plane
        out[...] = half if keeps[1] else (columns @ np.ascontiguousarray(half.T)).T
    return resized


def unchanged(size_in: int, size_out: int, kernel: Kernel) -> bool:
    """Whether an axis stays as it is."""
    return size_in == size_out and (
        not isinstance(kernel, Anchored) or kernel == Anchored(0.0, 1.0)
    )


@lru_cache(maxsize=64)
def _resize_matrix(size_in: int, size_out: int, kernel: Kernel) -> Any:
    """(size_out, size_in) sparse float32 weights; every row sums to 1."""
    index, weight = taps(size_in, size_out, kernel)
    rows = np.broadcast_to(np.arange(size_out), index.shape)
    entries: Any = (weight.ravel(), (rows.ravel(), index.ravel()))
    return csr_array(entries, shape=(size_out, size_in))


@lru_cache(maxsize=64)
def taps(
    size_in: int, size_out: int, kernel: Kernel = "smooth"
) -> tuple[NDArray[np.intp], Float32]:
    """What each resampled pixel is made of: indices and weights, both (T, size_out).

    T is 2 when magnifying linearly. A column of weights sums to 1; only a spline's are negative.
    """
    places = np.arange(size_out, dtype=np.float64)
    if isinstance(kernel, Anchored):
        return _linear_taps(size_in, kernel.first + places * kernel.step, 1.0)
    step = size_in / size_out
    centres = (places + 0.5) * step - 0.5
    if kernel == "nearest":
        nearest = np.clip(np.floor(centres + 0.5), 0, size_in - 1).astype(np.intp)[None]
        return nearest, np.ones_like(nearest, dtype=np.float32)
    if kernel == "spline":
        return _spline_taps(size_in, centres)
    return _linear_taps(size_in, centres, max(step, 1.0) if kernel == "smooth" else 1.0)


def _linear_taps(
    size_in: int, centres: NDArray[np.float64], reach: float
) -> tuple[NDArray[np.intp], Float32]:
    """Weights that fall linearly to 0 at a distance of `reach` pixels."""
    if reach == 1:  # beyond the first and last pixel centre the edge value holds
        centres = np.clip(centres, 0, size_in - 1)
    first = np.floor(centres - reach).astype(np.intp) + 1
    index = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weight = np.clip(1.0 - np.abs(centres - index) / reach, 0.0, None)
    weight[(index < 0) | (index >= size_in)] = 0.0
    weight /= weight.sum(axis=0)
    return np.clip(index, 0, size_in - 1), weight.astype(np.float32)


def _spline_taps(size_in: int, centres: NDArray[np.float64]) -> tuple[NDArray[np.intp], Float32]:
    """A cubic spline through all pixels is linear in them: its weights, read off unit pixels."""
    units = np.pad(np.eye(size_in), ((SPLINE_REACH, SPLINE_REACH), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(units, axis=0, mode="nearest")
    first = np.floor(centres).astype(np.intp)
    place = centres - first
    pieces = (
        (1 - place) ** 3,
        4 - 6 * place**2 + 3 * place**3,
        1 + 3 * place + 3 * place**2 - 3 * place**3,
        place**3,
    )
    whole: Any = sum(
        piece[:, None] / 6 * coefficients[np.clip(first + SPLINE_REACH + k, 0, len(units) - 1)]
        for k, piece in enumerate(pieces, start=-1)
    )
    index = (first + np.arange(-SPLINE_REACH, SPLINE_REACH + 2)[:, None]).astype(np.intp)
    inside = np.clip(index, 0, size_in - 1)
    weight = np.where(index == inside, whole[np.arange(len(centres)), inside], 0.0)
    weight /= weight.sum(axis=0)
    return inside, weight.astype(np.float32)


def fit_to_window(images: NDArray[Any], window: tuple[int, int], fill: float) -> NDArray[Any]:
    """Crop or pad (..., H, W) about its centre to (..., h, w). Looks at no label."""
    for axis, size in zip((-2, -1), window, strict=True):
        excess = images.shape[axis] - size
        if excess > 0:
            images = np.take(images, range(excess // 2, excess // 2 + size), axis=axis)
        elif excess < 0:
            before = -excess // 2
            pad = [(0, 0)] * images.ndim
            pad[images.ndim + axis] = (before, -excess - before)
            images = np.pad(images, pad, constant_values=fill)
    return images

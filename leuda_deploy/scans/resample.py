"""images on one grid -> on another, the same field of view; or cut and padded about the centre."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Float32 = NDArray[np.float32]


def resize(images: Float32, shape: tuple[int, int]) -> Float32:
    """Linear resampling of (..., H, W) to (..., h, w) over the same field of view.

    Pixel centres at (i + 0.5) / n of the field; the linear filter widens with the step when it
    shrinks (area-weighted, no aliasing). Two small sparse matrix products, one per axis.
    """
    height, width = images.shape[-2:]
    if (height, width) == tuple(shape):
        return images
    rows, columns = _resize_matrix(height, shape[0]), _resize_matrix(width, shape[1])
    resized = np.empty((*images.shape[:-2], *shape), dtype=np.float32)
    planes = images.reshape(-1, height, width)
    for plane, out in zip(planes, resized.reshape(-1, *shape), strict=True):
        # the sparse product runs along memory when the axis it works on comes first
        half = rows @ plane if height != shape[0] else plane
        out[...] = (columns @ np.ascontiguousarray(half.T)).T if width != shape[1] else half
    return resized


@lru_cache(maxsize=64)
def _resize_matrix(size_in: int, size_out: int) -> Any:
    """(size_out, size_in) sparse float32 weights; every row sums to 1."""
    index, weight = taps(size_in, size_out)
    rows = np.broadcast_to(np.arange(size_out), index.shape)
    entries: Any = (weight.ravel(), (rows.ravel(), index.ravel()))
    return csr_array(entries, shape=(size_out, size_in))


@lru_cache(maxsize=64)
def taps(size_in: int, size_out: int) -> tuple[NDArray[np.intp], Float32]:
    """What each resampled pixel is made of: indices and weights, both (T, size_out).

    T is 2 when magnifying. A column of weights sums to 1; none is negative.
    """
    step = size_in / size_out
    reach = max(step, 1.0)
    centres = (np.arange(size_out) + 0.5) * step - 0.5
    if step <= 1:  # magnify: beyond the first and last pixel centre the edge value holds
        centres = np.clip(centres, 0, size_in - 1)
    first = np.floor(centres - reach).astype(np.intp) + 1
    index = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weight = np.clip(1.0 - np.abs(centres - index) / reach, 0.0, None)
    weight[(index < 0) | (index >= size_in)] = 0.0
    weight /= weight.sum(axis=0)
    return np.clip(index, 0, size_in - 1), weight.astype(np.float32)


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

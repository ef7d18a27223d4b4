"""scores of regions that may overlap <-> a bit for each, in one byte a pixel; and one label map.

Bit k stands for the structure of class k + 1. In a label map a pixel gets the last of the regions
that it is in, as nnU-Net's `regions_class_order` has it: so large regions come first.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MOST_REGIONS = 8
UInt8 = NDArray[np.uint8]
# byte -> its highest bit, counted from 1: the last of the regions
_LAST = np.array([byte.bit_length() for byte in range(256)], dtype=np.uint8)


def region_bits(planes: Iterable[NDArray[np.float32]], threshold: float) -> UInt8:
    """Which regions each pixel is in: K planes of scores (...) -> (...) uint8, a bit a region."""
    bits: UInt8 | None = None
    for k, plane in enumerate(planes):
        inside = (plane > threshold).astype(np.uint8) << np.uint8(k)
        bits = inside if bits is None else bits | inside
    assert bits is not None
    return bits


def label_map(bits: UInt8) -> UInt8:
    """One label a voxel; in the order of memory of `bits`."""
    return _LAST[bits] if bits.flags.c_contiguous else _LAST[bits.T].T


def region_mask(bits: UInt8, value: int) -> UInt8:
    """1 within the region of this class number, 0 elsewhere."""
    return (bits >> np.uint8(value - 1)) & np.uint8(1)


def region_counts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each byte occurs (256,) -> voxels by class number (256,); 0 is background."""
    found = np.zeros(256, dtype=np.int64)
    found[0] = counts[0]
    for value in range(1, MOST_REGIONS + 1):
        found[value] = counts[(np.arange(256) >> (value - 1)) % 2 == 1].sum()
    return found

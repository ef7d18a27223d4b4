"""slices of a scan -> which voxels are inside the body: not 0, or enclosed by what is not.

A voxel of value 0 is outside if a path of such voxels, side by side, leads from it to the scan's
border. nnU-Net normalises brains without a skull within that mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from leuda_deploy.scans.volume import Volume

Plane = NDArray[np.bool_]  # (H, W)


class Inside:
    """Which voxels are inside, slice by slice.

    Kept are the holes alone, a bit a voxel of those slices that have any.

    scans  each of the channels: its values as stored, turned to (D, H, W), of which nothing is
           copied, and the scan they are of. A voxel is 0 if it is in all of them.
    """

    def __init__(self, scans: Sequence[tuple[NDArray[Any], Volume]]) -> None:
        self._scans = [(raw, -volume.inter / volume.slope) for raw, volume in scans]
        self._depth, *plane = scans[0][0].shape
        self._shape = (plane[0], plane[1])

    def __call__(self, place: int) -> Plane:
        """The voxels of one slice that are inside: (H, W)."""
        return ~self._zero(place) | self._of(self._holes[place])

    def _zero(self, place: int) -> Plane:
        zero = np.ones(self._shape, dtype=bool)
        for raw, value in self._scans:
            zero &= raw[place] == value
        return zero

    def _of(self, kept: NDArray[np.uint8] | None) -> Plane:
        if kept is None:
            return np.zeros(self._shape, dtype=bool)
        count = self._shape[0] * self._shape[1]
        return np.unpackbits(kept, count=count).view(bool).reshape(self._shape)

    @cached_property
    def _holes(self) -> list[NDArray[np.uint8] | None]:
        """Of each slice the zeros that are enclosed, packed; None if there are none.

        First all that is enclosed in its own slice. Then what lies beside the outside of the slice
        before or after is outside, too, until nothing changes.
        """
        every = [_packed(self._enclosed(place)) for place in range(self._depth)]
        inner, changed = range(1, self._depth - 1), True
        every[0] = every[-1] = None  # they are the border
        while changed:
            changed = False
            for step in (1, -1):
                for place in inner[::step]:
                    if every[place] is None:
                        continue
                    holes, beside = self._of(every[place]), place - step
                    reached = holes & self._zero(beside) & ~self._of(every[beside])
                    if reached.any():
                        every[place] = _packed(holes & ~_joined(holes, reached))
                        changed = True
        return every

    def _enclosed(self, place: int) -> Plane:
        zero = self._zero(place)
        border = np.zeros_like(zero)
        border[[0, -1]], border[:, [0, -1]] = True, True
        return zero & ~_joined(zero, border)


def _joined(zero: Plane, seeds: Plane) -> Plane:
    """The parts of `zero`, in plane, that hold a seed."""
    part, count = ndimage.label(zero)
    seen = np.zeros(count + 1, dtype=bool)
    seen[part[seeds]] = True
    seen[0] = False
    found: Plane = seen[part]
    return found


def _packed(plane: Plane) -> NDArray[np.uint8] | None:
    return np.packbits(plane) if plane.any() else None

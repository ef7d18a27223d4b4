"""the axes of a scan -> those of a stack of slices: slices, rows, columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

# For a slice axis that is a world direction: where the axes D, H, W of the stack point.
# Rows run down the picture and columns to its right, as a radiologist looks at it.
STACK_DIRECTIONS = {"superior": "SPL", "anterior": "AIL", "right": "RIP"}
STACK_DIRECTIONS |= {name: name for name in ("RAS", "LPS")}


def stack_orientation(affine: NDArray[np.float64], slice_axis: str) -> NDArray[Any]:
    """The axis order and flips (nibabel's orientation array) that turn (X, Y, Z) into (D, H, W)."""
    if slice_axis.startswith("array-"):
        axis = int(slice_axis[-1])
        order = [axis] + [other for other in range(3) if other != axis]
        return np.array([[order.index(other), 1] for other in range(3)])
    have = orientations.io_orientation(affine)
    want = orientations.axcodes2ornt(STACK_DIRECTIONS[slice_axis])
    turn: NDArray[Any] = orientations.ornt_transform(have, want)
    return turn

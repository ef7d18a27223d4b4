"""a scan's grid and a voxel size -> where the grid of MONAI's Spacing begins.

It keeps the first voxel's centre where the axes of the scan are at right angles to the last digit.
Where rounding in the header makes them a little oblique, it lays the middle of one grid on the
middle of the other, and takes half of the count of voxels for a middle: so the grid begins
elsewhere. As MONAI 1.6 does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

RIGHT_ANGLES = 1e-8  # voxels that a corner may lie beyond the first


def first_centres(
    axes: NDArray[np.float64], shape: Sequence[int], grid: Sequence[int], steps: Sequence[float]
) -> tuple[float, ...]:
    """Where the first voxel of the grid lies, along each axis of the scan, in the scan's voxels.

    Args:
        axes: (3, 3) of the scan: column i is one voxel along its axis i, in mm.
        shape: The scan's voxels along its three axes.
        grid: Those of the grid.
        steps: From one voxel of the grid to the next, in voxels of the scan.
    """
    if _at_right_angles(axes, shape, steps):
        return (0.0, 0.0, 0.0)
    return tuple((n - m * step) / 2 for n, m, step in zip(shape, grid, steps, strict=True))


def _at_right_angles(
    axes: NDArray[np.float64], shape: Sequence[int], steps: Sequence[float]
) -> bool:
    """Whether one corner of the scan is the first along every axis of the grid."""
    sizes = np.linalg.cholesky(axes.T @ axes).T  # a turn times these: sizes, and slants
    turn = axes @ np.linalg.inv(sizes)
    on_grid = np.linalg.solve(turn * np.diag(sizes) * np.asarray(steps), axes)
    corners = on_grid @ np.array(list(product(*((0, n - 1) for n in shape)))).T
    beyond = corners - corners.min(axis=1, keepdims=True)
    return bool((beyond.max(axis=0) <= RIGHT_ANGLES).any())

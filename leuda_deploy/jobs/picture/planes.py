"""scan + labels -> slices in three planes, turned as a radiologist looks at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from leuda_deploy.scans.grid.orientation import STACK_DIRECTIONS
from leuda_deploy.scans.recipe import SliceAxis
from leuda_deploy.scans.volume import Volume

# name -> the world direction along which its slices lie, and the axis of the world
PLANES = {"axial": ("superior", 2), "coronal": ("anterior", 1), "sagittal": ("right", 0)}
OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A scan cut one way. Views, so that nothing is copied.

    values      (D, H, W) as they are stored; rows run down the picture, columns to its right
    labels      (D, H, W) class numbers
    spacing_mm  from slice to slice, row to row, column to column
    edges       where the picture's top, bottom, left and right edge point: "A", "P", "R", "L"
    """

    name: str
    values: NDArray[np.generic]
    labels: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    edges: tuple[str, str, str, str]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of a slice."""
        _, height, width = self.values.shape
        return height * self.spacing_mm[1], width * self.spacing_mm[2]


def cut(volume: Volume, labels: NDArray[np.uint8], name: str) -> Plane:
    """The scan cut one way: name is a key of PLANES, labels are (X, Y, Z).

    Of an oblique scan the array axes closest to the world's are taken; nothing is resampled.
    """
    directions = STACK_DIRECTIONS[PLANES[name][0]]
    have = orientations.io_orientation(volume.affine)
    turn = orientations.ornt_transform(have, orientations.axcodes2ornt(directions))
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = volume.spacing_mm
    depth_mm, row_mm, column_mm = spacing.tolist()
    bottom, right = directions[1], directions[2]
    return Plane(
        name=name,
        values=orientations.apply_orientation(volume.raw, turn),
        labels=orientations.apply_orientation(labels, turn),
        spacing_mm=(depth_mm, row_mm, column_mm),
        edges=(OPPOSITE[bottom], bottom, OPPOSITE[right], right),
    )


def plane_of_slices(volume: Volume, axis: SliceAxis) -> str:
    """In which plane the slices of a recipe lie, or those that people look at: a key of PLANES."""
    for name, (direction, world_axis) in PLANES.items():
        if axis == direction or (axis in ("RAS", "LPS") and direction == "superior"):
            return name
        if axis.startswith("array-"):
            turned = orientations.io_orientation(volume.affine)[int(axis[-1]), 0]
            if int(turned) == world_axis:
                return name
    raise AssertionError(axis)


def choose_slices(labels: NDArray[np.uint8], classes: list[int], count: int) -> list[int]:
    """Slices (D, H, W) that show the structures: each counts alike, however large it is.

    Evenly spread over the area of all structures; of a structure that would be missed, its
    largest slice comes in. Without labels, evenly over the scan.
    """
    depth = len(labels)
    area = np.array([[np.count_nonzero(plane == k) for k in classes] for plane in labels])
    there = area.sum(axis=0) > 0
    if not there.any():
        places = (np.arange(count) + 0.5) / count * depth
        return sorted({int(place) for place in places})
    area = area[:, there]
    covered = np.cumsum((area / area.sum(axis=0)).sum(axis=1))
    wanted = (np.arange(count) + 0.5) / count * covered[-1]
    chosen = sorted({int(place) for place in np.searchsorted(covered, wanted)})
    for own in area.T:
        if not own[chosen].any():
            best = int(own.argmax())
            nearest = min(range(len(chosen)), key=lambda at: abs(chosen[at] - best))
            if len(chosen) < count:
                chosen.append(best)
            else:
                chosen[nearest] = best
    labelled = np.flatnonzero(area.any(axis=1))
    while len(set(chosen)) < min(count, len(labelled)):  # a thin structure took several places
        apart = np.abs(labelled[:, None] - np.array(chosen)).min(axis=1)
        chosen.append(int(labelled[apart.argmax()]))
    return sorted(set(chosen))


def degrees_off(volume: Volume) -> float:
    """By how much the scan's axes are turned against the world's, the largest angle."""
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    along = np.abs(axes).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(along, -1, 1))).max())

"""label volumes -> nothing, or one InputError: organs where no patient has them.

Files whose voxel array was flipped, but whose affine was not (or the other way round), look right
slice by slice and teach the network a mirrored patient. Organs know better: their centroids, taken
through the affine, must lie right, anterior or superior of each other as in a patient. Only pairs
that lie centimetres apart in everyone are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.machine.progress import Progress
from leuda_deploy.scans.label_map import read_label_map

MARGIN_MM = 5.0  # on the wrong side by less than this is a variant, not a flip
AXES = {"right": 0, "anterior": 1, "superior": 2}  # of RAS+ world coordinates
OPPOSITE = {"right": "left", "anterior": "posterior", "superior": "inferior"}


class Rule(NamedTuple):
    """`first` lies `direction` of `second`, centroid to centroid, in every patient."""

    first: str
    direction: Literal["right", "anterior", "superior"]
    second: str


def check_anatomy(path: Path, values: Mapping[str, int], rules: Sequence[Rule]) -> None:
    """Raises InputError for labels that break a rule by more than MARGIN_MM.

    values  structure -> raw label value. A rule on a structure that a scan lacks is passed over.
    """
    numbers = {name: number for number, name in enumerate(values, start=1)}
    label = read_label_map(
        path, class_of_raw={values[name]: numbers[name] for name in values}, others="background"
    )
    affine = label.volume.affine
    at = {
        name: affine[:3, :3] @ centroid + affine[:3, 3]
        for name, number in numbers.items()
        if (centroid := _centroid(label.labels, number)) is not None
    }
    wrong = []
    for first, direction, second in rules:
        if first in at and second in at:
            distance_mm = float((at[first] - at[second])[AXES[direction]])
            if distance_mm < -MARGIN_MM:
                where = f"{-distance_mm:.0f} mm {OPPOSITE[direction]} of {second}"
                wrong.append(f"{first} lies {where}, not {direction}")
    if wrong:
        raise InputError(
            f"{path}: {'; '.join(wrong)}. The voxels are flipped against the affine: correct the "
            "header of this file, and of its image"
        )


def check_all(
    labels: Sequence[Path], values: Mapping[str, int], rules: Sequence[Rule], progress: Progress
) -> None:
    """`check_anatomy` of many files."""
    for done, label in enumerate(labels, start=1):
        check_anatomy(label, values, rules)
        progress(done, len(labels), label.name)


def check_same_side(paths: Sequence[Path], first: int, second: int, axis: int) -> None:
    """In all scans, label `first` must lie on one side of `second` in the plane of the array.

    For recipes that slice along an array axis, and so turn nothing. Sides are compared with the
    mean direction over all scans; 90 degrees off is the other side. What this cannot see is a flip
    along the line that is at right angles to that direction. Raises InputError.
    """
    sides: dict[Path, NDArray[np.float64]] = {}
    for path in paths:
        labels = read_label_map(
            path, class_of_raw={first: 1, second: 2}, others="background"
        ).labels
        ends = _centroid(labels, 1), _centroid(labels, 2)
        if ends[0] is not None and ends[1] is not None:
            apart = np.delete(ends[0] - ends[1], axis)
            sides[path] = apart / max(float(np.linalg.norm(apart)), 1e-9)
    common = np.sum(list(sides.values()), axis=0) if sides else np.zeros(2)
    for path, side in sides.items():
        if side @ common < 0:
            raise InputError(
                f"{path}: label {first} lies on the other side of label {second} than in the other "
                f"{len(sides) - 1} scans. Its slices are flipped or turned: correct this file, and "
                "its image"
            )


def _centroid(labels: NDArray[np.uint8], number: int) -> NDArray[np.float64] | None:
    """Mean voxel index (3,) of a class; None if it does not occur."""
    mask = labels == number
    plane = mask.sum(axis=2)
    counts = [plane.sum(axis=1), plane.sum(axis=0), mask.sum(axis=(0, 1))]
    total = int(plane.sum())
    if total == 0:
        return None
    return np.array([float(np.arange(len(count)) @ count) / total for count in counts])

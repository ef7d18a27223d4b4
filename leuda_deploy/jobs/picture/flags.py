"""labels of a scan -> what is odd about a structure, as facts for the report and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.model.card import Structure
from leuda_deploy.model.regions import region_mask


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What is odd about a structure. One that the border cuts is not whole, nor is its volume."""

    structure: str
    flag: Literal[
        "not found",
        "cut by the border of the scan",
        "smaller than in the training labels",
        "larger than in the training labels",
    ]


# how far outside the volumes of the training labels one is before it is odd: people differ
MARGIN = 1.5


def flags_of(
    labels: NDArray[np.uint8],
    structures: Sequence[Structure],
    voxel_ml: float,
    regions: NDArray[np.uint8] | None = None,
) -> list[Flag]:
    """The flags of the labels (X, Y, Z), in the structures' order; voxel_ml is a voxel's volume.

    Regions that overlap, see `Segmentation.regions`, are looked at one by one.
    """
    if regions is not None:
        return [
            flag
            for each in structures
            for flag in flags_of(region_mask(regions, each.value) * each.value, [each], voxel_ml)
        ]
    # views: `np.take` would copy the whole volume for each
    ends = [np.unique(np.moveaxis(labels, axis, 0)[end]) for axis in range(3) for end in (0, -1)]
    on_border = {value for end in ends for value in end.tolist()}
    counts = _counts(labels)
    flags = []
    for structure in structures:
        volume_ml = float(counts[structure.value]) * voxel_ml
        if not volume_ml:
            flags.append(Flag(structure=structure.name, flag="not found"))
        elif structure.value in on_border:
            flags.append(Flag(structure=structure.name, flag="cut by the border of the scan"))
        elif structure.anatomy is not None and structure.anatomy.volume_ml is not None:
            smallest, largest = structure.anatomy.volume_ml
            if volume_ml * MARGIN < smallest:
                flags.append(
                    Flag(structure=structure.name, flag="smaller than in the training labels")
                )
            elif volume_ml > largest * MARGIN:
                flags.append(
                    Flag(structure=structure.name, flag="larger than in the training labels")
                )
    return flags


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = np.zeros(256, dtype=np.int64)
    for part in np.moveaxis(labels, -1, 0):  # bincount widens what it counts to 8 bytes a voxel
        counts += np.bincount(part.ravel(order="K"), minlength=256)
    return counts

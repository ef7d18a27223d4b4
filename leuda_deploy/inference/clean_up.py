"""predicted labels -> the same without stray islands, and how much was taken away.

An organ is one piece, or a few large ones; a network that is unsure of a new scanner also finds
small pieces far from it. What a structure may consist of is learnt from labels of the training
scans, never from those of the scans to be segmented (`learn_clean_up`), and travels with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

Labels = NDArray[np.integer[Any]]
Spacing = tuple[float, float, float]

SPECK = 0.01  # share of a structure's volume below which a training label's piece is a slip
MARGIN = 0.5  # a piece may be this much smaller than the smallest one in the training labels


class Pieces(BaseModel):
    """What is kept of one structure.

    largest_only  the largest piece alone
    smallest_ml   else every piece of at least so many millilitres; the largest one in any case
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    largest_only: bool
    smallest_ml: Annotated[float, Field(ge=0)] = 0.0


def clean_up(
    labels: Labels, spacing_mm: Spacing, rules: Mapping[int, Pieces]
) -> tuple[Labels, dict[int, float]]:
    """Take away the pieces that the rules do not keep. Pieces touch by face, edge or corner.

    Args:
        labels: (X, Y, Z) class numbers.
        spacing_mm: Voxel size along the three axes.
        rules: Class number -> what is kept of it; classes without a rule stay as they are.

    Returns:
        The labels, a copy with background where something was taken away; and per class with a
        rule, the millilitres taken away.
    """
    cleaned = labels.copy()
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    taken: dict[int, float] = {}
    for number, rule in rules.items():
        taken[number] = 0.0
        for box, pieces, sizes in _pieces(labels, number):
            largest = int(sizes.argmax())
            keep = np.zeros(len(sizes), dtype=bool)
            if not rule.largest_only:
                keep = sizes * voxel_ml >= rule.smallest_ml
            keep[largest] = True
            gone = (pieces > 0) & ~np.concatenate([[True], keep])[pieces]
            cleaned[box][gone] = 0
            taken[number] = float(np.count_nonzero(gone)) * voxel_ml
    return cleaned, taken


def learn_clean_up(
    scans: Iterable[tuple[Labels, Spacing]], classes: Iterable[int]
) -> dict[int, Pieces]:
    """What each class consists of in the labels (X, Y, Z) of training scans.

    A class that is one piece in all of them is kept as its largest piece; of one that comes in
    several, pieces down to half of the smallest one seen are kept. Specks in a training label,
    below one hundredth of the structure, are slips of the pen and count for nothing. A class that
    no scan shows gets no rule.
    """
    classes = list(classes)
    seen: dict[int, list[NDArray[np.float64]]] = {number: [] for number in classes}
    for labels, spacing_mm in scans:
        voxel_ml = float(np.prod(spacing_mm)) / 1000.0
        for number in classes:
            for _, _, sizes in _pieces(labels, number):
                seen[number].append(sizes[sizes >= SPECK * sizes.sum()] * voxel_ml)
    return {
        number: Pieces(largest_only=True)
        if all(len(sizes) == 1 for sizes in found)
        else Pieces(
            largest_only=False, smallest_ml=MARGIN * min(float(sizes.min()) for sizes in found)
        )
        for number, found in seen.items()
        if found
    }


def _pieces(labels: Labels, number: int) -> list[tuple[Any, NDArray[Any], NDArray[np.int64]]]:
    """The box around a class, its connected pieces in it (0 elsewhere), and their sizes in voxels.

    Empty if the class is not there.
    """
    mask = labels == number
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return []
    pieces, _ = ndimage.label(mask[boxes[0]], structure=np.ones((3, 3, 3)))
    return [(boxes[0], pieces, np.bincount(pieces.ravel())[1:])]

"""labels of the training scans -> of which pieces a structure consists, and how large it is.

No label of a target scan is read. What is learnt goes into the model's card: the clean-up keeps to
the pieces, and volumes far outside the range are flagged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from leuda_deploy.inference.refine.clean_up import Labels, Spacing, boxes_of, piece_sizes
from leuda_deploy.model.card import Anatomy, Pieces
from leuda_deploy.scans.label_map import read_label_map
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cohort import Cohort

SPECK = 0.01  # share of a structure's volume below which a training label's piece is a slip
MARGIN = 0.5  # a piece may be this much smaller than the smallest one in the training labels


def cohort_anatomy(cohort: Cohort, recipe: Recipe) -> dict[int, Anatomy]:
    """By class number, from the labelled source scans."""

    def scans() -> Iterable[tuple[Labels, Spacing]]:
        class_of_raw = cohort.spec.class_of_raw("source")
        for scan in cohort.role("source labelled"):
            assert scan.label is not None
            volume = read_volume(scan.image)
            labels = read_label_map(scan.label, class_of_raw=class_of_raw, like=volume).labels
            stack = Stack(volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
            yield labels, stack.voxel_spacing_mm

    return learn_anatomy(scans(), cohort.structures.values())


def learn_anatomy(
    scans: Iterable[tuple[Labels, Spacing]], classes: Iterable[int]
) -> dict[int, Anatomy]:
    """What each class consists of in the labels (X, Y, Z) of training scans.

    A class that is one piece in all of them is kept as its largest piece; of one that comes in
    several, pieces down to half of the smallest one seen are kept. Specks in a training label,
    below one hundredth of the structure, are slips of the pen and count for nothing. A class that
    no scan shows is left out.
    """
    pieces: dict[int, list[list[float]]] = {number: [] for number in classes}
    whole: dict[int, list[float]] = {number: [] for number in pieces}
    for labels, spacing_mm in scans:
        voxel_ml = float(np.prod(spacing_mm)) / 1000.0
        for number, box in boxes_of(labels, pieces):
            sizes = piece_sizes(labels[box], number)
            pieces[number].append((sizes[sizes >= SPECK * sizes.sum()] * voxel_ml).tolist())
            ends = zip(box, labels.shape, strict=True)
            if all(part.start > 0 and part.stop < size for part, size in ends):
                whole[number].append(float(sizes.sum()) * voxel_ml)
    return {
        number: Anatomy(
            pieces=Pieces(largest_only=True)
            if all(len(sizes) == 1 for sizes in found)
            else Pieces(largest_only=False, smallest_ml=MARGIN * min(map(min, found))),
            volume_ml=(min(whole[number]), max(whole[number])) if whole[number] else None,
        )
        for number, found in pieces.items()
        if found
    }

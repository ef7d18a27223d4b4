"""predicted labels -> the same without stray islands, and how much was taken away.

An organ is one piece, or a few large ones; a network that is unsure of a new scanner also finds
small pieces far from it. What a structure may consist of is learnt from labels of the training
scans, never from those of the scans to be segmented, and travels with the model in its card.

Pieces touch by face, edge or corner. They are found plane by plane, and joined where those of
neighbouring planes touch, so no second volume is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from leuda_deploy.model.card import Pieces

Labels = NDArray[np.integer[Any]]
Spacing = tuple[float, float, float]
Box = tuple[slice, ...]
TOUCHING = np.ones((3, 3), dtype=bool)


def clean_up(labels: Labels, spacing_mm: Spacing, rules: Mapping[int, Pieces]) -> dict[int, float]:
    """Take away, in place, the pieces that the rules do not keep.

    Args:
        labels: (X, Y, Z) class numbers; what is taken away becomes background.
        spacing_mm: Voxel size along the three axes.
        rules: Class number -> what is kept of it; classes without a rule stay as they are.

    Returns:
        Per class with a rule, the millilitres taken away.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    taken = dict.fromkeys(rules, 0.0)
    for number, box in boxes_of(labels, rules):
        part, rule = labels[box], rules[number]
        sizes, names = _pieces(part, number)
        keep = np.zeros(len(sizes), dtype=bool)
        if not rule.largest_only:
            keep = sizes * voxel_ml >= rule.smallest_ml
        keep[sizes.argmax()] = True
        if keep.all():
            continue
        for plane, (found, count) in enumerate(_planes(part, number)):
            kept = np.concatenate([[True], keep[names[plane][:count]]])
            part[..., plane][~kept[found]] = 0
        taken[number] = float(sizes[~keep].sum()) * voxel_ml
    return taken


def boxes_of(labels: Labels, numbers: Mapping[int, Any]) -> Iterator[tuple[int, Box]]:
    """Each of these classes that is there, and the smallest box around it."""
    boxes = ndimage.find_objects(labels, max_label=max(numbers, default=1))
    for number in sorted(numbers):
        if (box := boxes[number - 1]) is not None:
            yield number, box


def piece_sizes(labels: Labels, number: int) -> NDArray[np.int64]:
    """Voxels of each connected piece of a class in (X, Y, Z)."""
    return _pieces(labels, number)[0]


def _planes(labels: Labels, number: int) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Each plane's own pieces, numbered from 1, and how many there are."""
    for plane in np.moveaxis(labels, -1, 0):
        found = np.zeros(plane.shape, dtype=np.int32)
        yield found, ndimage.label(plane == number, structure=TOUCHING, output=found)


def _pieces(labels: Labels, number: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Voxels of each piece, from piece 0; and by plane, which piece each of the plane's is of."""
    counts, sizes, ones, others = [], [], [], []
    before, first = np.zeros(labels.shape[:2], dtype=np.int32), 0
    for found, count in _planes(labels, number):
        sizes.append(np.bincount(found.ravel(), minlength=count + 1)[1:])
        counts.append(count)
        # a piece and one of the plane before touch where one, grown by a pixel, covers the other
        for pair in _touching(before, found):
            ones.append(pair[0] - 1 + first - counts[-2])
            others.append(pair[1] - 1 + first)
        before, first = found, first + count
    edges = (np.concatenate([*ones, []]).astype(int), np.concatenate([*others, []]).astype(int))
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(first, first))
    total, piece = connected_components(graph, directed=False)
    weights = np.concatenate(sizes)
    joined = np.bincount(piece, weights=weights, minlength=total).astype(np.int64)
    return joined, np.split(piece, np.cumsum(counts)[:-1])


def _touching(
    before: NDArray[np.int32], after: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Numbers of pieces of two neighbouring planes that touch, for each of the nine directions."""
    if not before.any() or not after.any():
        return
    padded = np.pad(before, 1)
    for row in range(3):
        for column in range(3):
            shifted = padded[row : row + before.shape[0], column : column + before.shape[1]]
            both = (shifted > 0) & (after > 0)
            if both.any():
                pairs = np.unique(np.stack([shifted[both], after[both]]), axis=1)
                yield pairs[0], pairs[1]

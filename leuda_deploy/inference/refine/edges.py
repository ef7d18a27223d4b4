"""class probabilities + the slices they are of -> the same, drawn towards the slices' edges.

What a network finds of an organ in a new modality often stops in the middle of it. The organ goes
on where its grey values do: each pixel takes a weighted mean of its neighbours' probabilities, and
a neighbour weighs the more the more alike the two are, in units of the local spread of grey values.
Thin walls do not survive this; training tries it on labels that are true, and the card says whether
it is done.

After PAMR, pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020).
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Float32 = NDArray[np.float32]
REACHES = (1, 2, 4)  # pixels to the eight neighbours that are looked at
ALIKE = 0.4  # grey values this many local deviations apart are e times less alike
ROUNDS = 15
FAINT = 0.01  # a class that is nowhere more probable is left as it is
AROUND = 16  # pixels around all that is more probable than that, which may become so, too
OFFSETS = [
    (max(REACHES) + row * reach, max(REACHES) + column * reach)
    for reach in REACHES
    for row, column in product((-1, 0, 1), repeat=2)
    if row or column
]


def follow_edges(probabilities: Float32, image: Float32) -> None:
    """Draw (K, h, w) of one slice (h, w) to its edges, in place. The sum over K stays 1."""
    likely = probabilities[1:] > FAINT
    classes = 1 + np.flatnonzero(likely.any(axis=(1, 2)))
    if not len(classes):
        return
    seen = np.asarray(likely.any(axis=0))
    box = _around(np.flatnonzero(seen.any(axis=1))), _around(np.flatnonzero(seen.any(axis=0)))
    weights = _alike(image[box])
    part = probabilities[:, box[0], box[1]][classes]
    term = np.empty_like(part)
    far = max(REACHES)
    height, width = part.shape[1:]
    before = part.sum(axis=0)
    for _ in range(ROUNDS):
        padded = np.pad(part, ((0, 0), (far, far), (far, far)), mode="edge")
        part = np.zeros_like(part)
        for weight, (row, column) in zip(weights, OFFSETS, strict=True):
            np.multiply(weight, padded[:, row : row + height, column : column + width], out=term)
            part += term
    probabilities[classes, box[0], box[1]] = part
    probabilities[0][box] += before - part.sum(axis=0)


def _around(places: NDArray[np.intp]) -> slice:
    return slice(max(0, int(places[0]) - AROUND), int(places[-1]) + 1 + AROUND)


def _alike(image: Float32) -> Float32:
    """How much each neighbour of a pixel weighs: (24, h, w), sums to 1."""
    far = max(REACHES)
    height, width = image.shape
    padded = np.pad(image, far, mode="edge")
    around = np.stack([padded[y : y + height, x : x + width] for y, x in OFFSETS])
    spread = np.concatenate([around, image[None]]).std(axis=0, ddof=1) + 1e-3
    alike: Float32 = softmax(-(((around - image) / (ALIKE * spread)) ** 2), axis=0)
    return alike

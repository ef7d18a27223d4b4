"""scores on the model grid -> labels, and uncertainty, on the scan's own pixels.

No score is ever held at the scan's resolution for all classes: that array, K times the scan in
float32, is what fills the memory of other tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from leuda_deploy.engines.engine import Float32
from leuda_deploy.model.regions import region_bits
from leuda_deploy.scans.grid.resample import Kernel, resize, taps, unchanged
from leuda_deploy.scans.stack import Stack

UInt8 = NDArray[np.uint8]
LOW_CONFIDENCE = 0.7  # a softmax probability of the winning class below this is low
SAMPLED = 4  # of so many rows and columns, one is looked at to estimate the share of low ones


def label_plane(
    scores: Float32, shape: tuple[int, int], kernels: tuple[Kernel, Kernel] = ("smooth", "smooth")
) -> UInt8:
    """The winning class of each pixel: scores (K, h, w) -> labels (H, W) uint8.

    The same as resampling all K scores to (H, W), linearly or to the nearest, and taking the
    largest, but computed
    only where that can matter: a resampled score is a weighted mean of its taps with weights that
    do not depend on the class, so where one class wins at all taps, it wins between them.
    """
    coarse = winners(scores)
    if all(map(unchanged, coarse.shape, shape, kernels)):
        return coarse
    (rows, row_weight), (columns, column_weight) = (
        taps(have, want, kernel)
        for have, want, kernel in zip(coarse.shape, shape, kernels, strict=True)
    )
    lowest, highest = coarse, coarse
    for axis, index in ((1, columns), (0, rows)):
        lowest = np.minimum.reduce([lowest.take(tap, axis=axis) for tap in index])
        highest = np.maximum.reduce([highest.take(tap, axis=axis) for tap in index])
    labels = np.ascontiguousarray(lowest)
    open_pixels = np.flatnonzero(labels != highest)
    if open_pixels.size:
        y, x = np.divmod(open_pixels, shape[1])
        corners = [
            (rows[i, y] * coarse.shape[1] + columns[j, x], row_weight[i, y] * column_weight[j, x])
            for i, j in product(range(len(rows)), range(len(columns)))
        ]
        # a generator: one class is interpolated at a time
        labels.ravel()[open_pixels] = winners(
            sum(plane.take(place) * weight for place, weight in corners)
            for plane in scores.reshape(len(scores), -1)
        )
    return labels


def region_plane(
    scores: Float32,
    shape: tuple[int, int],
    threshold: float,
    kernels: tuple[Kernel, Kernel] = ("smooth", "smooth"),
) -> UInt8:
    """Which regions each pixel is in: scores (K, h, w) -> (H, W) uint8, a bit a region."""
    return region_bits((resize(plane, shape, kernels) for plane in scores), threshold)


def winners(planes: Float32 | Iterable[Float32]) -> UInt8:
    """The class with the largest score, the first of equals: K planes (...) -> (...) uint8.

    A running maximum over the classes: ten times faster than `argmax` over a leading axis.
    """
    planes = iter(planes)
    best = next(planes).copy()
    labels: UInt8 = np.zeros(best.shape, dtype=np.uint8)
    for k, plane in enumerate(planes, start=1):
        better = plane > best
        np.maximum(best, plane, out=best)
        # classes come in rising order, so the larger label is the later winner
        np.maximum(labels, better * np.uint8(k), out=labels)
    return labels


def dice_sums(won: UInt8, probabilities: Float32) -> NDArray[np.float64]:
    """What `expected_dice` needs of some pixels; of more of them, it is the sum.

    Args:
        won: The classes that won, (N,).
        probabilities: Of all classes, (K, N).

    Returns:
        (3, K): pixels won; probability of the class, in all of them; in those that it won.
    """
    classes = len(probabilities)
    of_winner = np.take_along_axis(probabilities, won[None].astype(np.intp), axis=0)[0]
    won_by = np.bincount(won, minlength=classes)
    both = np.bincount(won, weights=of_winner, minlength=classes)
    return np.stack([won_by, probabilities.sum(axis=1, dtype=np.float64), both])


def expected_dice(sums: NDArray[np.float64]) -> dict[int, float]:
    """The Dice that labels would have if the probabilities that they were chosen by were right.

    Of a class, 2 Σ p over the pixels that won / (Σ 1 over these + Σ p over all), with p its
    probability: the Dice with a truth that is drawn, pixel by pixel, with these probabilities. Of
    each class that was found, without the background.
    """
    return {k: float(2 * b / (w + p)) for k, (w, p, b) in enumerate(sums.T) if k and w}


class Uncertainty:
    """How sure the network was, gathered slab by slab.

    What is said of structures as a whole is always estimated, on every fourth row and column of the
    model grid: a share, or a ratio of sums, needs no more. The entropy map on the scan's own grid
    is made only if wanted: one byte a voxel.

    probabilities  the scores are after a softmax, or a sigmoid, already
    regions        each score is of a region by itself; a pixel is as unsure as its least sure one
    """

    def __init__(
        self,
        stack: Stack,
        *,
        wanted: bool,
        probabilities: bool = False,
        regions: bool = False,
    ) -> None:
        self._stack = stack
        self._probabilities, self._regions = probabilities, regions
        # by slice, what was said of it last: a search may come by twice
        self._of_structures: dict[int, tuple[int, int]] = {}  # pixels, and those of low confidence
        self._dice_sums: dict[int, NDArray[np.float64]] = {}
        self.entropy: UInt8 | None = None
        if wanted:
            self.entropy = np.zeros(stack.volume.raw.shape, dtype=np.uint8, order="F")
            self._entropy_stack = stack.of_scan(self.entropy)

    def add(self, slices: Sequence[int], scores: Float32) -> None:
        """Scores (d, K, h, w) of these slices."""
        for index, some in zip(slices, scores[:, :, ::SAMPLED, ::SAMPLED], strict=True):
            if self._regions:
                inside = self._inside(some[some > (0.5 if self._probabilities else 0)])
                low = int(np.count_nonzero(inside < LOW_CONFIDENCE))
                self._of_structures[index] = inside.size, low
            else:
                self._add_classes(index, some.reshape(len(some), -1))
        if self.entropy is not None:
            for index, plane in zip(slices, scores, strict=True):
                unsure = resize(
                    self._entropy(plane), self._stack.plane_shape, self._stack.score_kernels[1:]
                )
                self._entropy_stack[index] = np.rint(unsure * np.float32(255)).astype(np.uint8)

    def _add_classes(self, index: int, some: Float32) -> None:
        won, logits = winners(some), self._logits(some)
        powers = np.exp(logits - logits.max(axis=0))
        total = powers.sum(axis=0)  # 1 / probability of the winner
        low = int(np.count_nonzero(total[won > 0] > 1 / LOW_CONFIDENCE))
        self._of_structures[index] = int(np.count_nonzero(won)), low
        self._dice_sums[index] = dice_sums(won, powers / total)

    def _entropy(self, plane: Float32) -> Float32:
        if not self._regions:
            return entropy(self._logits(plane))
        inside = np.clip(self._inside(plane), 1e-6, 1 - 1e-6)
        each = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
        unsure: Float32 = each.max(axis=0)
        return unsure

    def _inside(self, scores: Float32) -> Float32:
        """The probability of being in a region, of its score."""
        if self._probabilities:
            return scores
        inside: Float32 = expit(scores)
        return inside

    @property
    def expected_dice(self) -> dict[int, float]:
        """See `expected_dice`; by class that was found. Of regions nothing is worked out."""
        return expected_dice(np.sum([*self._dice_sums.values()], axis=0)) if self._dice_sums else {}

    def _logits(self, scores: Float32) -> Float32:
        """What a softmax turns into the probabilities; their logarithms are that, too."""
        return np.log(np.maximum(scores, 1e-12)) if self._probabilities else scores

    @property
    def low_share(self) -> float:
        """Share of the structure pixels whose class has a probability below LOW_CONFIDENCE."""
        if not self._of_structures:
            return 0.0
        pixels, low = np.sum([*self._of_structures.values()], axis=0)
        return float(low / pixels) if pixels else 0.0


def entropy(scores: Float32) -> Float32:
    """-Σ p log p / log K of the softmax over the first axis, 0 (sure) to 1: (K, ...) -> (...)."""
    shifted = scores - scores.max(axis=0)
    powers = np.exp(shifted)
    total = powers.sum(axis=0)
    # -Σ p log p with log p = shifted - log total
    found: Float32 = np.log(total) - (powers * shifted).sum(axis=0) / total
    found /= np.float32(np.log(len(scores)))
    return np.clip(found, 0.0, 1.0, out=found)

"""class probabilities of slices, one after the other -> each averaged with the slices beside it.

A 2D network sees one slice at a time, so what it finds flickers from one to the next; organs do
not. A slice weighs half, each neighbour a quarter. A neighbour that nobody scored says nothing.
Structures of one slice do not survive this; training tries it on labels that are true, and the card
says whether it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
BESIDE = np.float32(0.5)  # what a neighbour weighs, as a share of the slice itself


class AcrossSlices:
    """Slices come in rising order, and go out in the same, one behind."""

    def __init__(self) -> None:
        self._before: tuple[int, Float32] | None = None
        self._last: tuple[int, Float32] | None = None

    def __call__(
        self, slices: Sequence[int], probabilities: Float32
    ) -> Iterator[tuple[list[int], Float32]]:
        """The next (n, ...) of these slices -> slices that are done, (m, ...)."""
        done, found = [], []
        for coming in zip(slices, probabilities, strict=True):
            if self._last is not None:
                done.append(self._last[0])
                found.append(self._averaged(coming))
            self._before, self._last = self._last, coming
        # the slab that these are views of is not kept alive
        self._before, self._last = _owned(self._before), _owned(self._last)
        if done:
            yield done, np.stack(found)

    def finish(self) -> Iterator[tuple[list[int], Float32]]:
        """The last slice; then another row of slices may come."""
        if self._last is not None:
            yield [self._last[0]], self._averaged(None)[None]
        self._before = self._last = None

    def _averaged(self, coming: tuple[int, Float32] | None) -> Float32:
        assert self._last is not None
        index, own = self._last
        total, weight = own.copy(), np.float32(1)
        for beside in (self._before, coming):
            if beside is not None and abs(beside[0] - index) == 1:
                total += BESIDE * beside[1]
                weight += BESIDE
        total /= weight
        return total


def averaged(slices: Sequence[int], probabilities: Float32) -> Float32:
    """The same of slices (n, ...) that are all at hand."""
    across = AcrossSlices()
    parts = [part for _, part in (*across(slices, probabilities), *across.finish())]
    return np.concatenate(parts)


def _owned(one: tuple[int, Float32] | None) -> tuple[int, Float32] | None:
    return None if one is None else (one[0], one[1] if one[1].base is None else one[1].copy())

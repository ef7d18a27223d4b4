"""a scan's slices -> rounds of those that are to be scored: every one, or only where something is.

Most slices of a long scan hold no structure. A walk that finds first scores every k-th slice, then
those between and around the ones in which something was found, until it meets empty slices on both
sides. What is not scored is background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEAST_STEP = 2  # slices: a search of every slice is a full pass
# Why every slice of a scan was scored
# asked           for a full pass
# not proven      the model's card has no search
# entropy map     which says something of every slice
# mirrored        the proof was without
# unlike          the scan does not look like those of training, nor like those of the proof
# thick slices    so far apart that none may be left out
FullBecause = Literal[
    "asked", "not proven", "entropy map", "mirrored", "unlike", "thick slices"
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Find:
    """Which slices are searched: every `step`-th, and all within `margin` of one that is found."""

    step: int
    margin: int


def find_in(step_mm: float, margin_mm: float, slice_spacing_mm: float) -> Find | None:
    """The search in slices of a scan; None if its slices lie too far apart for one to be left out.

    The step is rounded down, the margin up: never sparser than what was proven.
    """
    step = int(step_mm / slice_spacing_mm + 1e-6)
    if step < LEAST_STEP:
        return None
    return Find(step=step, margin=max(1, ceil(margin_mm / slice_spacing_mm - 1e-6)))


class Walk:
    """Rounds of slices to score. Who walks says what was found before asking for the next round.

    Attributes:
        searched: How many slices the first round of a search has; None of a full pass.
        scored: Which slices were handed out and reported, (D,) bool.
    """

    def __init__(self, depth: int, find: Find | None = None) -> None:
        self._depth, self._find = depth, find
        self._first = [*range(0, depth, find.step)] if find else []
        if find and self._first[-1] != depth - 1:
            # a structure that the scan's end cuts may be as thin as one slice
            self._first.append(depth - 1)
        self.searched = len(self._first) if find else None
        self.scored: NDArray[np.bool_] = np.zeros(depth, dtype=bool)
        self._holds = np.zeros(depth, dtype=bool)

    def saw(self, index: int, something: bool) -> None:
        """Slice `index` was scored; whether a structure is in it."""
        self.scored[index] = True
        self._holds[index] = something

    def beside(self, wanted: Sequence[int]) -> Sequence[int]:
        """These and the slices next to them that were scored before: rising."""
        if not self.scored.any():
            return wanted
        inside = np.zeros(self._depth + 2, dtype=bool)
        inside[np.asarray(wanted) + 1] = True
        near = inside[:-2] | inside[2:]
        return [*map(int, np.flatnonzero(inside[1:-1] | (near & self.scored)))]

    def __iter__(self) -> Iterator[Sequence[int]]:
        """The slices of each round, rising."""
        if self._find is None:
            yield range(self._depth)
            return
        yield self._first
        while (wanted := np.flatnonzero(self._near() & ~self.scored)).size:
            yield wanted.tolist()

    def _near(self) -> NDArray[np.bool_]:
        """Slices between two searched ones that hold something, or within the margin of one."""
        assert self._find is not None
        found = np.flatnonzero(self._holds)
        ends = np.zeros(self._depth + 1, dtype=np.int64)
        np.add.at(ends, np.maximum(found - self._find.margin, 0), 1)
        np.add.at(ends, np.minimum(found + self._find.margin + 1, self._depth), -1)
        near = np.cumsum(ends[:-1]) > 0
        for one, other in pairwise(self._first):
            if self._holds[one] and self._holds[other]:
                near[one:other] = True
        return near


def scored_by(holds: NDArray[np.bool_], find: Find) -> NDArray[np.bool_]:
    """Which slices a search scores in a scan whose slices `holds` hold something: (D,) -> (D,)."""
    walk = Walk(len(holds), find)
    for wanted in walk:
        for index in wanted:
            walk.saw(index, bool(holds[index]))
    return walk.scored

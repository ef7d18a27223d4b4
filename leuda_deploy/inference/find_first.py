"""a scan's slices -> rounds of those that are to be scored: every one, or only where something is.

Most slices of a long scan hold no structure. A walk that finds first scores every k-th slice, then
those between and around the ones in which something was found, until it meets empty slices on both
sides. What is not scored is background.

Windows of a 3D graph overlap along the slice axis. There, those are scored first that touch one
another, so that every slice is seen, and those between only beside one that found something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.inference.slabs import BlockScorer, Scoring, Slices
from leuda_deploy.scans.stack import Stack

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


HowToFind = tuple[Find | None, FullBecause | None]  # or why all is scored; of 3D windows neither


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


def in_groups(starts: Sequence[int], size: int) -> list[Sequence[int]]:
    """Windows along the slice axis, by number: of each group the last is searched, others wait.

    Searched ones touch: every slice is in one of them. They are as far apart as that allows.
    """
    groups: list[Sequence[int]] = [range(1)]
    while (done := groups[-1][-1]) < len(starts) - 1:
        reach = [k for k in range(done + 2, len(starts)) if starts[k] <= starts[done] + size]
        groups.append(range(done + 1, 1 + max(reach, default=done + 1)))
    return groups


class FindingScorer(BlockScorer):
    """For a 3D engine: each slab completes a window that is searched, and those before it.

    A window between two that found nothing is not scored. Where something was found, all windows
    are that read these slices, so the scores are those of a full pass.

    Attributes:
        scored: How many windows along the slice axis were scored.
    """

    def __init__(self, engine: Scorer, stack: Stack, scoring: Scoring, *, fill: float) -> None:
        super().__init__(engine, stack, scoring, fill=fill)
        self._groups = in_groups(self._starts, self._size)
        self.cuts = [self.cuts[group[-1]] for group in self._groups]
        self._found_before = False

    def __call__(self, slab: Slices, images: Float32) -> tuple[Slices, Float32]:
        """The next slab, (n, h, w) -> slices that are done, their scores (m, K, h, w)."""
        held = images if self._slices is None else np.concatenate([self._slices, images])
        group, first = self._groups[self._next], self._starts[self._groups[self._next][0]]
        self._next += 1
        places = {row: self._starts[row] - first for row in group}

        def score(row: int) -> Float32:
            self.scored += 1
            return self._weighted_scores(held[places[row] : places[row] + self._size])

        scores = {group[-1]: score(group[-1])}
        finds = _finds_something(scores[group[-1]])
        if finds or self._found_before:
            scores |= {row: score(row) for row in group[:-1]}
        self._found_before = finds
        sums: Float32 = np.zeros((len(held), *scores[group[-1]].shape[1:]), dtype=np.float32)
        total: Float32 = np.zeros(len(held), dtype=np.float32)
        if self._sums is not None:
            sums[: len(self._sums)], total[: len(self._sums)] = self._sums, self._total
        for row in group:  # in order, as a full pass adds them
            if (of_row := scores.pop(row, None)) is not None:
                place = slice(places[row], places[row] + len(of_row))
                sums[place] += of_row
                total[place] += self._weights[: len(of_row)]
        last = self._next == len(self._groups)
        done = len(held) if last else self._starts[self._groups[self._next][0]] - first
        found = sums[:done] / total[:done, None, None, None]
        self._slices = held[done:].copy()
        self._sums, self._total = sums[done:].copy(), total[done:].copy()
        return range(first, first + done), found


def _finds_something(scores: Float32) -> bool:
    """Whether a structure wins anywhere: scores (n, K, h, w)."""
    return any(bool((scores[:, k] > scores[:, 0]).any()) for k in range(1, scores.shape[1]))

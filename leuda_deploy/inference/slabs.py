"""slabs of slices in, in order -> their scores out, on the model grid's slices or the scan's.

A 2D graph scores each slab by itself. Windows of a 3D graph overlap along the slice axis as they do
within a slice: what comes in is held until the last window that reads it, and scores go out as soon
as no later window adds to them. So a window's slices and scores are held, however long the scan is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from operator import le

import numpy as np

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.inference.sliding_window import (
    blend_weights,
    score_slices,
    window_counts,
    window_starts,
)
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.scans.grid.resample import Kernel, taps, unchanged
from leuda_deploy.scans.intensity.air import Span
from leuda_deploy.scans.stack import Stack

Slices = Sequence[int]  # rising indices
TRIED_WINDOWS = 8
SURE = np.float32(30.0)  # the score of background where nothing is scored; the others have 0


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the scores of a scan are worked out.

    Attributes:
        tiling: How windows are laid and blended, and which are left out.
        batch: Windows given to the engine at a time.
        slab: Slices held at a time, by default as many as fill a batch; a 3D window has its own.
        mirror: Average over mirrored windows, along the axes that `tiling` allows.
        probabilities: The engine's scores are after a softmax.
        multiple: Of its sides, the windows that an engine takes besides the usual one; None: no
            other, so that slices are never scored whole.
        region_threshold: The score above which a pixel is in a region; None: structures are none.
        refine: What is done to the probabilities of a 2D engine's classes.
    """

    tiling: Tiling = DEFAULT_TILING
    batch: int = 8
    slab: int | None = None
    mirror: bool = False
    probabilities: bool = False
    multiple: int | None = None
    region_threshold: float | None = None
    refine: Refine = AS_PREDICTED


DEFAULT_SCORING = Scoring()


def scoring_of(
    card: ModelCard, *, in_windows: bool = False, other_sizes: bool = True, mirror: bool = False
) -> Scoring:
    """How a model's card says that scans are scored.

    Args:
        card: Of the model.
        in_windows: Windows over all of each slice, whatever else was proven.
        other_sizes: The engine takes windows of any size that the graph takes.
        mirror: See `Scoring`.
    """
    free = other_sizes and card.options.dynamic_window
    return Scoring(
        tiling=card.tiling.in_windows if in_windows else card.tiling,
        multiple=card.options.window_multiple if free else None,
        mirror=mirror,
        probabilities=card.probabilities,
        region_threshold=card.region_threshold,
        refine=card.refine,
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is scored of each slice of a scan, and by windows of which size.

    rows, columns  of the model grid, from and up to; the rest is background
    window         (h, w), or (d, h, w) of a 3D graph
    """

    rows: Span
    columns: Span
    window: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the part."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def window_counts(self, overlap: float) -> tuple[int, int]:
        """How many windows cover it, along its rows and its columns."""
        return window_counts(self.shape, self.window, overlap)

    def facts(self, slice_shape: tuple[int, int], overlap: float) -> dict[str, tuple[int, ...]]:
        """For the report: the pixels of a slice, of the part, of a window; windows along both."""
        count = self.window_counts(overlap)
        return {"slice": slice_shape, "part": self.shape, "window": self.window, "count": count}

    def of(self, images: Float32) -> Float32:
        """The part of images or scores (..., H, W): a view (..., h, w)."""
        return images[..., slice(*self.rows), slice(*self.columns)]

    def on_slices(self, scores: Float32, shape: tuple[int, int]) -> Float32:
        """Scores (n, K, h, w) of the part -> of slices of this shape, background elsewhere."""
        if self.shape == shape:
            return scores
        whole = np.zeros((*scores.shape[:2], *shape), dtype=np.float32)
        whole[:, 0] = SURE
        self.of(whole)[...] = scores
        return whole


def part_of(stack: Stack, tiling: Tiling, multiple: int | None = None) -> Part:
    """What is scored of each slice of this scan.

    Args:
        stack: The scan; of its header alone, the part is as large as it can be.
        tiling: Whether slices are scored whole, and whether air is left out.
        multiple: See `Scoring`.
    """
    (height, width), box = stack.grid_shape, None
    if tiling.air is not None and stack.has_voxels:
        box = stack.body(tiling.air)
    rows, columns = box or ((0, height), (0, width))
    sides, window = (rows[1] - rows[0], columns[1] - columns[0]), tuple[int, ...](stack.window)
    if multiple and tiling.whole and all(map(le, sides, tiling.whole)):
        # the graph takes no window of a single multiple
        window = tuple(multiple * max(2, ceil(side / multiple)) for side in sides)
    rows = _filled_up(rows, window[-2], height)
    columns = _filled_up(columns, window[-1], width)
    return Part(rows=rows, columns=columns, window=window)


def as_many_usual(part: Part, stack: Stack, batch: int) -> int:
    """So many windows of the part have the pixels of so many of the usual size, at least."""
    return ceil(batch * prod(part.window) / prod(stack.window))


def _filled_up(span: Span, least: int, size: int) -> Span:
    """At least so many pixels, if there are: windows see the scan rather than what fills them."""
    missing = min(least, size) - (span[1] - span[0])
    if missing <= 0:
        return span
    first = max(0, min(span[0] - missing // 2, size - min(least, size)))
    return first, first + min(least, size)


class SlabScorer:
    """For a 2D engine: some slices at a time, each scored by itself.

    part  what of each is scored
    """

    def __init__(self, engine: Scorer, stack: Stack, scoring: Scoring, *, fill: float) -> None:
        self._engine, self._shape = engine, stack.grid_shape
        self.part = part_of(stack, scoring.tiling, scoring.multiple)
        self._fill, self._tiling, self._batch = fill, scoring.tiling, scoring.batch
        per_slice = prod(self.part.window_counts(scoring.tiling.overlap))
        self._slab = scoring.slab or max(1, scoring.batch // per_slice)

    def slabs(self, wanted: Slices) -> list[Slices]:
        """The slices that are wanted -> those of each slab, to be given in turn."""
        return [wanted[k : k + self._slab] for k in range(0, len(wanted), self._slab)]

    def __call__(self, slab: Slices, images: Float32) -> tuple[Slices, Float32]:
        """The next slab and its images (n, h, w) -> slices that are done, scores (n, K, h, w)."""
        return slab, self._score(images)

    def _score(self, images: Float32) -> Float32:
        scores = score_slices(
            self._engine,
            self.part.of(images),
            window=self.part.window,
            fill=self._fill,
            tiling=self._tiling,
            batch=self._batch,
        )
        return self.part.on_slices(scores, self._shape)


class BlockScorer(SlabScorer):
    """For a 3D engine: each slab completes a window.

    A scan of fewer slices than a window is padded about its centre, as within a slice.

    cuts  where the slabs end
    """

    def __init__(self, engine: Scorer, stack: Stack, scoring: Scoring, *, fill: float) -> None:
        super().__init__(engine, stack, scoring, fill=fill)
        tiling = scoring.tiling
        self._size = stack.window_slices
        self._starts = window_starts(stack.depth, self._size, tiling.overlap, tiling.steps)
        self.cuts = [min(start + self._size, stack.depth) for start in self._starts]
        self._weights = blend_weights((self._size,), tiling.blending)
        self._next = 0  # of the windows
        self.count, self.scored = len(self._starts), 0  # windows along the slice axis
        self._slices: Float32 | None = None  # held, from the next window's first on
        self._sums: Float32 | None = None  # (n, K, h, w), weighted scores of the same slices
        self._total: Float32 = self._weights

    def slabs(self, wanted: Slices) -> list[Slices]:
        """All slices -> those that each window adds to the ones before."""
        assert len(wanted) == self.cuts[-1], "windows that overlap need every slice"
        return [range(start, stop) for start, stop in pairwise([0, *self.cuts])]

    def __call__(self, slab: Slices, images: Float32) -> tuple[Slices, Float32]:
        """The next slab, (n, h, w) -> slices that are done, their scores (m, K, h, w)."""
        held = images if self._slices is None else np.concatenate([self._slices, images])
        start = self._starts[self._next]
        self._next, self.scored = self._next + 1, self.scored + 1
        last = self._next == len(self._starts)
        done = len(held) if last else self._starts[self._next] - start
        scores = self._weighted_scores(held)
        if self._sums is None:
            self._sums, self._total = scores, self._weights[: len(held)].copy()
        else:
            self._sums += scores
            self._total += self._weights
        found: Float32 = self._sums[:done] / self._total[:done, None, None, None]
        self._slices = held[done:].copy()
        for values in (self._sums, self._total):
            values[: len(values) - done] = values[done:]
            values[len(values) - done :] = 0
        return range(start, start + done), found

    def _weighted_scores(self, block: Float32) -> Float32:
        """(n, h, w) or (n, C, h, w), n up to the window's -> (n, K, h, w)."""
        missing = self._size - len(block)
        before = missing // 2
        beside = [(0, 0)] * (block.ndim - 1)
        padded = np.pad(block, [(before, missing - before), *beside], constant_values=self._fill)
        # the window's slices stand beside its rows and columns, after the channels
        (scores,) = self._score(np.moveaxis(padded, 0, -3)[None])
        found = np.moveaxis(scores, 0, 1)[before : before + len(block)]
        weighted = np.empty(found.shape, dtype=np.float32)  # in order, without another copy
        np.multiply(found, self._weights[: len(block), None, None, None], out=weighted)
        return weighted


def windows_of(stack: Stack, tiling: Tiling) -> int:
    """How many windows a full pass over a scan scores, if all of each slice is laid with them."""
    rows = len(window_starts(stack.depth, stack.window_slices, tiling.overlap))
    slices = stack.depth if stack.window_slices == 1 else rows
    return slices * prod(window_counts(stack.grid_shape, stack.window, tiling.overlap))


def sample_windows(stack: Stack, count: int = TRIED_WINDOWS) -> Float32:
    """Windows from the middle of evenly spread slices of a scan: (count, C, *window) float32."""
    starts = ((np.arange(count) + 0.5) / count * (stack.depth - stack.window_slices + 1)).astype(
        int
    )
    windows = np.stack([stack.window_at(start) for start in starts.tolist()])
    return windows.reshape(count, stack.channels, *stack.window)


class ScanSlices:
    """Scores of the model grid's slices, as they come -> of the scan's own, linear in between.

    The same slices where the two coincide.
    """

    def __init__(self, depth: int, scan_depth: int, kernel: Kernel = "smooth") -> None:
        self._same = unchanged(depth, scan_depth, kernel)
        self._index, self._weight = taps(depth, scan_depth, kernel)
        self._next, self._held_from = 0, 0
        self._held: Float32 | None = None

    def __call__(self, slab: Slices, scores: Float32) -> Iterator[tuple[Slices, Float32]]:
        """The next (n, K, h, w), of these grid slices -> slices of the scan, (m, K, h, w)."""
        if self._same:
            yield slab, scores
            return
        held = scores if self._held is None else np.concatenate([self._held, scores])
        stop, last = slab[0] + len(scores), self._index.shape[1]
        while self._next < last and self._index[:, self._next].max() < stop:
            places, shares = self._index[:, self._next], self._weight[:, self._next]
            plane = np.tensordot(shares, held[places - self._held_from], axes=1)
            yield [self._next], plane[None]
            self._next += 1
        first = int(self._index[:, self._next].min()) if self._next < last else stop
        self._held, self._held_from = held[first - self._held_from :].copy(), first

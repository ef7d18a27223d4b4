"""slices of any size -> windows of the model's size -> blended scores of the slices' size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.recipe import fit_to_window

Float32 = NDArray[np.float32]
# (B, 1, h, w) float32 -> (B, K, h, w) float32; K classes with background first
Engine = Callable[[Float32], Float32]


def score_slices(
    engine: Engine,
    images: Float32,
    *,
    window: tuple[int, int],
    fill: float,
    overlap: float = 0.5,
    batch: int = 8,
) -> Float32:
    """Scores for every pixel: images (d, h, w) -> (d, K, h, w) float32.

    Slices smaller than the window are padded with `fill`; larger ones are covered by windows that
    overlap by at least `overlap` and are blended with Gaussian weights in float32.
    """
    depth, height, width = images.shape
    padded_shape = (max(height, window[0]), max(width, window[1]))
    padded: Float32 = fit_to_window(images, padded_shape, fill)
    places = list(
        product(
            range(depth),
            window_starts(padded_shape[0], window[0], overlap),
            window_starts(padded_shape[1], window[1], overlap),
        )
    )
    if len(places) == depth:  # one window a slice: nothing to blend
        scores = _score_whole(engine, padded, batch)
        return np.ascontiguousarray(fit_to_window(scores, (height, width), 0.0))
    blended: Float32 | None = None
    weights = blend_weights(window)
    total = np.zeros(padded_shape, dtype=np.float32)
    for group in _groups(places, batch):
        tiles = np.stack([padded[i, y : y + window[0], x : x + window[1]] for i, y, x in group])
        scores = engine(np.ascontiguousarray(tiles[:, None]))
        if blended is None:
            blended = np.zeros((depth, scores.shape[1], *padded_shape), dtype=np.float32)
        for (i, y, x), score in zip(group, scores, strict=True):
            blended[i, :, y : y + window[0], x : x + window[1]] += score * weights
            if i == 0:  # every slice has the same windows
                total[y : y + window[0], x : x + window[1]] += weights
    assert blended is not None
    blended /= total
    return np.ascontiguousarray(fit_to_window(blended, (height, width), 0.0))


def _score_whole(engine: Engine, windows: Float32, batch: int) -> Float32:
    """Windows (d, h, w) -> scores (d, K, h, w), a batch at a time."""
    groups = [windows[i : i + batch, None] for i in range(0, len(windows), batch)]
    scores = [engine(np.ascontiguousarray(group)) for group in groups]
    return scores[0] if len(scores) == 1 else np.concatenate(scores)


def windows_per_slice(shape: tuple[int, int], window: tuple[int, int], overlap: float = 0.5) -> int:
    """How many windows cover a slice of (h, w) pixels."""
    rows, columns = (
        len(window_starts(size, part, overlap)) for size, part in zip(shape, window, strict=True)
    )
    return rows * columns


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First pixels of the windows along one axis: evenly spread, the last ends at the border."""
    if size <= window:
        return [0]
    stride = max(1, int(window * (1.0 - overlap)))
    count = -(-(size - window) // stride) + 1
    return [round(k * (size - window) / (count - 1)) for k in range(count)]


@lru_cache(maxsize=8)
def blend_weights(window: tuple[int, int]) -> Float32:
    """(h, w) Gaussian about the centre, standard deviation an eighth of the window, above 0."""
    rows, columns = (
        np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in window
    )
    weights: Float32 = np.maximum(np.outer(rows, columns), 1e-3).astype(np.float32)
    return weights


def _groups(places: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]

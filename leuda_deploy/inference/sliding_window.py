"""slices of any size -> windows of the model's size -> blended scores of the slices' size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce
from itertools import combinations, product

import numpy as np

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.model.tiling import DEFAULT_TILING, Blending, MirrorAxis, Steps, Tiling
from leuda_deploy.scans.grid.resample import fit_to_window

MIRROR_AXES: dict[MirrorAxis, int] = {"slices": -3, "rows": -2, "columns": -1}


def score_slices(
    engine: Scorer,
    images: Float32,
    *,
    window: tuple[int, ...],
    fill: float,
    tiling: Tiling = DEFAULT_TILING,
    batch: int = 8,
) -> Float32:
    """Scores for every pixel: images (n, h, w) -> (n, K, h, w) float32.

    Slices smaller than the window are padded with `fill`; larger ones are covered by windows that
    overlap and are blended in float32. Blocks (n, d, h, w) of a 3D engine's depth are done alike,
    and so are slices or blocks of several channels, by an engine `of_channels`.
    """
    count, (height, width) = len(images), images.shape[-2:]
    window = window[-2:]
    padded_shape = (max(height, window[0]), max(width, window[1]))
    padded: Float32 = fit_to_window(images, padded_shape, fill)
    places = list(
        product(
            range(count),
            window_starts(padded_shape[0], window[0], tiling.overlap, tiling.steps),
            window_starts(padded_shape[1], window[1], tiling.overlap, tiling.steps),
        )
    )
    if len(places) == count:  # one window a slice: nothing to blend
        scores = _score_whole(engine, padded, batch)
        return np.ascontiguousarray(fit_to_window(scores, (height, width), 0.0))
    blended: Float32 | None = None
    weights = blend_weights(window, tiling.blending)
    total = np.zeros(padded_shape, dtype=np.float32)
    for group in _groups(places, batch):
        tiles = np.stack(
            [padded[i, ..., y : y + window[0], x : x + window[1]] for i, y, x in group]
        )
        scores = engine(np.ascontiguousarray(tiles[:, None]))
        if blended is None:
            blended = np.zeros((count, *scores.shape[1:-2], *padded_shape), dtype=np.float32)
        for (i, y, x), score in zip(group, scores, strict=True):
            blended[i, ..., y : y + window[0], x : x + window[1]] += score * weights
            if i == 0:  # every slice has the same windows
                total[y : y + window[0], x : x + window[1]] += weights
    assert blended is not None
    blended /= total
    return np.ascontiguousarray(fit_to_window(blended, (height, width), 0.0))


def _score_whole(engine: Scorer, windows: Float32, batch: int) -> Float32:
    """Windows (n, ...) -> scores (n, K, ...), a batch at a time."""
    groups = [windows[i : i + batch, None] for i in range(0, len(windows), batch)]
    scores = [engine(np.ascontiguousarray(group)) for group in groups]
    return scores[0] if len(scores) == 1 else np.concatenate(scores)


def window_counts(
    shape: tuple[int, int], window: tuple[int, ...], overlap: float = 0.5
) -> tuple[int, int]:
    """How many windows cover a slice of (h, w) pixels, or a block of such, along h and along w."""
    rows, columns = (
        len(window_starts(size, part, overlap))
        for size, part in zip(shape, window[-2:], strict=True)
    )
    return rows, columns


def window_starts(size: int, window: int, overlap: float, steps: Steps = "even") -> list[int]:
    """First pixels of the windows along one axis: see `Tiling`; the last ends at the border."""
    if size <= window:
        return [0]
    stride = max(1, int(window * (1.0 - overlap)))
    count = -(-(size - window) // stride) + 1
    if steps == "fixed":
        return [min(k * stride, size - window) for k in range(count)]
    return [round(k * (size - window) / (count - 1)) for k in range(count)]


@lru_cache(maxsize=8)
def blend_weights(window: tuple[int, ...], blending: Blending = "gaussian") -> Float32:
    """1 throughout, or Gaussian about the centre, an eighth of the window wide, above 0."""
    if blending == "constant":
        return np.ones(window, dtype=np.float32)
    centres = [size // 2 if blending == "nnunet" else (size - 1) / 2 for size in window]
    bells = (
        np.exp(-0.5 * ((np.arange(size) - centre) / (size / 8)) ** 2)
        for size, centre in zip(window, centres, strict=True)
    )
    least = 1e-9 if blending == "nnunet" else 1e-3
    weights: Float32 = np.maximum(reduce(np.multiply.outer, bells), least).astype(np.float32)
    return weights


def mirrored(engine: Scorer, axes: tuple[MirrorAxis, ...]) -> Scorer:
    """The engine whose scores are the mean over the window and its mirror images along the axes."""
    flips = [
        tuple(MIRROR_AXES[axis] for axis in some)
        for count in range(len(axes) + 1)
        for some in combinations(axes, count)
    ]

    def score(windows: Float32) -> Float32:
        total = engine(windows)
        for flip in flips[1:]:
            total += np.flip(engine(np.ascontiguousarray(np.flip(windows, flip))), flip)
        total /= np.float32(len(flips))
        return total

    return score


def of_channels(engine: Scorer) -> Scorer:
    """The engine for windows (B, 1, C, h, w), which `score_slices` makes of slices (n, C, h, w)."""
    return lambda windows: engine(windows[:, 0])


def scoring_floor_once(engine: Scorer, floor: float, reach: float = 0.0) -> Scorer:
    """The same scores, but windows in which every pixel is `floor` are scored a single time.

    Equal windows have equal scores, so nothing changes for an engine that scores each window of a
    batch by itself. Windows in which every pixel is within `reach` of it are taken for such, too.
    """
    kept: list[Float32] = []

    def score(windows: Float32) -> Float32:
        near = np.abs(windows - np.float32(floor)) <= np.float32(reach)
        empty = near.reshape(len(windows), -1).all(axis=1)
        if not empty.any():
            return engine(windows)
        if not kept:
            kept.append(engine(np.full_like(windows[:1], floor))[0])
        scores = np.empty((len(windows), *kept[0].shape), dtype=np.float32)
        scores[empty] = kept[0]
        if not empty.all():
            scores[~empty] = engine(np.ascontiguousarray(windows[~empty]))
        return scores

    return score


def _groups(places: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]

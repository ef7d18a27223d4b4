"""Windows cover every slice, stay inside it, and blending adds nothing of its own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from leuda_deploy.inference.sliding_window import (
    blend_weights,
    mirrored,
    score_slices,
    scoring_floor_once,
    window_starts,
)
from leuda_deploy.model.tiling import Tiling

Float32 = NDArray[np.float32]
WINDOW = (12, 16)
# (h, w) of the slices: smaller, equal, larger by one, a multiple, no multiple; and mixed
FIELDS = [(5, 7), (12, 16), (13, 17), (48, 64), (31, 50), (5, 50), (50, 5), (1, 1)]


def images(field: tuple[int, int], depth: int = 3) -> Float32:
    return np.random.default_rng(0).normal(size=(depth, *field)).astype(np.float32)


def functions_of_the_pixel(windows: Float32) -> Float32:
    x = windows[:, 0]
    return np.stack([x, 2 * x + 1, x * x, -x], axis=1)


def near_the_rim(windows: Float32) -> Float32:
    """What the engine says depends on where in the window a pixel lies."""
    position = np.arange(windows[0, 0].size, dtype=np.float32).reshape(windows.shape[2:])
    return np.stack([windows[:, 0] + position, windows[:, 0] * position], axis=1)


@pytest.mark.parametrize("field", FIELDS)
def test_constant_engine_gives_constant_scores(field: tuple[int, int]) -> None:
    constants = np.array([-3.0, 0.0, 7.5], dtype=np.float32)

    def engine(windows: Float32) -> Float32:
        shape = (len(windows), 3, *WINDOW)
        return np.broadcast_to(constants[None, :, None, None], shape).astype(np.float32)

    scores = score_slices(engine, images(field), window=WINDOW, fill=0.0)
    assert scores.shape == (3, 3, *field)
    assert scores.dtype == np.float32
    expected = np.broadcast_to(constants[None, :, None, None], scores.shape)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_pixelwise_engine_gives_its_function_of_the_image(
    field: tuple[int, int], overlap: float
) -> None:
    pixels = images(field)
    for blending in ("gaussian", "constant"):
        tiling = Tiling(overlap=overlap, blending=blending)
        scores = score_slices(
            functions_of_the_pixel, pixels, window=WINDOW, fill=-9.0, tiling=tiling
        )
        np.testing.assert_allclose(
            scores, functions_of_the_pixel(pixels[:, None]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("window", [8, 13, 16])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_cover_the_axis_and_stay_inside(window: int, overlap: float) -> None:
    for size in range(1, 120):
        starts = window_starts(size, window, overlap)
        assert starts[0] == 0
        assert starts == sorted(set(starts))
        if size <= window:
            assert starts == [0]
            continue
        assert starts[-1] == size - window
        assert max(np.diff(starts)) <= max(1, int(window * (1 - overlap)))


def test_windows_at_fixed_steps_are_where_monai_lays_them() -> None:
    assert window_starts(26, 16, 0.5, "fixed") == [0, 8, 10]
    assert window_starts(26, 16, 0.5) == [0, 5, 10]
    assert window_starts(16, 16, 0.5, "fixed") == window_starts(9, 16, 0.5, "fixed") == [0]


def test_engine_is_given_full_windows_of_float32_and_no_more_than_the_batch() -> None:
    seen: list[int] = []

    def engine(windows: Float32) -> Float32:
        assert windows.shape[1:] == (1, *WINDOW)
        assert windows.dtype == np.float32
        assert windows.flags.c_contiguous
        seen.append(len(windows))
        return functions_of_the_pixel(windows)

    score_slices(engine, images((31, 50)), window=WINDOW, fill=0.0, batch=5)
    windows_per_slice = len(window_starts(31, 12, 0.5)) * len(window_starts(50, 16, 0.5))
    assert sum(seen) == 3 * windows_per_slice
    assert set(seen[:-1]) == {5}


def test_small_slices_are_padded_with_the_fill() -> None:
    def engine(windows: Float32) -> Float32:
        assert np.count_nonzero(windows == -5.0) == len(windows) * (12 * 16 - 4 * 6)
        return functions_of_the_pixel(windows)

    score_slices(engine, images((4, 6)), window=WINDOW, fill=-5.0)


@pytest.mark.parametrize("field", [(12, 16), (31, 50)])
def test_batch_and_order_do_not_change_the_result(field: tuple[int, int]) -> None:
    pixels = images(field, depth=4)

    def scores(some: Float32, batch: int) -> Float32:
        return score_slices(near_the_rim, some, window=WINDOW, fill=0.0, batch=batch)

    one = scores(pixels, 1)
    for batch in (3, 8, 1000):
        np.testing.assert_allclose(scores(pixels, batch), one, rtol=1e-6)
    np.testing.assert_allclose(scores(pixels[::-1], 3)[::-1], one, rtol=1e-6)
    np.testing.assert_allclose(scores(pixels[2:3], 3)[0], one[2], rtol=1e-6)


def test_one_window_is_taken_as_it_is() -> None:
    pixels = images(WINDOW)
    scores = score_slices(near_the_rim, pixels, window=WINDOW, fill=0.0)
    np.testing.assert_array_equal(scores, near_the_rim(pixels[:, None]))


def test_blend_weights_are_positive_symmetric_and_largest_at_the_centre() -> None:
    weights = blend_weights((12, 17))
    assert weights.shape == (12, 17)
    assert weights.min() > 0
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-6)
    assert np.unravel_index(weights.argmax(), weights.shape) in {(5, 8), (6, 8)}


def test_constant_blending_is_the_plain_mean_of_the_windows() -> None:
    tiling = Tiling(overlap=0.5, blending="constant")
    pixels = np.zeros((1, 12, 24), dtype=np.float32)  # windows begin at columns 0 and 8
    scores = score_slices(near_the_rim, pixels, window=WINDOW, fill=0.0, tiling=tiling)
    column = np.arange(24, dtype=np.float32)
    expected = np.where(column < 8, column, np.where(column < 16, column - 4, column - 8))
    np.testing.assert_allclose(scores[0, 0, 0], expected)


def test_mirroring_averages_over_the_mirror_images_and_undoes_them() -> None:
    windows = images(WINDOW, depth=3)[:, None]
    np.testing.assert_allclose(
        mirrored(functions_of_the_pixel, ("rows", "columns"))(windows),
        functions_of_the_pixel(windows),
        rtol=1e-5,
    )
    flipped = near_the_rim(windows[..., ::-1])[..., ::-1]
    found = mirrored(near_the_rim, ("columns",))(windows)
    np.testing.assert_allclose(found, (near_the_rim(windows) + flipped) / 2, rtol=1e-5)
    seen: list[float] = []

    def first_pixel(windows: Float32) -> Float32:
        seen.append(float(windows[0, 0, 0, 0]))
        return windows.copy()

    window = np.arange(12 * 16, dtype=np.float32).reshape(1, 1, *WINDOW)
    mirrored(first_pixel, ("rows", "columns"))(window)
    assert sorted(seen) == [0, 15, 11 * 16, 12 * 16 - 1]
    seen.clear()

    def first_voxel(blocks: Float32) -> Float32:
        seen.append(float(blocks[0, 0, 0, 0, 0]))
        return blocks.copy()

    block = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 1, 2, 3, 4)
    mirrored(first_voxel, ("slices", "rows", "columns"))(block)
    assert sorted(seen) == [0, 3, 8, 11, 12, 15, 20, 23]  # the eight corners


def test_windows_of_the_floor_are_scored_once_and_nothing_changes() -> None:
    pixels = images((31, 50), depth=3)
    pixels[1:] = -1.0
    pixels[2, 30, 49] = -0.999  # one pixel that is not the floor: scored like any other
    seen: list[int] = []

    def engine(windows: Float32) -> Float32:
        seen.append(int((windows == -1.0).all(axis=(1, 2, 3)).sum()))
        return near_the_rim(windows)

    expected = score_slices(engine, pixels, window=WINDOW, fill=-1.0, batch=5)
    assert sum(seen) > 30
    seen.clear()
    found = score_slices(
        scoring_floor_once(engine, -1.0), pixels, window=WINDOW, fill=-1.0, batch=5
    )
    assert sum(seen) == 1
    np.testing.assert_array_equal(found, expected)

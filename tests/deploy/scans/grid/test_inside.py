"""What is inside a body, held against scipy's filling of holes; and what is normalised in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from support.makers import make_volume

from leuda_deploy.scans.grid.inside import Inside
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack, stack_of


def recipe(**other: Any) -> Recipe:
    fields: dict[str, Any] = {
        "slice_axis": "array-0",
        "spacing_mm": "native",
        "window": (8, 8),
        "clip_percentiles": (0.0, 100.0),
        "only_inside": True,
    }
    return Recipe(**(fields | other))


def found(values: np.ndarray) -> np.ndarray:
    inside = Inside([(values, make_volume(values))])
    return np.stack([inside(place) for place in range(len(values))])


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.9])
def test_random_bodies_are_filled_as_scipy_fills_them(share: float) -> None:
    rng = np.random.default_rng(int(100 * share))
    for shape in [(9, 10, 11), (30, 7, 12), (1, 8, 8), (2, 5, 5), (3, 3, 3), (7, 1, 9), (4, 6, 2)]:
        values = (rng.random(shape) < share).astype(np.int16)
        np.testing.assert_array_equal(found(values), ndimage.binary_fill_holes(values != 0))


def test_a_way_out_that_winds_through_many_slices_is_found() -> None:
    values = np.ones((41, 9, 9), np.int16)
    values[1:40, 4, 1:8:2] = 0  # four shafts, joined below, above, below
    values[39, 4, 2], values[1, 4, 4], values[39, 4, 6] = 0, 0, 0
    values[20, 2, 2] = 0  # a hole of its own
    closed = found(values)
    assert closed.all()
    values[1, 4, 8] = 0  # the end of the way
    open_ = found(values)
    np.testing.assert_array_equal(open_, ndimage.binary_fill_holes(values != 0))
    assert not open_[30, 4, 1]
    assert open_[20, 2, 2]


def test_a_hole_is_normalised_and_the_outside_stays_zero() -> None:
    values = np.zeros((9, 12, 12), np.float32)
    values[2:7, 2:10, 2:10] = np.random.default_rng(0).uniform(100, 500, (5, 8, 8))
    values[3:6, 4:7, 4:7] = 0
    mask = ndimage.binary_fill_holes(values != 0)
    stack = Stack(make_volume(values), recipe())
    truth = np.where(mask, (values - values[mask].mean()) / values[mask].std(), 0)
    np.testing.assert_allclose(stack.images(0, 9), truth, atol=1e-5)
    np.testing.assert_allclose(stack.images_of([4, 2]), truth[[4, 2]], atol=1e-5)
    assert stack.intensity.low == 0  # the hole's
    # along another axis, stored with another zero, as whole numbers
    moved = make_volume(np.round(values + 1000).astype(np.int16), inter=-1000.0)
    turned = Stack(moved, recipe(slice_axis="array-2"))
    given = turned.images(0, 12)
    assert (given == 0).sum() == (~mask).sum()
    assert turned.intensity.shift == pytest.approx(np.round(values)[mask].mean(), abs=1e-3)


def test_what_is_zero_in_one_channel_alone_is_inside() -> None:
    first = np.zeros((5, 8, 8), np.float32)
    first[1:4, 1:7, 1:7] = np.random.default_rng(1).normal(100, 9, (3, 6, 6))
    second = np.zeros_like(first)
    second[1:4, 1:7, 1:4] = 50
    second[1:4, 1:7, 2] = 70
    volume = replace(make_volume(first), more=(make_volume(second),))
    given = stack_of(volume, recipe()).images(0, 5)
    mask = first != 0
    for channel, values in enumerate((first, second)):
        truth = np.where(mask, (values - values[mask].mean()) / values[mask].std(), 0)
        np.testing.assert_allclose(given[:, channel], truth, atol=1e-5)


@pytest.mark.parametrize("other", [{"only_nonzero": True}, {"resampling": "linear"}])
def test_what_does_not_go_together_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only_inside"):
        recipe(**other)

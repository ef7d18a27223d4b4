"""Probabilities of a slice are averaged with those of its neighbours, slab by slab."""

from __future__ import annotations

import numpy as np
import pytest

from leuda_deploy.inference.refine.across_slices import AcrossSlices, averaged

VALUES = np.random.default_rng(0).random((7, 2, 3), dtype=np.float32)


def test_a_slice_weighs_half_and_each_neighbour_a_quarter() -> None:
    found = averaged(range(7), VALUES)
    np.testing.assert_allclose(
        found[1:-1], VALUES[:-2] / 4 + VALUES[1:-1] / 2 + VALUES[2:] / 4, rtol=1e-6
    )
    np.testing.assert_allclose(found[0], VALUES[0] * 2 / 3 + VALUES[1] / 3, rtol=1e-6)
    np.testing.assert_allclose(found[-1], VALUES[-1] * 2 / 3 + VALUES[-2] / 3, rtol=1e-6)


def test_what_is_no_neighbour_says_nothing() -> None:
    found = averaged([0, 2, 3, 9], VALUES[:4])
    np.testing.assert_array_equal(found[[0, 3]], VALUES[[0, 3]])
    np.testing.assert_allclose(found[1], VALUES[1] * 2 / 3 + VALUES[2] / 3, rtol=1e-6)


@pytest.mark.parametrize("slab", [1, 2, 3, 7])
def test_slabs_change_no_bit(slab: int) -> None:
    across, slices, parts = AcrossSlices(), [], []
    for start in range(0, 7, slab):
        rows = range(start, min(start + slab, 7))
        for done, found in across(rows, VALUES[start : start + slab].copy()):
            slices += done
            parts.append(found)
    for done, found in across.finish():
        slices += done
        parts.append(found)
    assert slices == [*range(7)]
    np.testing.assert_array_equal(np.concatenate(parts), averaged(range(7), VALUES))
    assert list(across.finish()) == []
    (last,) = [*across([3], VALUES[:1]), *across.finish()]  # another row of slices
    np.testing.assert_array_equal(last[1], VALUES[:1])

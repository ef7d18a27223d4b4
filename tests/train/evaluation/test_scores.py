"""Dice and surface distances against values worked out by hand and by brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from leuda_deploy.errors import InputError
from leuda_train.evaluation.scores import (
    keep_largest_component,
    score_volume,
    summarise,
)

SPACING = (0.5, 1.0, 3.0)
ONE = {"A": 1}


def score(predicted, true, spacing=SPACING, **options):
    (only,) = score_volume(np.asarray(predicted), np.asarray(true), spacing, ONE, **options)
    return only


def box(shape, *ranges):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(*r) for r in ranges)] = 1
    return labels


def brute_border(mask, both):
    voxels = {tuple(map(int, v)) for v in np.argwhere(mask)}
    steps = [s for s in product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
    flat = [axis for axis, places in enumerate(np.nonzero(both)) if len(set(places.tolist())) == 1]
    if len(flat) == 1:  # both in one slice: borders are within it
        steps = [s for s in steps if s[flat[0]] == 0]
    return np.array(
        sorted(
            v
            for v in voxels
            if any(tuple(a + b for a, b in zip(v, s, strict=True)) not in voxels for s in steps)
        )
    )


def brute_distances(a, b, spacing):
    """(ASSD, HD95) over all pairs of border voxels."""
    x, y = (brute_border(mask, a + b) * np.array(spacing) for mask in (a, b))
    pairs = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    there, back = pairs.min(1), pairs.min(0)
    assd = (there.sum() + back.sum()) / (len(there) + len(back))
    return assd, max(np.percentile(there, 95), np.percentile(back, 95))


# ---------------------------------------------------------------- one volume, by hand


@pytest.mark.parametrize(("axis", "shift"), [(0, 1), (0, 2), (1, 1), (2, 1)])
def test_two_flat_plates_are_as_far_apart_as_they_were_shifted(axis, shift):
    """One voxel thick, so every voxel is border and every distance is the shift itself."""
    shape = [6, 6, 6]
    ranges = [(1, 5)] * 3
    ranges[axis] = (2, 3)
    a = box(shape, *ranges)
    b = np.roll(a, shift, axis)
    result = score(a, b)
    assert result.dice == 0.0
    assert result.assd_mm == pytest.approx(shift * SPACING[axis])
    assert result.hd95_mm == pytest.approx(shift * SPACING[axis])
    assert result.predicted_ml == result.true_ml == pytest.approx(16 * 1.5 / 1000)


def test_two_cubes_one_voxel_apart_by_hand():
    """3x3x3 cubes along z, 3 mm a step: 26 border voxels each, all but the centre.

    The leading 9 voxels of each are one step (3 mm) from the other's face. Of the 17 others, those
    on the other's border are at 0: all but the one that is the other's centre, whose nearest border
    voxel is its in-plane neighbour, 0.5 mm away. Both ways: 9 * 3 + 1 * 0.5 over 26.
    """
    a = box((5, 5, 6), (1, 4), (1, 4), (1, 4))
    b = box((5, 5, 6), (1, 4), (1, 4), (2, 5))
    result = score(a, b)
    assert result.dice == pytest.approx(2 * 18 / 54)
    assert result.assd_mm == pytest.approx((9 * 3 + 0.5) / 26)
    assert result.hd95_mm == pytest.approx(3.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slices", [1, 5])
def test_masks_of_one_slice_have_borders_within_it(axis: int, slices: int) -> None:
    """Of squares of 9 and 7 pixels, one within the other: a pixel apart all around."""
    outer, inner = np.zeros((2, 15, 15, slices), np.uint8)
    outer[3:12, 3:12, slices // 2] = 1
    inner[4:11, 4:11, slices // 2] = 1
    outer, inner = (np.moveaxis(labels, 2, axis) for labels in (outer, inner))
    (score,) = score_volume(inner, outer, (1.0, 1.0, 1.0), {"a": 1})
    corners = 4  # of the outer one, at sqrt(2)
    expected = (24 + 32 - corners + corners * 2**0.5) / (24 + 32)
    assert score.assd_mm == pytest.approx(expected)


def test_hd95_is_the_larger_direction_and_not_the_pooled_percentile():
    """A rod of 40 against its first voxel: 0 one way, 0..39 mm the other, whose 95% is 37.05."""
    rod, tip = box((1, 40, 1), (0, 1), (0, 40), (0, 1)), box((1, 40, 1), (0, 1), (0, 1), (0, 1))
    result = score(rod, tip)
    assert result.hd95_mm == pytest.approx(0.95 * 39)
    assert result.assd_mm == pytest.approx(sum(range(40)) / 41)


def test_a_mask_filling_the_array_has_its_border_at_the_edge():
    """5x5x5 full against its central voxel: edge voxels count as border, interior ones do not."""
    full = np.ones((5, 5, 5), np.uint8)
    centre = box((5, 5, 5), (2, 3), (2, 3), (2, 3))
    shell = [v for v in product(range(5), repeat=3) if {0, 4} & set(v)]
    there = [np.linalg.norm(np.subtract(v, 2)) for v in shell]
    result = score(full, centre, (1, 1, 1))
    assert len(shell) == 98
    assert result.assd_mm == pytest.approx((sum(there) + 2.0) / 99)


@pytest.mark.parametrize("swap", [False, True])
def test_one_side_empty_is_dice_zero_and_no_distance(swap):
    present, absent = box((3, 3, 3), (1, 2), (1, 2), (1, 2)), np.zeros((3, 3, 3), np.uint8)
    result = score(present, absent) if swap else score(absent, present)
    assert (result.dice, result.assd_mm, result.hd95_mm) == (0.0, None, None)
    volumes = (result.predicted_ml, result.true_ml)
    assert volumes == pytest.approx((0.0015, 0) if swap else (0, 0.0015))
    assert result.paper_assd_voxels == 0.0


def test_both_empty_is_nothing_to_score():
    result = score(np.zeros((3, 3, 3), int), np.zeros((3, 3, 3), int))
    assert (result.dice, result.assd_mm, result.hd95_mm) == (None, None, None)
    assert result.paper_assd_voxels is None


def test_the_papers_distance_is_the_mean_of_two_directed_means_in_voxels():
    """A rod of 40 against its first voxel: 0 one way, 0..39 voxels, here of 2 mm, the other."""
    rod, tip = box((1, 40, 1), (0, 1), (0, 40), (0, 1)), box((1, 40, 1), (0, 1), (0, 1), (0, 1))
    result = score(rod, tip, (1, 2, 1))
    assert result.paper_assd_voxels == pytest.approx((0 + sum(range(40)) / 40) / 2)
    assert result.assd_mm == pytest.approx(2 * sum(range(40)) / 41)


def test_distances_are_those_of_a_distance_transform():
    """How they were computed before, over every voxel of the box."""
    rng = np.random.default_rng(0)
    a, b = (ndimage.gaussian_filter(rng.normal(size=(24, 20, 12)), 2) > 0.02 for _ in range(2))
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~m, sampling=SPACING) for m in borders)
    there, back = to_b[borders[0]], to_a[borders[1]]
    result = score(a.astype(int), b.astype(int))
    assert result.assd_mm == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-12)
    directed = np.percentile(there, 95), np.percentile(back, 95)
    assert result.hd95_mm == pytest.approx(max(directed), rel=1e-12)


def test_shapes_that_broadcast_are_refused():
    with pytest.raises(InputError):
        score(np.ones((3, 3, 1), int), np.ones((3, 3, 3), int))


MASK_PAIRS = st.tuples(*[st.integers(1, 5)] * 3).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))] * 2)
)


@settings(max_examples=150, deadline=None)
@given(masks=MASK_PAIRS, spacing=st.tuples(*[st.sampled_from([0.4, 1.0, 2.5])] * 3))
def test_random_masks_agree_with_brute_force_and_are_symmetric(masks, spacing):
    a, b = masks
    forth, back = score(a, b, spacing), score(b, a, spacing)
    assert (forth.dice, forth.predicted_ml) == (back.dice, back.true_ml)
    if not (a.any() and b.any()):
        assert forth.assd_mm is None
        assert forth.hd95_mm is None
        return
    assd, hd95 = brute_distances(a, b, spacing)
    assert (forth.assd_mm, forth.hd95_mm) == pytest.approx((assd, hd95))
    assert (back.assd_mm, back.hd95_mm) == pytest.approx((assd, hd95))
    assert forth.dice == pytest.approx(2 * (a & b).sum() / (int(a.sum()) + int(b.sum())))
    assert (score(a, a, spacing).dice, score(a, a, spacing).assd_mm) == (1.0, 0.0)


# ---------------------------------------------------------------- largest component


def test_largest_component_drops_islands_per_class_and_keeps_diagonal_neighbours():
    labels = np.zeros((8, 8, 8), np.int16)
    labels[0:3, 0:3, 0:3] = 1
    labels[3, 3, 3] = 1  # touches the cube at a corner only: 26-connected
    labels[6, 6, 6] = 1  # island
    labels[6, 0, 0:2] = 2  # smaller than class 1's cube, yet the largest of its own class
    labels[0, 6, 6] = 2  # island
    labels[7, 7, 0] = 9  # no structure: left as it is
    expected = labels.copy()
    expected[6, 6, 6] = expected[0, 6, 6] = 0
    before = labels.copy()
    np.testing.assert_array_equal(keep_largest_component(labels, [1, 2, 5]), expected)
    np.testing.assert_array_equal(labels, before)


def test_largest_component_is_taken_of_the_prediction_only():
    main = box((9, 4, 4), (0, 3), (0, 3), (0, 3))
    island = main.copy()
    island[8, 3, 3] = 1
    assert score(island, main).dice == pytest.approx(54 / 55)
    assert score(island, main, largest_component=True).dice == 1.0
    assert score(main, island, largest_component=True).dice == pytest.approx(54 / 55)


# ---------------------------------------------------------------- summary


def test_summary_counts_what_it_leaves_out():
    a = box((4, 4, 4), (0, 2), (0, 2), (0, 2))
    empty = np.zeros_like(a)
    structures = {"A": 1, "B": 2}
    volumes = {
        "same": score_volume(a, a, SPACING, structures),
        "missed": score_volume(empty, a, SPACING, structures),
        "absent": score_volume(empty, empty, SPACING, structures),
    }
    summary = summarise(volumes)
    assert summary["structures"]["A"] == {
        "dice": 0.5,
        "dice_std": pytest.approx(0.5**0.5),
        "assd_mm": 0.0,
        "hd95_mm": 0.0,
        "paper_assd_voxels": 0.0,
        "n_volumes": 3,
        "n_scored": 2,
        "n_missing_distance": 1,
    }
    b = summary["structures"]["B"]
    assert (b["dice"], b["dice_std"], b["assd_mm"], b["n_scored"]) == (None, None, None, 0)
    assert b["n_missing_distance"] == 0
    assert summary["mean"] == {
        "dice": 0.5,
        "assd_mm": 0.0,
        "hd95_mm": 0.0,
        "paper_assd_voxels": 0.0,
        "n_missing_distance": 1,
    }


def test_mean_is_over_structures():
    predicted = np.array([1, 1, 2, 2, 0, 0]).reshape(6, 1, 1)
    true = np.array([1, 1, 0, 2, 2, 0]).reshape(6, 1, 1)
    summary = summarise({"v": score_volume(predicted, true, (1, 1, 1), {"A": 1, "B": 2})})
    assert summary["mean"]["dice"] == pytest.approx((1.0 + 0.5) / 2)
    assert summary["mean"]["assd_mm"] == pytest.approx((0.0 + 0.5) / 2)


def test_spread_is_the_sample_standard_deviation_and_of_one_volume_there_is_none():
    one, half = np.array([1, 0, 0]).reshape(3, 1, 1), np.array([1, 1, 1]).reshape(3, 1, 1)
    volumes = {
        str(i): score_volume(one, true, (1, 1, 1), ONE) for i, true in enumerate((one, half))
    }
    row = summarise(volumes)["structures"]["A"]
    assert (row["dice"], row["dice_std"]) == pytest.approx((0.75, 0.125**0.5))  # Dice 1 and 2/4
    assert summarise({"0": volumes["0"]})["structures"]["A"]["dice_std"] is None

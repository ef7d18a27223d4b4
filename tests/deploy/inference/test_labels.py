"""Labels are those of resampling every score; unsure are those of the softmax."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from support.makers import MakeVolume

from leuda_deploy.inference.labels import (
    Uncertainty,
    dice_sums,
    entropy,
    expected_dice,
    label_plane,
    winners,
)
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.scans.grid.resample import resize, taps
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack

Float32 = NDArray[np.float32]


def smooth_scores(classes: int, shape: tuple[int, int], seed: int, sigma: float = 2.0) -> Float32:
    noise = np.random.default_rng(seed).normal(size=(classes, *shape))
    return gaussian_filter(noise, (0, sigma, sigma)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 9),
    have=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    want=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 1000),
)
def test_labels_are_the_argmax_of_the_resampled_scores(
    classes: int, have: tuple[int, int], want: tuple[int, int], seed: int
) -> None:
    scores = smooth_scores(classes, have, seed)
    full = resize(scores, want)
    found = label_plane(scores, want)
    assert found.shape == want
    assert found.dtype == np.uint8
    # where two classes are within rounding of one another, either is right
    np.testing.assert_allclose(
        np.take_along_axis(full, found[None].astype(int), 0)[0], full.max(axis=0), atol=1e-6
    )
    top = np.sort(full, axis=0)[-2:]
    clear = top[1] - top[0] > 1e-5
    np.testing.assert_array_equal(found[clear], full.argmax(axis=0)[clear])


def test_labels_of_many_classes_fit() -> None:
    scores = smooth_scores(256, (12, 14), 0)
    found = label_plane(scores, (30, 35))
    assert (found == resize(scores, (30, 35)).argmax(axis=0)).mean() > 0.999
    assert found.max() > 200


def test_first_of_equal_classes_wins_as_with_argmax() -> None:
    scores = np.random.default_rng(0).integers(0, 3, (5, 40, 40)).astype(np.float32)
    np.testing.assert_array_equal(winners(scores), scores.argmax(axis=0))


@pytest.mark.parametrize(("have", "want"), [(7, 7), (7, 20), (20, 7), (512, 240), (1, 9), (9, 1)])
def test_taps_are_a_weighted_mean(have: int, want: int) -> None:
    index, weight = taps(have, want)
    assert index.min() >= 0
    assert index.max() < have
    assert weight.min() >= 0
    np.testing.assert_allclose(weight.sum(axis=0), 1, rtol=1e-6)
    if want >= have:
        assert len(index) == 2


def test_entropy_is_that_of_the_softmax() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 6, 7)).astype(np.float32) * 3
    p = np.exp(scores.astype(np.float64))
    p /= p.sum(axis=0)
    np.testing.assert_allclose(entropy(scores), -(p * np.log(p)).sum(axis=0) / np.log(4), atol=1e-5)
    assert entropy(np.zeros((3, 1, 1), np.float32)) == pytest.approx(1)
    assert entropy(np.array([80.0, -80.0, -80.0], np.float32)[:, None, None]) == pytest.approx(0)


def test_uncertainty_counts_structures_and_maps_entropy(make_volume: MakeVolume) -> None:
    volume = make_volume(np.arange(8 * 8 * 3, dtype=np.int16).reshape(8, 8, 3))
    stack = Stack(volume, Recipe(slice_axis="array-2", spacing_mm="native", window=(8, 8)))
    scores = np.zeros((3, 2, 8, 8), np.float32)
    scores[0, 1], scores[1, 1], scores[2, 1] = 0.1, 5.0, -5.0  # unsure, sure, background
    unsure = Uncertainty(stack, wanted=True)
    unsure.add(range(2), scores[:2])
    unsure.add(range(2, len(scores)), scores[2:])
    assert unsure.low_share == 0.5
    assert unsure.entropy is not None
    np.testing.assert_array_equal(
        unsure.entropy[0, 0], np.rint(255 * np.array([entropy(s)[0, 0] for s in scores]))
    )
    assert Uncertainty(stack, wanted=False).low_share == 0


def test_the_expected_dice_is_that_with_truths_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((0.5, 0.3, 0.4), size=4000).T.astype(np.float32)
    won = winners(probabilities)
    parts = [
        dice_sums(won[part], probabilities[:, part]) for part in (slice(1000), slice(1000, None))
    ]
    drawn = (rng.random(4000) > probabilities.cumsum(axis=0)[:2, None]).sum(axis=0)[0]
    found = expected_dice(sum(parts))
    assert set(found) == {1, 2}  # of the background nobody asks
    for k, expected in found.items():
        dice = 2 * np.sum((won == k) & (drawn == k)) / (np.sum(won == k) + np.sum(drawn == k))
        assert expected == pytest.approx(dice, abs=0.03)
    assert expected_dice(np.zeros((3, 3))) == {}


def test_prefetch_keeps_the_order_and_is_never_more_than_one_prefetch() -> None:
    made: list[int] = []
    where: set[int] = set()

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            where.add(threading.get_ident())
            yield i

    for i, item in enumerate(prefetch(items())):
        assert item == i
        time.sleep(0.001)
        assert len(made) <= i + 2
    assert threading.get_ident() not in where


def test_prefetch_raises_what_went_wrong_and_stops_when_left() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        list(prefetch(prefetch(broken())))
    before = threading.active_count()
    for _ in prefetch(prefetch(iter(range(1000)))):
        break
    time.sleep(0.05)
    assert threading.active_count() <= before


def test_probabilities_are_as_unsure_as_their_logits(make_volume: MakeVolume) -> None:
    """Of an export whose graph ends in a softmax."""
    raw = np.random.default_rng(0).integers(0, 9, (8, 8, 2)).astype(np.int16)
    logits = np.random.default_rng(1).normal(scale=3, size=(2, 5, 8, 8)).astype(np.float32)
    powers = np.exp(logits)
    scores = {False: logits, True: powers / powers.sum(axis=1, keepdims=True)}
    found = {}
    for probabilities, values in scores.items():
        recipe = Recipe(slice_axis="array-2", spacing_mm="native", window=(8, 8))
        stack = Stack(make_volume(raw), recipe)
        found[probabilities] = Uncertainty(stack, wanted=True, probabilities=probabilities)
        found[probabilities].add(range(len(values)), values)
    assert 0 < found[False].low_share == found[True].low_share < 1
    assert found[True].expected_dice == pytest.approx(found[False].expected_dice)
    one, other = found[False].entropy, found[True].entropy
    assert one is not None
    assert other is not None
    assert np.abs(one.astype(int) - other).max() <= 1

"""Stray islands go, the organ stays; the rules are learnt from training labels."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from leuda_deploy.inference.clean_up import Pieces, clean_up, learn_clean_up

SPACING = (1.0, 2.0, 5.0)  # 0.01 ml a voxel


def organ_with_islands() -> np.ndarray:
    """Class 1: pieces of 64, 8 and 1 voxels. Class 2: one piece of 27, touching by a corner."""
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[0:4, 0:4, 0:4] = 1
    labels[10:12, 10:12, 10:12] = 1
    labels[19, 19, 19] = 1
    labels[4:7, 4:7, 4:7] = 2
    return labels


def test_the_largest_piece_alone_stays_and_the_rest_is_reported():
    labels = organ_with_islands()
    before = labels.copy()
    cleaned, taken = clean_up(labels, SPACING, {1: Pieces(largest_only=True)})
    assert np.array_equal(labels, before)
    assert (cleaned == 1).sum() == 64
    assert (cleaned == 1)[0:4, 0:4, 0:4].all()
    assert (cleaned == 2).sum() == 27
    assert taken == {1: pytest.approx(0.09)}


def test_pieces_down_to_a_volume_stay():
    rules = {1: Pieces(largest_only=False, smallest_ml=0.08), 2: Pieces(largest_only=True)}
    cleaned, taken = clean_up(organ_with_islands(), SPACING, rules)
    assert (cleaned == 1).sum() == 72
    assert taken == {1: pytest.approx(0.01), 2: 0.0}


def test_the_largest_piece_stays_however_small_it_is():
    cleaned, _ = clean_up(
        organ_with_islands(), SPACING, {1: Pieces(largest_only=False, smallest_ml=100.0)}
    )
    assert (cleaned == 1).sum() == 64


def test_voxels_that_touch_by_a_corner_are_one_piece():
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[3, 3, 3] = 1
    cleaned, _ = clean_up(labels, SPACING, {1: Pieces(largest_only=True)})
    assert (cleaned == 1).sum() == 2


def test_a_class_that_is_absent_loses_nothing():
    cleaned, taken = clean_up(organ_with_islands(), SPACING, {7: Pieces(largest_only=True)})
    assert np.array_equal(cleaned, organ_with_islands())
    assert taken == {7: 0.0}


def test_rules_follow_the_training_labels():
    one_piece = np.zeros((20, 20, 20), dtype=np.uint8)
    one_piece[0:5, 0:5, 0:5] = 1
    one_piece[10:15, 10:15, 10:15] = 2
    two_pieces = organ_with_islands()
    two_pieces[15:18, 0:3, 0:3] = 2  # class 2 in two pieces of 27
    rules = learn_clean_up([(one_piece, SPACING), (two_pieces, SPACING)], [1, 2, 3])
    # class 1: 64 and 8 voxels; one voxel is 1.4 % of 73, no slip: the smallest piece seen is it
    assert rules[1] == Pieces(largest_only=False, smallest_ml=0.005)
    assert not rules[2].largest_only
    assert rules[2].smallest_ml == pytest.approx(0.135)
    assert 3 not in rules


def test_a_slip_of_the_pen_does_not_make_two_pieces():
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[0:10, 0:10, 0:10] = 1
    labels[19, 19, 19] = 1
    assert learn_clean_up([(labels, SPACING)], [1]) == {1: Pieces(largest_only=True)}


def test_a_rule_with_a_misspelt_key_is_refused():
    with pytest.raises(ValidationError):
        Pieces(largest_only=True, smalest_ml=1.0)

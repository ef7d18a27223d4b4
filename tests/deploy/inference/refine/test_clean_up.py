"""Stray islands go, the organ stays; what touches is one piece."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from support.makers import organ_with_islands

from leuda_deploy.inference.refine.clean_up import clean_up, piece_sizes
from leuda_deploy.model.card import Pieces

SPACING = (1.0, 2.0, 5.0)  # 0.01 ml a voxel


def test_the_largest_piece_alone_stays_and_the_rest_is_reported():
    labels = organ_with_islands()
    taken = clean_up(labels, SPACING, {1: Pieces(largest_only=True)})
    assert (labels == 1).sum() == 64
    assert (labels == 1)[0:4, 0:4, 0:4].all()
    assert (labels == 2).sum() == 27
    assert taken == {1: pytest.approx(0.09)}


def test_pieces_down_to_a_volume_stay():
    rules = {1: Pieces(largest_only=False, smallest_ml=0.08), 2: Pieces(largest_only=True)}
    cleaned = organ_with_islands()
    taken = clean_up(cleaned, SPACING, rules)
    assert (cleaned == 1).sum() == 72
    assert taken == {1: pytest.approx(0.01), 2: 0.0}


def test_the_largest_piece_stays_however_small_it_is():
    cleaned = organ_with_islands()
    clean_up(cleaned, SPACING, {1: Pieces(largest_only=False, smallest_ml=100.0)})
    assert (cleaned == 1).sum() == 64


def test_voxels_that_touch_by_a_corner_are_one_piece():
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[3, 3, 3] = 1
    clean_up(labels, SPACING, {1: Pieces(largest_only=True)})
    assert (labels == 1).sum() == 2


def test_a_class_that_is_absent_loses_nothing():
    cleaned = organ_with_islands()
    taken = clean_up(cleaned, SPACING, {7: Pieces(largest_only=True)})
    assert np.array_equal(cleaned, organ_with_islands())
    assert taken == {7: 0.0}


def test_a_rule_with_a_misspelt_key_is_refused():
    with pytest.raises(ValidationError):
        Pieces(largest_only=True, smalest_ml=1.0)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_pieces_are_those_that_scipy_finds_in_the_whole_volume(share: float):
    labels = (np.random.default_rng(3).random((17, 13, 11)) < share).astype(np.uint8)
    found, _ = ndimage.label(labels, structure=np.ones((3, 3, 3)))
    assert sorted(piece_sizes(labels, 1)) == sorted(np.bincount(found.ravel())[1:])
    expected = found == np.bincount(found.ravel())[1:].argmax() + 1
    cleaned = labels.copy()
    clean_up(cleaned, SPACING, {1: Pieces(largest_only=True)})
    assert cleaned.sum() == expected.sum()

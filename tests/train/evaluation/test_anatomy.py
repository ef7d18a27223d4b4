"""What training labels say of a structure: its pieces, its volume."""

from __future__ import annotations

import numpy as np
import pytest
from support.makers import organ_with_islands

from leuda_deploy.model.card import Pieces
from leuda_train.evaluation.anatomy import learn_anatomy

SPACING = (1.0, 2.0, 5.0)  # 0.01 ml a voxel


def test_rules_follow_the_training_labels():
    one_piece = np.zeros((20, 20, 20), dtype=np.uint8)
    one_piece[0:5, 0:5, 0:5] = 1
    one_piece[10:15, 10:15, 10:15] = 2
    two_pieces = organ_with_islands()
    two_pieces[15:18, 0:3, 0:3] = 2  # class 2 in two pieces of 27
    anatomy = learn_anatomy([(one_piece, SPACING), (two_pieces, SPACING)], [1, 2, 3])
    # class 1: 64 and 8 voxels; one voxel is 1.4 % of 73, no slip: the smallest piece seen is it
    assert anatomy[1].pieces == Pieces(largest_only=False, smallest_ml=0.005)
    assert not anatomy[2].pieces.largest_only
    assert anatomy[2].pieces.smallest_ml == pytest.approx(0.135)
    assert 3 not in anatomy


def test_a_slip_of_the_pen_does_not_make_two_pieces():
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[0:10, 0:10, 0:10] = 1
    labels[19, 19, 19] = 1
    assert learn_anatomy([(labels, SPACING)], [1])[1].pieces == Pieces(largest_only=True)


def test_volumes_are_of_whole_structures_alone():
    small, large, cut = (np.zeros((20, 20, 20), dtype=np.uint8) for _ in range(3))
    small[5:10, 5:10, 5:10] = 1
    large[5:15, 5:15, 5:15] = 1
    cut[5:15, 5:15, 0:1] = 1
    scans = [(labels, SPACING) for labels in (small, large, cut)]
    assert learn_anatomy(scans, [1])[1].volume_ml == pytest.approx((1.25, 10.0))
    assert learn_anatomy(scans[2:], [1])[1].volume_ml is None

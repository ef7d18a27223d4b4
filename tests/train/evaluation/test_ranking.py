"""Rank correlation of scores and Dice, where there is an order to speak of."""

from __future__ import annotations

import pytest

from leuda_train.evaluation.ranking import rank_correlation


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.1, 0.2), (0.2, 0.5), (0.9, 0.6)], 1.0),
        ([(0.1, 0.9), (0.2, 0.5), (0.9, 0.4)], -1.0),
        ([(1, 1), (2, 2), (3, 4), (4, 3)], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([(0.1, 0.2), (0.2, 0.5)], None),
        ([(0.1, 0.2), (0.1, 0.5), (0.1, 0.6)], None),
        ([(0.1, 0.2), (None, 0.5), (0.3, None)], None),
    ],
)
def test_rank_correlation(pairs, expected):
    found = rank_correlation(pairs)
    assert found["spearman"] == (None if expected is None else pytest.approx(expected))
    assert found["n"] == sum(None not in pair for pair in pairs)

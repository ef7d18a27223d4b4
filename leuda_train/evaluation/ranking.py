"""scores that need no label, and the Dice that labels give -> how well the ones rank the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scipy.stats import spearmanr

LEAST = 3  # fewer have no order worth the name


def rank_correlation(pairs: Iterable[tuple[float | None, float | None]]) -> dict[str, Any]:
    """(score, Dice) of each -> `{"spearman": -1 to 1, "n": how many}`, of those that have both.

    None with fewer than three, or where either is the same for all.
    """
    known = [(score, dice) for score, dice in pairs if score is not None and dice is not None]
    scores, dice = {score for score, _ in known}, {value for _, value in known}
    if len(known) < LEAST or len(scores) == 1 or len(dice) == 1:
        return {"spearman": None, "n": len(known)}
    found = spearmanr([score for score, _ in known], [value for _, value in known])
    return {"spearman": round(float(found.statistic), 4), "n": len(known)}

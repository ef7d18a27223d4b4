"""the Dice that a model expects of its own labels -> the one that is predicted, or none.

A network says with a probability how sure it is of each pixel. If it were right about that, its
labels would have a Dice that can be worked out without any truth. It is too sure; by how much, a
run finds out on labelled scans of the source, and writes it into the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ENDS = 0.01  # an expectation nearer to 0 or 1 than this counts as this


class DiceCurve(BaseModel):
    """How far its probabilities can be believed: logit predicted = shift + slope logit expected.

    Never above what the model expects: the scans that it is fitted on are those of training, or
    like them, on which a network does better than elsewhere.

    shift, slope  of the line
    error         mean difference between predicted and true Dice where it was fitted
    scans         how many labelled scans that was, each as it is and with noise added
    held_out      whether training had not seen their labels
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: Annotated[float, Field(ge=-20, le=20)]
    slope: Annotated[float, Field(ge=0, le=20)]
    error: Annotated[float, Field(ge=0, le=1)]
    scans: Annotated[int, Field(ge=1)]
    held_out: bool

    def predict(self, expected: float) -> float:
        """The Dice of labels of which the model expects so much, 0 to 1."""
        inside = min(max(expected, ENDS), 1 - ENDS)
        line = self.shift + self.slope * log(inside / (1 - inside))
        return min(expected, 1 / (1 + exp(-line)))


def predict_all(
    curve: DiceCurve | None, expected: Mapping[int, float], names: Mapping[int, str]
) -> dict[str, float] | None:
    """By name, of each class of which a Dice is expected, to three digits; None without a curve."""
    if curve is None:
        return None
    return {names[value]: round(curve.predict(dice), 3) for value, dice in expected.items()}

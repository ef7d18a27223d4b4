"""what is done to the probabilities of a 2D graph before labels are taken: a part of the card."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Refine(BaseModel):
    """What is done to a scan's class probabilities before labels are taken.

    edges          they are drawn to the edges of the slices
    across_slices  each slice's are averaged with its neighbours'

    How stands in `inference/refine/`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: bool = False
    across_slices: bool = False

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return self.edges or self.across_slices


AS_PREDICTED = Refine()

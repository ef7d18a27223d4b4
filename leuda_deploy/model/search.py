"""how few slices of a scan have to be scored to find all there is: a part of the model card."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Millimetres = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


class Search(BaseModel):
    """Find first: score a slice every `step_mm`, then the slices around what was found.

    The rest is background. A card has it only if whole target scans got the same labels this way
    as from a pass over every slice, within the limits of `export/shortcuts/same_labels.py`.

    step_mm       from one searched slice to the next: half of the smallest extent, along the slice
                  axis, that a structure had in the labels of training, or less
    margin_mm     so far around each slice that holds a structure, every slice is scored
    scans         how many scans it was proven on
    slices        of these scans
    scored        how many of them were scored
    dice          smallest Dice of a structure with the full pass, over all of these scans
    disagreement  largest share of a scan's voxels that got another label
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_mm: Millimetres
    margin_mm: Millimetres
    scans: Annotated[int, Field(ge=1)]
    slices: Annotated[int, Field(ge=1)]
    scored: Annotated[int, Field(ge=1)]
    dice: Share
    disagreement: Share

    @property
    def share(self) -> float:
        """How many of all slices were scored."""
        return self.scored / self.slices

"""how long stage 2 trains, on how much at a time, and how fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from leuda_train.config.values import Count, Part, Positive, Rate, Share


class ScheduleConfig(Part):
    """How long stage 2 trains, and on how much at a time.

    epochs              how many
    steps_per_epoch     iterations of an epoch
    batch_labelled      images a step of each stream of supervised_on, over all processes
    batch_unlabelled    the same for each unlabelled stream
    learning_rate       of the student, after the warm-up
    decay               of the learning rate after the warm-up: the paper's is constant
    checkpoint_seconds  time from one checkpoint to the next
    structure_share     of a labelled batch, slices that show a structure; without it, as they come
    coarse_window       (height, width) in pixels that the first steps show the recipe's window in:
                        less work
    coarse_share        share of the steps that do so; the others see full resolution
    shares_every        steps from one look at the gradient of each term by itself to the next: a
                        backward pass a term; 0 for never
    """

    epochs: Positive
    steps_per_epoch: Positive
    batch_labelled: Positive
    batch_unlabelled: Positive
    learning_rate: Rate
    decay: Literal["constant", "cosine"] = "constant"
    structure_share: Share | None = None
    coarse_window: tuple[Positive, Positive] | None = None
    coarse_share: Share = 0.0
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0
    shares_every: Count = 100

    @property
    def steps(self) -> int:
        """Iterations in all."""
        return self.epochs * self.steps_per_epoch

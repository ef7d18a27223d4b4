"""trained networks -> which of them is the product, what it is fed, whether it is distilled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from leuda_train.config.values import Part, Positive, Rate

Feed = Literal["target", "target_as_source"]  # what a network reads of a target scan


class TestConfig(Part):
    """Which network is the product of the run, and what it reads of a target scan.

    network       one of the three, or "auto": the label-free score chooses among those in use
    feed          of student and intra-domain teacher; the inter-domain one always reads x^t
    batchnorm     "trained": statistics as they were gathered in training; "feed": those of all the
                  unlabelled target scans, read once more by the finished network
    edges         draw the probabilities of a slice to its edges
    across_slices  average them with those of the slices beside. Both (`inference/refine/`) are done
                  only if true labels of the source mostly survive it: each structure with a Dice
                  of 0.85
    select        "last": as it is after the last epoch, as in the paper; "label-free": as at the
                  epoch with the best label-free score
    select_epochs  from one look at the label-free score to the next
    hold_out      where a network or an epoch is chosen: the share of the labelled source scans that
                  is kept out of training and chosen by; with fewer than five, of the slices of each
    rank_epochs   also score every candidate of every look on the test scans, when all is trained
                  and chosen, to report how well the label-free score ranks epochs
    """

    network: Literal["student", "intra_teacher", "inter_teacher", "auto"]
    feed: Feed
    batchnorm: Literal["trained", "feed"] = "trained"
    edges: bool = False
    across_slices: bool = False
    select: Literal["last", "label-free"] = "last"
    select_epochs: Positive = 5
    hold_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    rank_epochs: bool = False

    def feed_of(self, network: str) -> Feed:
        """What a network is fed at test time."""
        return "target" if network in ("inter_teacher", "distilled") else self.feed


class DistilConfig(Part):
    """Stage 3: both teachers -> one network that reads the target.

    width          channels as a share of the U-Net's, 0.25 for an edge-sized network
    share          iterations in all, as a share of those of stage 2
    learning_rate  of the network
    """

    width: Annotated[float, Field(gt=0, le=1)]
    share: Annotated[float, Field(gt=0, le=10)]
    learning_rate: Rate

    def widths(self, full: tuple[int, ...]) -> tuple[int, ...]:
        """The distilled network's channels by level."""
        return tuple(max(4, round(self.width * channels)) for channels in full)

"""a first model, and what became of it without labels -> whether it still finds the same things.

Nothing holds self-training on the ground but its own labels: it can lose a structure slice by slice
while it becomes ever surer. No label tells; the first model does. An adapted network may correct
it, but a structure that it no longer finds where the first one did, or finds in less than half or
more than twice of the size, is lost rather than corrected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_train.data.aligned_sets import take_rows
from leuda_train.loop.hardware import Hardware

LEAST_AGREEMENT, MOST_GROWTH = 0.5, 2.0
AT_ONCE = 32  # slices


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one structure, over all unlabelled target slices.

    agreement  Dice of the adapted network's labels with those of the first model
    growth     how many pixels of it the adapted network finds for each of the first model's
    """

    agreement: float
    growth: float

    @property
    def too_far(self) -> bool:
        """Whether the structure was lost rather than corrected."""
        kept_size = 1 / MOST_GROWTH <= self.growth <= MOST_GROWTH
        return self.agreement < LEAST_AGREEMENT or not kept_size


@torch.no_grad()
def drift(
    first: nn.Module,
    adapted: nn.Module,
    images: NDArray[np.float32] | Tensor,
    classes: int,
    hardware: Hardware,
) -> dict[int, Drift]:
    """By class that either network finds; background is none.

    Args:
        first: (B, 1, h, w) -> scores (B, K, h, w), in evaluation mode.
        adapted: The same.
        images: (N, h, w), as both read them.
        classes: K.
        hardware: Where they run.
    """
    counts = np.zeros((3, classes))
    for rows in np.array_split(np.arange(len(images)), max(1, round(len(images) / AT_ONCE))):
        part = hardware.put(take_rows(images, rows, hardware)[:, None])
        with hardware.autocast():
            before, after = (net(part).argmax(1).flatten() for net in (first, adapted))
        for row, labels in enumerate((before, after, before[before == after])):
            counts[row] += torch.bincount(labels, minlength=classes).cpu().numpy()
    return {
        k: Drift(
            agreement=float(2 * both / (before + after)),
            # a structure that the first model did not find at all is all growth
            growth=float(after / max(before, 1)),
        )
        for k, (before, after, both) in enumerate(counts.T)
        if k and before + after
    }

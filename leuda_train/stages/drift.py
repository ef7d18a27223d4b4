"""a first model, and what became of it without labels -> whether it still finds the same things.

Nothing holds self-training on the ground but its own labels: it can lose a structure slice by slice
while it becomes ever surer. No true label tells; the first model does. It labelled whole scans to
begin with, without islands. An adapted network may correct that, but where it no longer finds half
of a structure's labels, or more than twice of what the first model finds, the structure is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_train.data.aligned_sets import take_rows
from leuda_train.loop.hardware import Hardware

LEAST_KEPT, MOST_GROWTH = 0.5, 2.0
AT_ONCE = 32  # slices


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one structure, over all unlabelled target slices.

    kept    share of the pixels that had its label to begin with in which it is still found
    growth  how many pixels it has now for each that the first model finds
    """

    kept: float
    growth: float

    @property
    def too_far(self) -> bool:
        """Whether the structure was lost rather than corrected."""
        return self.kept < LEAST_KEPT or self.growth > MOST_GROWTH


@torch.no_grad()
def drift(
    first: nn.Module,
    labels: Tensor,
    adapted: nn.Module,
    images: NDArray[np.float32] | Tensor,
    hardware: Hardware,
) -> dict[int, Drift]:
    """By class that had a label to begin with; background is none.

    Args:
        first: (B, 1, h, w) -> scores (B, K, h, w), in evaluation mode.
        labels: (N, h, w) uint8 that it gave to begin with; K and more: it was unsure.
        adapted: As `first`.
        images: (N, h, w), as both read them.
        hardware: Where they run.
    """
    total = np.zeros((4, 256))
    for rows in np.array_split(np.arange(len(images)), max(1, round(len(images) / AT_ONCE))):
        part = hardware.put(take_rows(images, rows, hardware)[:, None])
        with hardware.autocast():
            before, after = (net(part).argmax(1).cpu().flatten() for net in (first, adapted))
        began = labels[torch.from_numpy(rows)].flatten().long()
        for row, some in enumerate((began, began[began == after], before, after)):
            total[row] += torch.bincount(some, minlength=256).numpy()
    classes = range(1, int(np.flatnonzero(total[2:].any(axis=0)).max(initial=0)) + 1)
    return {
        k: Drift(kept=float(total[1, k] / total[0, k]), growth=float(total[3, k] / total[2, k]))
        for k in classes
        if total[0, k] and total[2, k]
    }

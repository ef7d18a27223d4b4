"""class probabilities of the target -> the same, with classes as frequent as in the source.

A teacher that has not seen a modality is timid about some organs and generous with others, and
self-training makes it worse: what is missed today is background in tomorrow's pseudo-labels. Organs
are as large in one modality as in the other, so how often a class should be found is known from the
source's labels. After distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leuda_train.loop.ranks import ALONE, Ranks

MOMENTUM = 0.03  # of the running mean over steps
LIMIT = 3.0  # a class is weighted by at most this, and at least one over it


def class_weights(wanted: Tensor, found: Tensor) -> Tensor:
    """(K,) wanted and found shares of pixels -> (K,) weights, within the limits.

    A class that the labels do not show is left alone: 1.
    """
    weight = (wanted / found.clamp_min(1e-6)).clamp(1.0 / LIMIT, LIMIT)
    return torch.where(wanted > 0, weight, 1.0)


class ClassPrior(nn.Module):
    """How frequent classes are in the source's labels, and in what teachers say of the target.

    shares    (K,) of the source's pixels
    strength  0 to 1, the exponent of the weights: 1 asks for the source's frequencies outright
    """

    wanted: Tensor
    found: Tensor

    def __init__(self, shares: Tensor, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("wanted", shares.clone().float())
        self.register_buffer("found", shares.clone().float())

    @torch.no_grad()
    def forward(self, q: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """(B, K, H, W) probabilities -> the same, weighted by class; remembers how frequent."""
        mean = q.float().mean((0, 2, 3))
        self.found.lerp_(ranks.sum(mean) / ranks.size, MOMENTUM)
        weight = class_weights(self.wanted, self.found) ** self.strength
        weighted = q.float() * weight[:, None, None]
        return weighted / weighted.sum(dim=1, keepdim=True)

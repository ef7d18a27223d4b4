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
ROUNDS = 60  # of fitting weights to class sizes
SPARSE = 3  # class sizes are counted on every third pixel of every third row
SIZE_LIMIT = 10.0  # of those weights
LIMIT = 3.0  # a class is weighted by at most this, and at least one over it


def class_weights(wanted: Tensor, found: Tensor) -> Tensor:
    """(K,) wanted and found shares of pixels -> (K,) weights, within the limits.

    A class that the labels do not show is left alone: 1.
    """
    weight = (wanted / found.clamp_min(1e-6)).clamp(1.0 / LIMIT, LIMIT)
    return torch.where(wanted > 0, weight, 1.0)


def weights_by_size(q: Tensor, wanted: Tensor, strength: float) -> Tensor:
    """Weights (K,) under which the most likely classes are as frequent as they should be.

    The most likely class of a pixel is the background more often than the probabilities say: what
    is found with 0.3 everywhere is labelled nowhere. So classes are weighted until their shares of
    the labels are their mean probabilities, drawn towards the source's shares:
    mean^(1 - strength) * wanted^strength.

    Args:
        q: (N, K, H, W) probabilities of whole scans.
        wanted: (K,) shares of pixels in the source's labels; 0 for a class that they do not show.
        strength: 0 to 1.
    """
    mean = q.float().mean((0, 2, 3))
    some = q[:, :, ::SPARSE, ::SPARSE]
    goal = torch.where(wanted > 0, mean ** (1.0 - strength) * wanted**strength, mean)
    goal = goal / goal.sum()
    weights = torch.ones_like(goal)
    for turn in range(ROUNDS):  # shorter and shorter steps, so that they settle
        labels = (some * weights[:, None, None]).argmax(dim=1)
        found = torch.bincount(labels.flatten(), minlength=len(goal)) / labels.numel()
        weights = weights * (goal / found.clamp_min(1e-6)) ** (0.5 * 0.93**turn)
        weights = (weights / weights[0]).clamp(1.0 / SIZE_LIMIT, SIZE_LIMIT)
    return weights


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

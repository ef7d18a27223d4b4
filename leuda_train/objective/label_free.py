"""networks + windows -> which network, and from when, without a single target label.

score = mean Dice on target-like images whose labels are the source's - ½ mean pseudo-label loss on
the target. Target-like are labelled source slices with the amplitude spectrum of target slices
(Fourier swap: training-free, so the yardstick is the same for every method).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor, nn

from leuda_train.data.augment.fourier import swap_amplitude
from leuda_train.data.batches import AlignedSets, take_rows
from leuda_train.loop.hardware import Hardware

WINDOWS = 64
RADIUS = 0.06
PSEUDO_WEIGHT = 0.5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Fixed windows (N, 1, h, w) on the device: target-like with labels (N, h, w), and target."""

    target_like: Tensor
    labels: Tensor
    target: Tensor


def make_probe(sets: AlignedSets, hardware: Hardware, seed: int) -> Probe:
    """Draw the windows once; labelled rows of the source, any rows of the target."""
    rng = np.random.default_rng([seed, 1])
    labelled = rng.permutation(sets.labelled_rows)[:WINDOWS]
    rows = rng.permutation(len(sets.images["target"]))[:WINDOWS]
    target = np.asarray(sets.images["target"][np.sort(rows)])
    partners = target[rng.integers(len(target), size=len(labelled))]
    swapped = swap_amplitude(np.asarray(sets.images["source"][labelled]), partners, RADIUS)
    return Probe(
        target_like=hardware.put(torch.from_numpy(swapped)[:, None]),
        labels=take_rows(sets.labels, labelled, hardware).long(),
        target=hardware.put(torch.from_numpy(target)[:, None]),
    )


@torch.no_grad()
def label_free_score(product: nn.Module, probe: Probe, hardware: Hardware) -> float:
    """Higher is better; product maps windows (B, 1, h, w) to logits (B, K, h, w)."""
    modes = {module: module.training for module in product.modules()}
    product.eval()
    with hardware.autocast():
        like, target = (
            torch.cat([product(part).float() for part in images.split(16)])
            for images in (probe.target_like, probe.target)
        )
    for module, training in modes.items():  # each its own: a teacher may be in eval mode
        module.training = training
    found = F.one_hot(like.argmax(dim=1), like.shape[1]).movedim(-1, 1)[:, 1:]
    true = F.one_hot(probe.labels, like.shape[1]).movedim(-1, 1)[:, 1:]
    over = (0, 2, 3)
    dice = 2.0 * (found * true).sum(over) / (found.sum(over) + true.sum(over)).clamp_min(1)
    pseudo_loss = -target.log_softmax(dim=1).amax(dim=1).mean()
    return float(dice.mean() - PSEUDO_WEIGHT * pseudo_loss)

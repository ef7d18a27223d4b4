"""networks + windows -> which network, and from when, without a single target label.

score = mean Dice on target-like images whose labels are the source's
        - ½ mean pseudo-label loss on the target - ½ mean price of class sizes on the target.

Target-like are labelled source slices with the amplitude spectrum of target slices (Fourier swap:
training-free, so the yardstick is the same for every method), and, where there is a translator,
x^{s→t}; both count the same. The slices are held out of training where anything is chosen.

A network that finds nothing but background is sure of it, and its pseudo-label loss is 0. So sizes
have their price: a class whose share of the target's pixels is within a factor of 2 of its share in
the labelled source costs nothing, one that is 4 times too large or small costs the whole 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor, nn

from leuda_train.data.aligned_sets import AlignedSets, take_rows
from leuda_train.data.augment.fourier import swap_amplitude
from leuda_train.loop.hardware import Hardware

WINDOWS = 64
RADIUS = 0.06
PSEUDO_WEIGHT = 0.5
SIZE_WEIGHT = 0.5
LEAST_SHARE = 1e-6  # of pixels, so that a ratio of sizes is finite


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Fixed windows (N, 1, h, w) on the device: target-like with labels (N, h, w), and target.

    target_like  by how they were made: "fourier", and "translated" if there is a translator
    sizes        (K',) each class's share of the labelled source's pixels; K' <= K, with background
    """

    target_like: dict[str, Tensor]
    labels: Tensor
    target: Tensor
    sizes: Tensor


def make_probe(sets: AlignedSets, hardware: Hardware, seed: int) -> Probe:
    """Draw the windows once; held-out rows of the source if there are any, any of the target."""
    rng = np.random.default_rng([seed, 1])
    held = sets.held_out_rows
    known = sets.labelled_rows if held is None or not len(held) else held
    labelled = rng.permutation(known)[:WINDOWS]
    rows = rng.permutation(len(sets.images["target"]))[:WINDOWS]
    target = np.asarray(sets.images["target"][np.sort(rows)])
    partners = target[rng.integers(len(target), size=len(labelled))]
    swapped = swap_amplitude(np.asarray(sets.images["source"][labelled]), partners, RADIUS)
    target_like = {"fourier": hardware.put(torch.from_numpy(swapped)[:, None])}
    if "source_as_target" in sets.images:
        translated = take_rows(sets.images["source_as_target"], labelled, hardware)
        target_like["translated"] = hardware.put(translated[:, None])
    labels = take_rows(sets.labels, labelled, hardware).long()
    return Probe(
        target_like=target_like,
        labels=labels,
        target=hardware.put(torch.from_numpy(target)[:, None]),
        sizes=_sizes(take_rows(sets.labels, np.sort(known), hardware).long()),
    )


def _sizes(labels: Tensor, classes: int = 0) -> Tensor:
    """(K,) each class's share of the pixels."""
    return torch.bincount(labels.flatten(), minlength=classes).float() / labels.numel()


@torch.no_grad()
def label_free_score(product: nn.Module, probe: Probe, hardware: Hardware) -> float:
    """Higher is better; product maps windows (B, 1, h, w) to logits (B, K, h, w)."""
    modes = {module: module.training for module in product.modules()}
    product.eval()
    with hardware.autocast():
        *target_like, target = (
            torch.cat([product(part).float() for part in images.split(16)])
            for images in (*probe.target_like.values(), probe.target)
        )
    for module, training in modes.items():  # each its own: a teacher may be in eval mode
        module.training = training
    dice = torch.stack([mean_dice(logits, probe.labels) for logits in target_like]).mean()
    pseudo_loss = -target.log_softmax(dim=1).amax(dim=1).mean()
    price = size_price(_sizes(target.argmax(dim=1), target.shape[1]), probe.sizes)
    return float(dice - PSEUDO_WEIGHT * pseudo_loss - SIZE_WEIGHT * price)


def mean_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Over all windows at once, mean over the structures."""
    found = F.one_hot(logits.argmax(dim=1), logits.shape[1]).movedim(-1, 1)[:, 1:]
    true = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:]
    over = (0, 2, 3)
    return (2.0 * (found * true).sum(over) / (found.sum(over) + true.sum(over)).clamp_min(1)).mean()


def size_price(found: Tensor, expected: Tensor) -> Tensor:
    """Shares of pixels by class (K,), background first, and (K',) -> 0 to 1, mean over structures.

    Structures that the labelled source does not show cost nothing.
    """
    ratio = found[1 : len(expected)].clamp_min(LEAST_SHARE) / expected[1:].clamp_min(LEAST_SHARE)
    price = (ratio.log2().abs() - 1.0).clamp(0.0, 1.0)[expected[1:] > 0]
    return price.mean() if len(price) else torch.zeros((), device=found.device)

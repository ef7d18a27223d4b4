"""pure functions, one per equation: tensors in, scalar out.

Shapes: logits p, q (B, K, H, W); labels y (B, H, W) int64; discriminator maps (B, 1, h, w).
Everything is computed in float32, whatever precision the networks ran in. In a run of several
processes, logits and labels are a share of the joint batch; what is not a mean over images is then
taken over all of it, which is what `ranks` is for.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor

from leuda_train.loop.ranks import ALONE, Ranks

SMOOTH = 1e-5


def segmentation_loss(logits: Tensor, labels: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """L_seg = 1/2 soft Dice + 1/2 cross-entropy."""
    dice = soft_dice_loss(logits, labels, ranks)
    return 0.5 * dice + 0.5 * F.cross_entropy(logits.float(), labels)


def soft_dice_loss(logits: Tensor, labels: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """1 - (2 Σ p·y + s) / (Σ p² + Σ y² + s), over the batch; mean over classes with background."""
    p = logits.float().softmax(dim=1)
    return _dice_loss(p, F.one_hot(labels, p.shape[1]).movedim(-1, 1).to(p.dtype), ranks)


def _dice_loss(p: Tensor, y: Tensor, ranks: Ranks) -> Tensor:
    over = (0, 2, 3)
    sums = torch.stack([(p * y).sum(over), (p * p).sum(over), y.sum(over)])
    py, pp, yy = ranks.sum(sums).unbind()
    dice = (2.0 * py + SMOOTH) / (pp + yy + SMOOTH)
    return 1.0 - dice.mean()


def intra_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """L_con^intra = mean (softmax p - softmax q)²."""
    return F.mse_loss(student.float().softmax(dim=1), teacher.float().softmax(dim=1))


def inter_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """L_con^inter = mean over pixels of Σ_c (I(p_c) - I(q_c))²."""
    gap = weighted_self_information(student) - weighted_self_information(teacher)
    return (gap * gap).sum(dim=1).mean()


def weighted_self_information(logits: Tensor) -> Tensor:
    """I(p) = p log2 p, by class and pixel: (B, K, H, W). Finite (0) where p underflows to 0."""
    log_p = logits.float().log_softmax(dim=1)
    return log_p.exp() * log_p / math.log(2.0)


def pseudo_labels(q: Tensor, confidence: float, ranks: Ranks = ALONE) -> tuple[Tensor, Tensor]:
    """Class probabilities (B, K, H, W) -> labels (B, H, W) and the mask of those to trust.

    Class-balanced (after Zou et al., ECCV 2018): class k's threshold is `confidence` or the median
    confidence of the pixels given to k, whichever is lower, so no class is left out altogether.
    """
    best, labels = q.float().max(dim=1)
    every_best, every_label = ranks.joint(best), ranks.joint(labels)
    trusted = torch.zeros_like(best, dtype=torch.bool)
    for k in range(q.shape[1]):
        median = torch.where(every_label == k, every_best, torch.nan).nanmedian()
        trusted |= (labels == k) & (best >= median.clamp(max=confidence))
    return labels, trusted


def confident_labels(q: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """As `pseudo_labels`, but every pixel below the floor is left out, of whatever class."""
    best, labels = q.float().max(dim=1)
    return labels, best >= floor


def pseudo_loss(logits: Tensor, labels: Tensor, trusted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """L_pseudo: L_seg over the trusted pixels alone."""
    mask = trusted[:, None].float()
    cross_entropy = F.cross_entropy(logits.float(), labels, reduction="none")
    sums = torch.stack([(cross_entropy * mask[:, 0]).sum(), mask.sum()])
    total, trusted_pixels = ranks.sum(sums).unbind()
    cross_entropy = total / trusted_pixels.clamp_min(1.0)
    p = logits.float().softmax(dim=1) * mask
    y = F.one_hot(labels, p.shape[1]).movedim(-1, 1) * mask
    return 0.5 * _dice_loss(p, y, ranks) + 0.5 * cross_entropy


def adversarial_loss(score: Tensor) -> Tensor:
    """L_adv, least squares, of what wants to be taken for real: mean (D - 1)²."""
    return (score.float() - 1.0).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L_D, least squares: 1/2 mean (D(real) - 1)² + 1/2 mean D(fake)²."""
    return 0.5 * (real.float() - 1.0).square().mean() + 0.5 * fake.float().square().mean()

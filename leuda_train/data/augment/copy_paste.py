"""target images + labelled source images -> target images with labelled source regions in them.

Both domains in one picture, under labels of both kinds: true ones where the source was pasted,
pseudo-labels elsewhere. The network has to read the target's pixels with the source's anatomy
beside them, so that it cannot treat the two as two worlds. After BCP (Bai et al., CVPR 2023), which
pastes within one domain; ours pastes a random box, or all but a random box, from source to target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leuda_train.data.slices import UNLABELLED
from leuda_train.loop.ranks import ALONE, Ranks

SIDE = (0.3, 0.7)  # of the box, as a share of the image's


def paste(
    target: Tensor,
    source: Tensor,
    source_labels: Tensor,
    probability: float,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """Paste a region of source[i] into target[i], in some of the images.

    Args:
        target: (B, 1, H, W).
        source: (n, 1, H, W), n at least 1; where there are fewer than B, they are used again.
        source_labels: (n, H, W) class numbers.
        probability: How often an image gets a region.
        generator: The random numbers, drawn for the joint batch.
        ranks: Of which process these images are the share.

    Returns:
        The images (B, 1, H, W), and labels (B, H, W) that are UNLABELLED where the target shows.
    """
    count, (height, width) = len(target), target.shape[2:]
    drawn = torch.rand(6, count * ranks.size, generator=generator)
    drawn = ranks.share(drawn, dim=1).to(target.device)
    outside, chosen = drawn[0] < 0.5, drawn[1] < probability
    inside = (
        _span(drawn[2], drawn[3], height)[:, :, None] & _span(drawn[4], drawn[5], width)[:, None]
    )
    region = (inside ^ outside[:, None, None]) & chosen[:, None, None]  # (B, H, W)
    partner = torch.arange(count, device=target.device) % len(source)
    mixed = torch.where(region[:, None], source[partner], target)
    labels = torch.where(region, source_labels[partner], UNLABELLED)
    return mixed, labels


def _span(side: Tensor, place: Tensor, size: int) -> Tensor:
    """(B, size) bool: a random interval of each axis; side and place are (B,) in [0, 1)."""
    length = ((SIDE[0] + (SIDE[1] - SIDE[0]) * side) * size).long()
    start = (place * (size - length + 1)).long()
    at = torch.arange(size, device=side.device)
    return (at >= start[:, None]) & (at < (start + length)[:, None])

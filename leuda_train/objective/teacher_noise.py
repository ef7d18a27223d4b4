"""images -> clipped Gaussian noise that a teacher sees them under."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leuda_train.loop.ranks import ALONE, Ranks


def teacher_noise(
    streams: Sequence[Tensor],
    std: float,
    limit: float,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> Tensor:
    """N(0, std²) clipped to ±limit, (n, B, 1, H, W) for n streams (B, 1, H, W) of one size.

    ranks  of which process the streams are the share; the noise is drawn for all
    """
    count, *image = streams[0].shape
    shape = (len(streams), count * ranks.size, *image)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    return (ranks.share(noise, dim=1) * std).clamp_(-limit, limit).to(streams[0])

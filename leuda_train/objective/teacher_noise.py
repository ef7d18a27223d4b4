"""images -> the same under clipped Gaussian noise, as teachers see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leuda_train.config.objective import ObjectiveConfig
from leuda_train.config.streams import Stream
from leuda_train.loop.ranks import ALONE, Ranks


def teacher_noise(
    images: Mapping[Stream, Tensor],
    streams: Sequence[Stream],
    objective: ObjectiveConfig,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> dict[Stream, Tensor]:
    """These streams of the images, each (B, 1, H, W), plus N(0, std²) clipped to ±limit.

    Args:
        images: By stream.
        streams: Which of them; the noise is drawn anew for each, in this order.
        objective: Has std and limit.
        generator: Of the noise.
        ranks: Of which process the images are the share; the noise is drawn for all.
    """
    noisy: dict[Stream, Tensor] = {}
    for stream in streams:
        count, *image = images[stream].shape
        shape = (count * ranks.size, *image)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        noise = ranks.share(noise) * objective.teacher_noise
        limit = objective.teacher_noise_limit
        noisy[stream] = images[stream] + noise.clamp_(-limit, limit).to(images[stream])
    return noisy

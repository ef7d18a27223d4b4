"""images -> the same anatomy in a random style: intensity curves and shallow random convolutions.

What a network cannot rely on it learns to ignore. Labels stay valid, because nothing moves by more
than a pixel or two. After GIN (Ouyang et al., IEEE TMI 2022) and the Bézier curves of Models
Genesis (Zhou et al., MedIA 2021) as used by SLAug (Su et al., AAAI 2023).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor

from leuda_train.loop.ranks import ALONE, Ranks

HIDDEN_CHANNELS = 2
LAYERS = 4


def randomise_style(
    images: Tensor,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    *,
    curve: float,
    convolution: float,
    noise: float,
) -> Tensor:
    """Restyle each image (B, 1, H, W) on its own.

    ranks               of which process these images are the share; styles are drawn for all
    curve, convolution  how often each of the two is applied, 0 to 1; mean and deviation are kept
    noise               added last, its standard deviation uniform in [0, noise]
    """
    if curve > 0:
        curved = random_curve(images, generator, ranks)
        images = _sometimes(images, curved, curve, generator, ranks)
    if convolution > 0:
        convolved = random_convolution(images, generator, ranks)
        images = _sometimes(images, convolved, convolution, generator, ranks)
    if noise > 0:
        joint, *image = len(images) * ranks.size, *images.shape[1:]
        std = noise * ranks.share(torch.rand(joint, 1, 1, 1, generator=generator))
        added = std * ranks.share(torch.randn(joint, *image, generator=generator))
        images = images + added.to(images)
    return images


def random_curve(images: Tensor, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Bend the grey scale of each image: y = 3(1-x)²x a + 3(1-x)x² b + x³, half the time inverted.

    A cubic Bézier curve over the image's own range, with a, b uniform in [0, 1].
    """
    drawn = torch.rand(3, len(images) * ranks.size, 1, 1, 1, generator=generator)
    a, b, flip = ranks.share(drawn, dim=1).to(images)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    x = (images - low) / (high - low).clamp_min(1e-6)
    y = 3 * (1 - x) ** 2 * x * a + 3 * (1 - x) * x**2 * b + x**3
    return _same_moments(torch.where(flip < 0.5, 1 - y, y), images)


def random_convolution(images: Tensor, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """A random network of four 1x1 or 3x3 convolutions an image, mixed with the image itself."""
    batch, _, height, width = images.shape
    joint = batch * ranks.size
    x = images.reshape(1, batch, height, width)
    channels = [1] + [HIDDEN_CHANNELS] * (LAYERS - 1) + [1]
    for layer, (below, above) in enumerate(pairwise(channels)):
        size = 1 if torch.rand(1, generator=generator).item() < 0.5 else 3
        kernel = torch.randn(joint * above, below, size, size, generator=generator)
        shift = torch.randn(joint * above, generator=generator)
        kernel, shift = ranks.share(kernel).to(images), ranks.share(shift).to(images)
        # one group an image: every image has its own random network
        x = F.conv2d(x, kernel, shift, padding=size // 2, groups=batch)
        if layer < LAYERS - 1:
            x = F.leaky_relu(x)
    mix = ranks.share(torch.rand(joint, 1, 1, 1, generator=generator)).to(images)
    styled = _same_moments(x.reshape(images.shape), images)
    return _same_moments(mix * styled + (1 - mix) * images, images)


def _same_moments(images: Tensor, like: Tensor) -> Tensor:
    """Give each image the mean and standard deviation of its original."""
    over = (1, 2, 3)
    deviation, mean = torch.std_mean(images, over, keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(like, over, keepdim=True)
    return (images - mean) / deviation.clamp_min(1e-6) * wanted_deviation + wanted_mean


def _sometimes(
    images: Tensor, changed: Tensor, probability: float, generator: torch.Generator, ranks: Ranks
) -> Tensor:
    drawn = torch.rand(len(images) * ranks.size, 1, 1, 1, generator=generator)
    pick = ranks.share(drawn).to(images.device)
    return torch.where(pick < probability, changed, images)

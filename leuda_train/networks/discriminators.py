"""feature maps -> domain score."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class FeatureDiscriminator(nn.Module):
    """Feature adaptation (FA): one small convolutional critic a decoder level.

    channels  of each level that it compares
    levels    which decoder feature maps these are: -1 is the last, at full resolution
    width     channels after the first convolution, doubled at each of the next
    """

    def __init__(self, channels: Sequence[int], levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.critics = nn.ModuleList(_critic(c, width) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """All decoder feature maps (B, C_l, H_l, W_l) -> a score map (B, 1, h_l, w_l) a level."""
        pairs = zip(self.critics, self.levels, strict=True)
        return [critic(features[level]) for critic, level in pairs]


def _critic(channels: int, width: int) -> nn.Sequential:
    """Three stride-2 4x4 convolutions with LeakyReLU, then one channel."""
    layers: list[nn.Module] = []
    for out in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, out, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, kernel_size=3, padding=1))

"""feature maps or images -> scores by place: real, or fake."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from leuda_train.networks.instance_norm import InstanceNorm


class FeatureDiscriminator(nn.Module):
    """Feature adaptation (FA): one small convolutional discriminator a decoder level.

    Args:
        channels: Of each level that it compares.
        levels: Which decoder feature maps these are: -1 is the last, at full resolution.
        width: Channels after the first convolution, doubled at each of the next.
    """

    def __init__(self, channels: Sequence[int], levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.discriminators = nn.ModuleList(_level_discriminator(c, width) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """All decoder feature maps (B, C_l, H_l, W_l) -> a score map (B, 1, h_l, w_l) a level."""
        pairs = zip(self.discriminators, self.levels, strict=True)
        return [discriminator(features[level]) for discriminator, level in pairs]


def _level_discriminator(channels: int, width: int) -> nn.Sequential:
    """Three stride-2 4x4 convolutions with LeakyReLU, then one channel."""
    layers: list[nn.Module] = []
    for out in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, out, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, kernel_size=3, padding=1))


def patch_discriminator(width: int, layers: int) -> nn.Sequential:
    """(B, 1, H, W) -> scores of overlapping patches; three layers see 70 x 70 pixels each."""
    net: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for layer in range(1, layers + 1):
        below, above = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
        stride = 2 if layer < layers else 1
        net += [
            nn.Conv2d(below, above, 4, stride=stride, padding=1),
            InstanceNorm(),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*net, nn.Conv2d(width * min(2**layers, 8), 1, 4, padding=1))

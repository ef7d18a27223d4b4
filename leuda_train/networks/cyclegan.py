"""images of one domain -> the same in the other's appearance.

The generators of CycleGAN (Zhu et al., ICCV 2017), ResNets. Their last layer is linear: normalised
slices have no fixed range. Its patch discriminator stands in discriminators.py.
"""

from __future__ import annotations

from torch import Tensor, nn


class InstanceNorm(nn.InstanceNorm2d):
    """InstanceNorm2d with the right gradient for a batch of one.

    torch's own (2.13, on CPUs) is wrong there if the gradient that arrives is channels last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, normalised by image and channel."""
        y = super().forward(x)
        if self.training and y.requires_grad and len(x) == 1:
            y.register_hook(Tensor.contiguous)
        return y


class Generator(nn.Module):
    """(B, 1, H, W) -> (B, 1, H, W), of the other domain; H and W multiples of 4."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            *_conv_norm(1, width, kernel_size=7),
            *_conv_norm(width, 2 * width, kernel_size=3, stride=2, padding=1),
            *_conv_norm(2 * width, 4 * width, kernel_size=3, stride=2, padding=1),
            *(_Residual(4 * width) for _ in range(blocks)),
        ]
        for wide in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(wide, wide // 2, 3, stride=2, padding=1, output_padding=1),
                InstanceNorm(wide // 2),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        """Translate."""
        y: Tensor = self.layers(x)
        return y


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_conv_norm(channels, channels, kernel_size=3),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            InstanceNorm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return x + change


def _conv_norm(
    channels_in: int, channels: int, *, kernel_size: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, kernel_size, stride, padding),
        InstanceNorm(channels),
        nn.ReLU(inplace=True),
    ]

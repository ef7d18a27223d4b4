"""images of one domain -> the same in the other's appearance.

The generators of CycleGAN (Zhu et al., ICCV 2017), ResNets. Their last layer is linear: normalised
slices have no fixed range. Its patch discriminator stands in discriminators.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from leuda_train.networks.instance_norm import InstanceNorm
from leuda_train.networks.recompute import recomputed, recomputes


class Generator(nn.Module):
    """(B, 1, H, W) -> (B, 1, H, W), of the other domain; H and W multiples of 4.

    recomputed  in training, 1: no block keeps its activations; 0: all do
    """

    recomputed: int = 0

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
                InstanceNorm(),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        """Translate."""
        y: Tensor
        if recomputes(self, self.recomputed > 0):
            y = x
            for block in self._blocks():
                y = recomputed(block, block, y)
        else:
            y = self.layers(x)
        return y

    def _blocks(self) -> Iterator[nn.Sequential]:
        """The layers up to each ReLU, each residual block, and the last ones."""
        block: list[nn.Module] = []
        for layer in self.layers:
            block.append(layer)
            if isinstance(layer, nn.ReLU | _Residual):
                yield nn.Sequential(*block)
                block = []
        yield nn.Sequential(*block)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_conv_norm(channels, channels, kernel_size=3),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            InstanceNorm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return x + change


def _conv_norm(
    channels_in: int, channels: int, *, kernel_size: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, kernel_size, stride, padding),
        InstanceNorm(),
        nn.ReLU(inplace=True),
    ]

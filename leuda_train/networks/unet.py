"""images -> (logits, decoder features).

The U-Net of the paper: two 3x3 convolutions with batch norm and LeakyReLU a level, dropout between
them in the encoder, 2x2 max pooling down, 2x2 transposed convolution up, 3x3 output convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from leuda_train.networks.recompute import recomputed, recomputes


class UNet(nn.Module):
    """(B, 1, H, W) -> logits (B, K, H, W) and the decoder's feature maps, coarsest first.

    widths   channels by level, finest first; H and W must be multiples of 2^(levels - 1)
    dropout  by encoder level

    recomputed  in training, how many levels keep no activations, the finest first: each level is as
                much work as the next coarser one and has twice its activations
    """

    recomputed: int = 0

    def __init__(self, classes: int, widths: Sequence[int], dropout: Sequence[float]) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            _level(below, width, drop)
            for below, width, drop in zip((1, *widths[:-1]), widths, dropout, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        coarse_to_fine = list(reversed(widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, kernel_size=2, stride=2)
            for coarse, fine in itertools.pairwise(coarse_to_fine)
        )
        self.decoder = nn.ModuleList(_level(2 * fine, fine, 0.0) for fine in coarse_to_fine[1:])
        self.output = nn.Conv2d(widths[0], classes, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits at the input's size; features[-1] has full resolution, features[-2] half, ..."""
        skips = []
        for depth, level in enumerate(self.encoder):
            x = self._run(depth, partial(self._down, depth), level, x)
            skips.append(x)
        features = []
        for number, level in enumerate(self.decoder):
            depth = len(self.decoder) - 1 - number
            x = self._run(depth, partial(self._up, number), level, skips[depth], x)
            features.append(x)
        return self.output(x), features

    def _down(self, depth: int, x: Tensor) -> Tensor:
        y: Tensor = self.encoder[depth](x if depth == 0 else self.pool(x))
        return y

    def _up(self, number: int, skip: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.decoder[number](torch.cat([skip, self.up[number](x)], dim=1))
        return y

    def _run(
        self, depth: int, block: Callable[..., Tensor], norms: nn.Module, *inputs: Tensor
    ) -> Tensor:
        if recomputes(self, depth < self.recomputed):
            return recomputed(block, norms, *inputs)
        return block(*inputs)


def _level(channels_in: int, channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(inplace=True),
    )

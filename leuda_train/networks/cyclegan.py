"""source and target slices -> generators that turn one into the other, and what trains them.

CycleGAN (Zhu et al., ICCV 2017): ResNet generators, patch discriminators, least-squares GAN, a
pool of earlier fakes. The generators' last layer is linear: normalised slices have no fixed range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor, nn

from leuda_train.loop.ranks import ALONE, Ranks
from leuda_train.objective.losses import discern, fool


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
        return self.layers(x)


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
        return x + self.layers(x)


def _conv_norm(channels_in: int, channels: int, **conv: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, **conv),
        InstanceNorm(channels),
        nn.ReLU(inplace=True),
    ]


def patch_discriminator(width: int, layers: int) -> nn.Sequential:
    """(B, 1, H, W) -> scores of overlapping patches; three layers see 70 x 70 pixels each."""
    net: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for layer in range(1, layers + 1):
        below, above = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
        stride = 2 if layer < layers else 1
        net += [
            nn.Conv2d(below, above, 4, stride=stride, padding=1),
            InstanceNorm(above),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*net, nn.Conv2d(width * min(2**layers, 8), 1, 4, padding=1))


class ImagePool:
    """The last `size` fakes: a discriminator is shown a fresh one or, half the time, an old one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, fakes: Tensor, generator: torch.Generator) -> Tensor:
        """Put fresh fakes (B, 1, H, W) in, take as many out."""
        if self.size == 0:
            return fakes
        shown = []
        for fake in fakes.detach():
            if len(self.images) < self.size:
                self.images.append(fake.clone())  # a view would keep its whole batch
                shown.append(fake)
                continue
            swap, place = torch.rand(2, generator=generator).tolist()
            if swap < 0.5:
                shown.append(fake)
                continue
            index = int(place * self.size)
            shown.append(self.images[index])
            self.images[index] = fake.clone()
        return torch.stack(shown).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class CycleGAN:
    """Two generators, two discriminators, two pools."""

    to_target: nn.Module
    to_source: nn.Module
    target_critic: nn.Module
    source_critic: nn.Module
    target_pool: ImagePool
    source_pool: ImagePool


def generator_losses(
    nets: CycleGAN, source: Tensor, target: Tensor, lambda_cycle: float, lambda_identity: float
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """The generators' objective on source and target (B, 1, H, W): total, its terms, the fakes.

    L = L_gan + λ_cycle (L_cycle + λ_identity L_identity), both directions, each generator called
    once for its fakes and its identity images together.
    """
    source_as_target, target_same = nets.to_target(torch.cat([source, target])).chunk(2)
    target_as_source, source_same = nets.to_source(torch.cat([target, source])).chunk(2)
    source_cycled = nets.to_source(source_as_target)
    target_cycled = nets.to_target(target_as_source)
    terms = {
        "gan": fool(nets.target_critic(source_as_target))
        + fool(nets.source_critic(target_as_source)),
        "cycle": F.l1_loss(source_cycled.float(), source)
        + F.l1_loss(target_cycled.float(), target),
        "identity": F.l1_loss(source_same.float(), source) + F.l1_loss(target_same.float(), target),
    }
    total = terms["gan"] + lambda_cycle * (terms["cycle"] + lambda_identity * terms["identity"])
    return total, terms, (source_as_target.detach(), target_as_source.detach())


def critic_loss(
    nets: CycleGAN,
    source: Tensor,
    target: Tensor,
    fakes: tuple[Tensor, Tensor],
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> Tensor:
    """The discriminators' objective: real slices against pooled fakes, both domains.

    Every process keeps the pools of all: the joint fakes go in, its share comes out.
    """
    as_target, as_source = (
        ranks.share(pool.exchange(ranks.joint(fake), generator))
        for pool, fake in zip((nets.target_pool, nets.source_pool), fakes, strict=True)
    )
    return discern(nets.target_critic(target), nets.target_critic(as_target)) + discern(
        nets.source_critic(source), nets.source_critic(as_source)
    )

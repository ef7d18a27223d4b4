"""two generators, two discriminators, a batch -> CycleGAN's losses and its pools of earlier fakes.

CycleGAN (Zhu et al., ICCV 2017): least-squares GAN, cycle and identity losses, and discriminators
that are also shown earlier fakes. `translate.py` trains with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor, nn

from leuda_train.loop.ranks import ALONE, Ranks
from leuda_train.objective.losses import adversarial_loss, discriminator_loss


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
    target_discriminator: nn.Module
    source_discriminator: nn.Module
    target_pool: ImagePool
    source_pool: ImagePool


def generator_losses(
    nets: CycleGAN, source: Tensor, target: Tensor, lambda_cycle: float, lambda_identity: float
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """The generators' objective on source and target (B, 1, H, W): total, its terms, the fakes.

    L = L_gan + λ_cycle (L_cycle + λ_identity L_identity), both directions, each generator called
    once for its fakes and its identity images together. Where λ_identity is 0, a third of the
    generators' work is left out.
    """
    if lambda_identity:
        source_as_target, target_same = nets.to_target(torch.cat([source, target])).chunk(2)
        target_as_source, source_same = nets.to_source(torch.cat([target, source])).chunk(2)
        identity = F.l1_loss(source_same.float(), source) + F.l1_loss(target_same.float(), target)
    else:
        source_as_target, target_as_source = nets.to_target(source), nets.to_source(target)
        identity = source.new_zeros(())
    source_cycled = nets.to_source(source_as_target)
    target_cycled = nets.to_target(target_as_source)
    terms = {
        "gan": adversarial_loss(nets.target_discriminator(source_as_target))
        + adversarial_loss(nets.source_discriminator(target_as_source)),
        "cycle": F.l1_loss(source_cycled.float(), source)
        + F.l1_loss(target_cycled.float(), target),
        "identity": identity,
    }
    total = terms["gan"] + lambda_cycle * (terms["cycle"] + lambda_identity * terms["identity"])
    return total, terms, (source_as_target.detach(), target_as_source.detach())


def discriminator_losses(
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
    of_target = discriminator_loss(
        nets.target_discriminator(target), nets.target_discriminator(as_target)
    )
    of_source = discriminator_loss(
        nets.source_discriminator(source), nets.source_discriminator(as_source)
    )
    return of_target + of_source

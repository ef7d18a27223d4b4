"""CycleGAN's losses and pool of earlier fakes: who gets gradients, and what is shown when."""

from __future__ import annotations

import pytest
import torch

from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.discriminators import patch_discriminator
from leuda_train.objective.losses import adversarial_loss, discriminator_loss
from leuda_train.stages.cyclegan import (
    CycleGAN,
    ImagePool,
    discriminator_losses,
    generator_losses,
)


def make_nets(pool: int = 0) -> CycleGAN:
    torch.manual_seed(0)
    return CycleGAN(
        to_target=Generator(4, 1),
        to_source=Generator(4, 1),
        target_discriminator=patch_discriminator(4, 1),
        source_discriminator=patch_discriminator(4, 1),
        target_pool=ImagePool(pool),
        source_pool=ImagePool(pool),
    )


def fakes(start: int, count: int = 4) -> torch.Tensor:
    return torch.arange(start, start + count).float()[:, None, None, None].expand(-1, 1, 2, 2)


def test_the_pool_never_grows_beyond_its_size_and_shows_as_many_as_it_is_given():
    pool, generator = ImagePool(6), torch.Generator().manual_seed(0)
    for start in range(0, 40, 4):
        shown = pool.exchange(fakes(start), generator)
        assert shown.shape == (4, 1, 2, 2)
        assert len(pool.images) == min(6, start + 4)


def test_the_pool_shows_fresh_images_until_it_is_full_then_old_ones_half_the_time():
    pool, generator = ImagePool(50), torch.Generator().manual_seed(0)
    fresh = 0
    for start in range(0, 4000, 4):
        shown = pool.exchange(fakes(start), generator)
        if start < 48:
            assert torch.equal(shown, fakes(start))
        else:
            fresh += int((shown == fakes(start))[:, 0, 0, 0].sum())
        assert shown.max() < start + 4
    assert fresh / 3952 == pytest.approx(0.5, abs=0.03)


def test_an_old_image_leaves_the_pool_when_it_is_shown():
    pool, generator = ImagePool(3), torch.Generator().manual_seed(0)
    seen: list[float] = []
    for start in range(200):
        seen += pool.exchange(fakes(start, 1), generator)[:, 0, 0, 0].tolist()
    later = [value for value in seen if value >= 3]
    assert len(later) == len(set(later))  # only the first three are shown twice


def test_the_pool_follows_its_generator():
    def run(seed: int) -> list[float]:
        pool, generator = ImagePool(3), torch.Generator().manual_seed(seed)
        shown = [pool.exchange(fakes(start), generator) for start in range(0, 80, 4)]
        return torch.cat(shown)[:, 0, 0, 0].tolist()

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_pool_of_size_zero_keeps_nothing():
    pool = ImagePool(0)
    assert torch.equal(pool.exchange(fakes(0), torch.Generator()), fakes(0))
    assert pool.images == []


def test_a_pooled_image_does_not_hold_on_to_its_batch():
    pool = ImagePool(3)
    pool.exchange(torch.zeros(8, 1, 4, 4), torch.Generator().manual_seed(0))
    assert all(image.untyped_storage().nbytes() == 4 * 4 * 4 for image in pool.images)


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_the_generators_objective_is_the_visible_sum_of_its_terms(weight):
    nets = make_nets()
    source, target = torch.randn(2, 2, 1, 16, 16)
    total, terms, (to_target, to_source) = generator_losses(nets, source, target, 10.0, weight)
    with torch.no_grad():
        torch.testing.assert_close(to_target, nets.to_target(source))
        torch.testing.assert_close(to_source, nets.to_source(target))
        gan = adversarial_loss(nets.target_discriminator(to_target)) + adversarial_loss(
            nets.source_discriminator(to_source)
        )
        cycle = (nets.to_source(to_target) - source).abs().mean()
        cycle = cycle + (nets.to_target(to_source) - target).abs().mean()
        identity = (nets.to_target(target) - target).abs().mean()
        identity = identity + (nets.to_source(source) - source).abs().mean()
    torch.testing.assert_close(terms["gan"].detach(), gan)
    torch.testing.assert_close(terms["cycle"].detach(), cycle)
    torch.testing.assert_close(terms["identity"].detach(), identity if weight else 0 * identity)
    torch.testing.assert_close(total.detach(), gan + 10.0 * (cycle + weight * identity))


def test_the_discriminators_loss_sends_no_gradient_to_the_generators():
    nets = make_nets()
    source, target = torch.randn(2, 2, 1, 16, 16)
    _, _, made = generator_losses(nets, source, target, 10.0, 0.5)
    loss = discriminator_losses(nets, source, target, made, torch.Generator())
    expected = discriminator_loss(
        nets.target_discriminator(target), nets.target_discriminator(made[0])
    )
    expected = expected + discriminator_loss(
        nets.source_discriminator(source), nets.source_discriminator(made[1])
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for net in (nets.to_target, nets.to_source):
        assert all(p.grad is None for p in net.parameters())

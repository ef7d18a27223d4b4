"""Stage 1: shapes, the pool of earlier fakes, who gets gradients, and the six sets it writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from leuda_train.data.slices import Slices
from leuda_train.loop.loop import Watch
from leuda_train.networks.cyclegan import (
    CycleGAN,
    Generator,
    ImagePool,
    critic_loss,
    generator_losses,
    patch_discriminator,
)
from leuda_train.objective.losses import discern, fool
from leuda_train.stages.translate import _Trainer, learning_rate, load_translation


def make_nets(pool: int = 0) -> CycleGAN:
    torch.manual_seed(0)
    return CycleGAN(
        to_target=Generator(4, 1),
        to_source=Generator(4, 1),
        target_critic=patch_discriminator(4, 1),
        source_critic=patch_discriminator(4, 1),
        target_pool=ImagePool(pool),
        source_pool=ImagePool(pool),
    )


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (1, 1, 20, 32)])
def test_a_generator_keeps_the_images_shape(shape):
    assert Generator(4, 2)(torch.randn(shape)).shape == shape


def test_a_generators_output_has_no_fixed_range():
    net = Generator(4, 1)
    with torch.no_grad():
        net.layers[-1].bias.fill_(7.0)
    assert net(torch.zeros(1, 1, 16, 16)).mean() > 2.0


def test_three_layers_of_the_patch_discriminator_see_70_pixels():
    net = patch_discriminator(2, 3)
    convolutions = [m for m in net if isinstance(m, torch.nn.Conv2d)]
    sees = 1
    for conv in reversed(convolutions):
        sees = (sees - 1) * conv.stride[0] + conv.kernel_size[0]
    assert sees == 70
    assert net(torch.randn(1, 1, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_of_channels_last_networks_are_right_at_every_batch_size(batch):
    torch.manual_seed(0)
    images = torch.randn(batch, 1, 16, 16)
    for net in (Generator(4, 1), patch_discriminator(4, 1)):
        exact = copy.deepcopy(net).double()
        exact(images.double()).square().mean().backward()
        tiny.CPU.place(net)(tiny.CPU.put(images)).square().mean().backward()
        for weight, expected in zip(net.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, expected.grad.float(), atol=1e-5, rtol=1e-4)


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


def test_the_generators_objective_is_the_visible_sum_of_its_terms():
    nets = make_nets()
    source, target = torch.randn(2, 2, 1, 16, 16)
    total, terms, (to_target, to_source) = generator_losses(nets, source, target, 10.0, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(to_target, nets.to_target(source))
        torch.testing.assert_close(to_source, nets.to_source(target))
        gan = fool(nets.target_critic(to_target)) + fool(nets.source_critic(to_source))
        cycle = (nets.to_source(to_target) - source).abs().mean()
        cycle = cycle + (nets.to_target(to_source) - target).abs().mean()
        identity = (nets.to_target(target) - target).abs().mean()
        identity = identity + (nets.to_source(source) - source).abs().mean()
    torch.testing.assert_close(terms["gan"].detach(), gan)
    torch.testing.assert_close(terms["cycle"].detach(), cycle)
    torch.testing.assert_close(terms["identity"].detach(), identity)
    torch.testing.assert_close(total.detach(), gan + 10.0 * (cycle + 0.5 * identity))


def test_the_critics_loss_sends_no_gradient_to_the_generators():
    nets = make_nets()
    source, target = torch.randn(2, 2, 1, 16, 16)
    _, _, made = generator_losses(nets, source, target, 10.0, 0.5)
    loss = critic_loss(nets, source, target, made, torch.Generator())
    expected = discern(nets.target_critic(target), nets.target_critic(made[0]))
    expected = expected + discern(nets.source_critic(source), nets.source_critic(made[1]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for net in (nets.to_target, nets.to_source):
        assert all(p.grad is None for p in net.parameters())


def test_each_phase_trains_its_own_networks_and_no_other():
    trainer = _Trainer(tiny.make_slices(), tiny.config().translation, tiny.CPU, seed=0)
    nets = trainer.nets
    critics = torch.nn.ModuleList([nets.target_critic, nets.source_critic])
    generators = torch.nn.ModuleList([nets.to_target, nets.to_source])

    def values(module: torch.nn.Module) -> list[torch.Tensor]:
        return [p.detach().clone() for p in module.parameters()]

    before, middle = (values(critics), values(generators)), []

    def look(*_: object) -> None:
        assert all(p.grad is None for p in critics.parameters())
        middle.extend((values(critics), values(generators)))

    trainer.generators.register_step_post_hook(look)
    trainer.step(0)
    equal = lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert equal(before[0], middle[0])
    assert not equal(before[1], middle[1])
    assert not equal(middle[0], values(critics))
    assert equal(middle[1], values(generators))


def test_learning_rate_is_constant_for_half_the_steps_then_falls_to_zero():
    found = [learning_rate(step, 100, 2e-4) for step in (0, 50, 75, 99)]
    assert found == pytest.approx([2e-4, 2e-4, 1e-4, 4e-6])


def load(cache: Path, slices: Slices, seed: int = 0):
    return load_translation(
        slices,
        tiny.config(translation={"steps": 3}).translation,
        cache,
        tiny.CPU,
        seed=seed,
        checkpoint_seconds=60.0,
        watch=Watch(progress=tiny.quiet),
    )


def test_the_six_sets_are_what_the_kept_generators_make_of_the_slices(tmp_path):
    slices = tiny.make_slices(17)  # more than one chunk
    made = load(tmp_path, slices)
    assert list(made.images) == [
        "source",
        "target",
        "source_as_target",
        "source_cycled",
        "target_as_source",
        "target_cycled",
    ]
    assert all(image.shape == (17, 16, 16) for image in made.images.values())
    with torch.no_grad():
        expected = made.to_source(torch.from_numpy(slices.target)[:, None])[:, 0].numpy()
        cycled = torch.from_numpy(made.images["source_as_target"].copy())[:, None]
        cycled = made.to_source(cycled)[:, 0].numpy()
    np.testing.assert_allclose(made.images["target_as_source"], expected, atol=1e-5)
    np.testing.assert_allclose(made.images["source_cycled"], cycled, atol=1e-5)
    assert [row["step"] for row in made.history] == [3]


def test_a_translation_is_made_once_and_reused(tmp_path):
    load(tmp_path, tiny.make_slices())
    (folder,) = tmp_path.glob("translation-*")
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = load(tmp_path, tiny.make_slices())
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert again.history == json.loads((folder / "history.json").read_text())
    assert tiny.made(tmp_path) == [folder]
    load(tmp_path, tiny.make_slices(), seed=1)
    assert len(list(tmp_path.glob("translation-*"))) == 2

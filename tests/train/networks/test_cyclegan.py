"""CycleGAN's networks: shapes, what a patch sees, and gradients at every batch size."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny

from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.discriminators import patch_discriminator


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

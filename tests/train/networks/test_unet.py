"""The U-Net's shapes, features, size and gradients; the feature discriminators on top of it."""

from __future__ import annotations

import itertools

import pytest
import torch

from leuda_train.config.load import load_config
from leuda_train.networks.discriminators import FeatureDiscriminator
from leuda_train.networks.unet import UNet


def tiny_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(5, (4, 8, 16), (0.0, 0.0, 0.0))


def test_logits_have_the_inputs_size_and_features_go_from_coarse_to_fine():
    logits, features = tiny_unet()(torch.randn(2, 1, 16, 24))
    assert logits.shape == (2, 5, 16, 24)
    assert [tuple(f.shape) for f in features] == [(2, 8, 8, 12), (2, 4, 16, 24)]


def test_gradient_reaches_every_weight():
    net = tiny_unet()
    logits, _ = net(torch.randn(2, 1, 16, 16))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    # a bias in front of batch norm cancels out, so only kernels must differ from 0
    still = [n for n, p in net.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0]
    assert still == []


def test_gradient_of_the_features_reaches_the_first_convolution():
    net = tiny_unet()
    _, features = net(torch.randn(2, 1, 16, 16))
    features[0].square().sum().backward()
    assert net.encoder[0][0].weight.grad.abs().sum() > 0
    assert net.output.weight.grad is None


def test_dropout_acts_in_the_encoder_alone():
    net = UNet(2, (4, 8, 16), (0.1, 0.2, 0.3))
    rates = [m.p for level in net.encoder for m in level if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.1, 0.2, 0.3]
    assert {m.p for level in net.decoder for m in level if isinstance(m, torch.nn.Dropout)} == {0.0}


def parameters_of_a_unet(classes: int, widths: list[int]) -> int:
    """Counted from the description: 3x3 pairs with batch norm, 2x2 up, 3x3 out."""

    def level(below: int, width: int) -> int:
        return (9 * below + 1) * width + (9 * width + 1) * width + 2 * (2 * width)

    down = sum(level(b, w) for b, w in zip([1, *widths[:-1]], widths, strict=True))
    up = sum((4 * c + 1) * f + level(2 * f, f) for f, c in itertools.pairwise(widths))
    return down + up + (9 * widths[0] + 1) * classes


def test_the_papers_unet_has_the_number_of_parameters_its_description_gives():
    config = load_config("paper-cardiac", "le-uda").unet
    assert config.widths == (64, 128, 256, 512, 1024)
    with torch.device("meta"):
        net = UNet(5, config.widths, config.dropout)
    found = sum(p.numel() for p in net.parameters())
    assert found == parameters_of_a_unet(5, list(config.widths)) == 31_045_189


def test_feature_discriminator_scores_each_level_it_is_given():
    _, features = tiny_unet()(torch.randn(2, 1, 16, 16))
    scores = FeatureDiscriminator([8, 4], [-2, -1], width=4)(features)
    assert [tuple(s.shape) for s in scores] == [(2, 1, 1, 1), (2, 1, 2, 2)]


def test_feature_discriminator_looks_at_the_levels_it_names():
    _, features = tiny_unet()(torch.randn(2, 1, 16, 16))
    with pytest.raises(RuntimeError, match="channels"):
        FeatureDiscriminator([4, 8], [-2, -1], width=4)(features)

"""Re-estimated batch norms have the statistics of what is fed, and weights do not move."""

from __future__ import annotations

import torch
from torch import nn

from leuda_train.networks.batchnorm import reestimate


def test_statistics_are_those_of_the_feed():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    weights = {name: value.clone() for name, value in network.named_parameters()}
    feed = [torch.randn(4, 1, 8, 8) * 5 + 20 for _ in range(6)]
    reestimate(network, network, feed)
    read = torch.cat([network[0](images) for images in feed])
    torch.testing.assert_close(network[1].running_mean, read.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network[1].running_var, read.var((0, 2, 3)), rtol=0.05, atol=0.05)
    assert network[1].momentum == 0.1
    assert not any(module.training for module in network.modules())
    for name, value in network.named_parameters():
        assert torch.equal(value, weights[name])
    found = network(torch.cat(feed)).mean((0, 2, 3))
    torch.testing.assert_close(found, network[1].bias, atol=1e-2, rtol=0)

"""Instance norm: the values and gradients of torch, whatever the batch, layout and precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from leuda_train.networks.instance_norm import InstanceNorm


def both(x: torch.Tensor, gradient: torch.Tensor, layout: torch.memory_format) -> tuple:
    """What our norm gives in training, and what torch's gives of contiguous images."""
    found = []
    for norm, lies in ((InstanceNorm(), layout), (F.instance_norm, torch.contiguous_format)):
        given = x.clone().to(memory_format=lies).requires_grad_()
        y = norm(given)
        y.backward(gradient.to(y.dtype).to(memory_format=lies))
        found.append((y.detach(), given.grad))
    return tuple(found)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_torchs(batch, layout):
    torch.manual_seed(batch)
    x, gradient = 5.0 + torch.randn(2, batch, 6, 9, 7)
    ours, torchs = both(x, gradient, layout)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_statistics_of_bf16_images_are_taken_in_float32():
    torch.manual_seed(0)
    x, gradient = (100.0 + torch.randn(2, 2, 4, 32, 32)).bfloat16()
    (y, slope), _ = both(x, gradient, torch.channels_last)
    expected, _ = both(x.float(), gradient.float(), torch.channels_last)
    assert y.dtype == slope.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(slope.float(), expected[1], rtol=0.02, atol=0.5)


def test_evaluation_is_torchs_own():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(InstanceNorm().eval()(x), F.instance_norm(x))

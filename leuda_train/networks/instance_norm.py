"""instance norm of images that lie channels last, without a copy there and back.

torch's own (2.13, on CPUs) copies them to channels first and back, forward and backward: an eighth
of a CycleGAN's step in fp32. For a batch of one its gradient is wrong if it arrives channels last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor, nn

EPSILON = 1e-5


class InstanceNorm(nn.Module):
    """(B, C, H, W) -> the same, each channel of each image with mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. In evaluation mode, also for an export, and on GPUs by torch's own."""
        if not self.training or x.device.type not in ("cpu", "meta"):
            return F.instance_norm(x, eps=EPSILON)
        y: Tensor = _ChannelsLast.apply(x)  # type: ignore[no-untyped-call]
        return y


def _by_pixel(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C); of images that lie channels last, the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pixels = _by_pixel(x).float()
        mean = pixels.mean(dim=1, keepdim=True)
        change = pixels - mean
        scale = torch.rsqrt((change * change).mean(dim=1, keepdim=True) + EPSILON)
        ctx.save_for_backward(x, mean, scale)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _by_pixel(y).copy_(change.mul_(scale))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, mean, scale = ctx.saved_tensors
        y = (_by_pixel(x).float() - mean).mul_(scale)
        g = _by_pixel(gradient).float()
        along = (g * y).mean(dim=1, keepdim=True)
        change = (g - g.mean(dim=1, keepdim=True)).sub_(y.mul_(along)).mul_(scale)
        found = torch.empty_like(gradient, memory_format=torch.channels_last)
        _by_pixel(found).copy_(change)
        return found

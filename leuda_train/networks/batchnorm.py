"""batch norm in training -> whose pixels are normalised together: all of a pass, or each stream's.

A network reads all its streams in one pass. Under the policy "batch" its batch norms take their
statistics over everything in that pass; under "stream" over one stream at a time, as if each had
been read in a pass of its own, one after another. Under both, streams are those of the joint batch
of all processes. (torch's SyncBatchNorm does not run on CPUs, and knows no streams.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the field's habit)
from torch import Tensor, nn

from leuda_train.loop.ranks import Ranks


class JointBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the joint batch of all processes, by parts of the pass if told of any.

    sizes  how many images of a pass belong together; None: all
    """

    ranks: Ranks
    sizes: Sequence[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, normalised."""
        if not self.training:
            return super().forward(x)
        if self.sizes is None:
            return self._normalised(x)
        return torch.cat([self._normalised(part) for part in x.split(list(self.sizes))])

    def _normalised(self, x: Tensor) -> Tensor:
        if self.ranks.size == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        normalised: Tensor
        normalised, mean, var = _Normalise.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.eps, self.ranks
        )
        with torch.no_grad():
            count = x.numel() // x.shape[1] * self.ranks.size
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        return normalised


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var over the joint batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_var, own_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        means, variances = ranks.gather(torch.stack([own_mean, own_var])).unbind(1)
        mean = means.mean(dim=0)
        var = (variances + (means - mean).square()).mean(dim=0)  # shares are of one size
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        dy = gradients[0].float()
        scale = torch.rsqrt(var + ctx.eps)
        x_hat = (x.float() - _column(mean)) * _column(scale)
        own = torch.stack([dy.sum((0, 2, 3)), (dy * x_hat).sum((0, 2, 3))])
        count = x.numel() // x.shape[1] * ctx.ranks.size
        mean_dy, mean_dy_x_hat = (ctx.ranks.sum(own) / count).unbind(0)
        dx = dy - _column(mean_dy) - x_hat * _column(mean_dy_x_hat)
        dx = dx * _column(scale * weight.float())
        return dx.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _column(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), to stand beside (B, C, H, W)."""
    return values[:, None, None]


def with_joint_batchnorm(net: nn.Module, ranks: Ranks) -> nn.Module:
    """Exchange every BatchNorm2d of a network for one that knows of processes and streams."""
    for name, child in net.named_children():
        if isinstance(child, nn.BatchNorm2d):
            joint = JointBatchNorm2d(child.num_features, child.eps, child.momentum)
            joint.load_state_dict(child.state_dict())
            joint.ranks = ranks
            setattr(net, name, joint)
        else:
            with_joint_batchnorm(child, ranks)
    return net


@torch.no_grad()
def reestimate(
    network: nn.Module, read: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> None:
    """Give a network the batch-norm statistics of the images that it will be fed; no label is used.

    AdaBN (Li et al., Pattern Recognition 2018). The network is otherwise in evaluation mode and is
    left so; its weights stay as they are.

    Args:
        network: Its batch norms are set, to the mean over the batches of their statistics.
        read: Passes images through the network, e.g. a product with a generator before it.
        batches: Images (B, 1, H, W), on the device.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what is read
        norm.train()
    for images in batches:
        read(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@contextmanager
def normalised_by(net: nn.Module, sizes: Sequence[int] | None) -> Iterator[None]:
    """Within, a pass of net consists of parts of these sizes, each with statistics of its own."""
    norms = [module for module in net.modules() if isinstance(module, JointBatchNorm2d)]
    assert norms or sizes is None, "not a network of `with_joint_batchnorm`"
    for norm in norms:
        norm.sizes = sizes
    try:
        yield
    finally:
        for norm in norms:
            norm.sizes = None

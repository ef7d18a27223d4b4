"""a block of a network -> its output; what its backward pass needs is computed again, not kept.

This is how a step is made to fit a smaller memory. Gradient accumulation, the joint batch in parts,
would be another step: batch norm takes its statistics over all images that a network reads, soft
Dice its sums over all of them, and pseudo-labels their medians, so the parts would see other
statistics, losses and labels. A block that is computed again sees the whole joint batch again, with
the same dropout masks, and gives the same values: gradients are equal but for rounding. It costs
a second forward pass of the blocks, about a third of a step if all are.

Running statistics are moved by the first pass alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leuda_train.networks.batchnorm import JointBatchNorm2d


def recomputed(block: Callable[..., Tensor], norms: nn.Module, *inputs: Tensor) -> Tensor:
    """block(*inputs), of which the inputs alone are kept for the backward pass.

    Args:
        block: Called now, and again in each backward pass, with the same random numbers and
            precision; its weights must not change in between.
        norms: Where the batch norms are that the block uses.
        inputs: Kept; not changed in place by anyone.
    """

    def contexts() -> tuple[AbstractContextManager[None], _Again]:
        return nullcontext(), _Again(norms)

    output: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return output


def recomputes(net: nn.Module, wanted: bool) -> bool:
    """Whether a pass now is one to be computed again: in training, with a backward pass to come."""
    return wanted and net.training and torch.is_grad_enabled()


class _Again:
    """Within, batch norms normalise by the parts of the first pass and remember nothing of it.

    It is entered once for each backward pass through the same graph.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [norm for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)]
        self.sizes = [
            norm.sizes if isinstance(norm, JointBatchNorm2d) else None for norm in self.norms
        ]
        self.remembered: list[dict[str, Tensor]] = []

    def __enter__(self) -> None:
        self.remembered = [dict(norm.named_buffers(recurse=False)) for norm in self.norms]
        for norm, sizes, buffers in zip(self.norms, self.sizes, self.remembered, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
            if isinstance(norm, JointBatchNorm2d):
                norm.sizes = sizes

    def __exit__(self, *_: object) -> None:
        for norm, buffers in zip(self.norms, self.remembered, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
            if isinstance(norm, JointBatchNorm2d):
                norm.sizes = None

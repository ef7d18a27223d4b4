"""terms of L -> how much each moves the student: its gradient against that of L_seg.

A term whose gradient is a hundredth of L_seg's changes nothing, whatever its value. Weights and
ramps are judged by these shares, which need no label of the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from leuda_train.loop.ranks import Ranks


def gradient_shares(
    reference: Tensor,
    terms: Mapping[str, tuple[float, Tensor]],
    weights: Iterable[nn.Parameter],
    scaler: torch.amp.GradScaler,
    ranks: Ranks,
) -> dict[str, Tensor]:
    """A backward pass a term, through a graph that stays; nothing is read back from the device.

    Args:
        reference: L_seg, which the terms are compared with.
        terms: Name -> (λ of this step, the term without it), each a scalar of the same graph.
        weights: What the gradients are taken over.
        scaler: Keeps gradients in fp16 from underflow; it cancels out.
        ranks: Gradients are those of the joint batch.

    Returns:
        `share/NAME`, λ |g| / |g_seg|, and `cosine/NAME`, that of the angle between g and g_seg;
        0 if either gradient is 0. Scalars on the device.
    """
    every = list(weights)
    g_seg = _gradient(reference, every, scaler, ranks)
    found: dict[str, Tensor] = {}
    for name, (λ, term) in terms.items():
        g = _gradient(term, every, scaler, ranks)
        norms = g.norm(), g_seg.norm()
        found[f"share/{name}"] = λ * _ratio(norms[0], norms[1])
        found[f"cosine/{name}"] = _ratio(torch.dot(g, g_seg), norms[0] * norms[1])
    return found


def _gradient(
    term: Tensor, weights: Sequence[nn.Parameter], scaler: torch.amp.GradScaler, ranks: Ranks
) -> Tensor:
    """All the weights' gradients, one after another, as one vector."""
    parts = torch.autograd.grad(
        scaler.scale(term), weights, retain_graph=True, materialize_grads=True
    )
    flat = torch.cat([part.float().reshape(-1) for part in parts])
    ranks.average_([flat])
    return flat


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, torch.zeros_like(below))

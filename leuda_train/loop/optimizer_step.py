"""a loss -> one update of what an optimiser holds, the same in every process."""

from __future__ import annotations

import torch
from torch import Tensor

from leuda_train.loop.profile import phase
from leuda_train.loop.ranks import Ranks


def optimizer_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, scaler: torch.amp.GradScaler, ranks: Ranks
) -> None:
    """Backward, the mean of the gradients over processes, and the optimiser's step."""
    optimizer.zero_grad(set_to_none=True)
    with phase("backward"):
        torch.autograd.backward(scaler.scale(loss))
    with phase("exchange"):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        ranks.average_([weight.grad for weight in weights if weight.grad is not None])
    with phase("optimizer"):
        scaler.step(optimizer)

"""several processes, one run: which of them this is, its share of a batch, what all have together.

Every process draws the same joint batch from the seed and the step's number and keeps its share, so
that the number of processes changes neither the order of the data nor what is drawn for an image.
The gradients of a step are those of the mean over processes of the processes' losses. A loss that
is a mean over images is therefore taken over one's own share; one that is not (soft Dice, a class's
median confidence) and the statistics of batch norm are taken over the joint batch, by `gather` and
`sum`, whose gradients cross processes, too.

Gradients are averaged here, in one message after each backward pass. DistributedDataParallel would
do it in several during the pass. It runs with these networks, too; but the losses and the joint
batch norm cross processes by messages of their own, which its buckets would have to keep clear of,
and networks of this size have little to hide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from leuda_deploy.errors import InputError

Rows = TypeVar("Rows", Tensor, NDArray[np.int64])
# Within a step all processes are equally far; one that waits so long has lost another.
STEP_PATIENCE = timedelta(minutes=30)
# Others wait for the first process while it writes, loads, trains a translation alone or evaluates;
# the launcher ends them if it fails.
PATIENCE = timedelta(days=30)
# How long the others keep an error to themselves, so that the first process can say it.
ECHO_SECONDS = 20.0


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`; with a size of 1 every method is the identity.

    waiting  the group in which the others wait for the first process
    """

    rank: int = 0
    size: int = 1
    waiting: dist.ProcessGroup | None = field(default=None, compare=False)

    def __deepcopy__(self, memo: object) -> Ranks:
        """Itself: a copied network is in the same process."""
        return self

    @property
    def first(self) -> bool:
        """Whether this process writes, logs and evaluates."""
        return self.rank == 0

    def check_share(self, images: int, key: str) -> None:
        """Raises InputError if a batch of so many images cannot be shared evenly."""
        if images % self.size:
            raise InputError(
                f"{key} = {images} cannot be shared by {self.size} processes: set it to a multiple "
                f"of {self.size}, or start fewer"
            )

    def share(self, joint: Rows, dim: int = 0) -> Rows:
        """This process's part of what was drawn for the joint batch, along dim."""
        if self.size == 1:
            return joint
        own = joint.shape[dim] // self.size
        assert own * self.size == joint.shape[dim], "an uneven share"
        place = (slice(None),) * dim + (slice(self.rank * own, (self.rank + 1) * own),)
        return joint[place]

    def gather(self, own: Tensor) -> Tensor:
        """(...) of each process -> (size, ...), the same on all; differentiable."""
        if self.size == 1:
            return own[None]
        gathered: Tensor = _Gather.apply(own, self)  # type: ignore[no-untyped-call]
        return gathered

    def sum(self, own: Tensor) -> Tensor:
        """The sum over processes, the same on all; differentiable."""
        return self.gather(own).sum(dim=0) if self.size > 1 else own

    def joint(self, own: Tensor) -> Tensor:
        """(B, ...) of each process -> the joint batch (size * B, ...); the inverse of `share`."""
        return self.gather(own).flatten(0, 1)

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its mean over processes, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
        )

    def broadcast(self, value: Any = None) -> Any:
        """What the first process passes; the others wait for it."""
        if self.size == 1:
            return value
        message = [value]
        dist.broadcast_object_list(message, src=0, group=self.waiting, device=torch.device("cpu"))
        return message[0]


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        own = own.contiguous()
        gathered = [torch.empty_like(own) for _ in range(ranks.size)]
        dist.all_gather(gathered, own)
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.ranks.rank], None


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, together; one alone where it started none.

    device  "auto", "cpu" or "cuda": whose tensors will be exchanged
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=STEP_PATIENCE)
    ranks = Ranks(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield ranks
    except Exception:
        if ranks.first:  # another that left before `one_voice` would fail the first one too soon
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the one, of those that torchrun started, that speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """Of the processes that torchrun started, let the first one say what went wrong.

    What fails there fails in the others, too, or cuts them off from it. They wait to be ended by
    the launcher; one that is still there after ECHO_SECONDS failed alone, and says so itself.
    """
    try:
        yield
    except Exception:
        if not is_first_process():
            time.sleep(ECHO_SECONDS)
        raise

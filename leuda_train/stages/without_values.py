"""tensors that have a shape and a type but no values -> which bytes are alive, and when."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leuda_train.loop.hardware import DTYPES, Hardware, Network

META = torch.device("meta")


class Pretended(Hardware):
    """Hardware on which nothing is computed."""

    def autocast(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        """None: torch has no autocast for meta tensors. See `place`."""
        return nullcontext()

    def place(self, module: Network) -> Network:
        """Cast what convolutions compute with, as autocast does."""
        module = super().place(module)
        if self.precision != "fp32":
            cast = _Cast(DTYPES[self.precision])
            for conv in module.modules():
                if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
                    conv.register_forward_pre_hook(cast.inputs)
                    for name in ("weight", "bias"):
                        register_parametrization(conv, name, cast, unsafe=True)
        return module

    def adam(
        self, weights: Iterable[Tensor], rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> torch.optim.Adam:
        """The fused one is for real devices."""
        return torch.optim.Adam(weights, lr=rate, betas=betas)

    @property
    def needs_scaler(self) -> bool:
        """A scaler reads values."""
        return False


class _Cast(nn.Module):
    """Tensors -> the same in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        """Of a weight."""
        return weight.to(self.dtype)

    def inputs(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Of what a module is fed."""
        return tuple(tensor.to(self.dtype) for tensor in inputs)


class LiveBytes(TorchDispatchMode):
    """Within, counts the bytes of the tensors that operations make, until they are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in (made,) if isinstance(made, Tensor) else tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        self.peak = self.now

"""a network, and the generator before it if it reads x^{t→s} -> the one module that is deployed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leuda_train.loop.hardware import Hardware


class DeployedNetwork(nn.Module):
    """What is fed at test time is part of the module, never left to the caller.

    (B, 1, h, w) normalised target windows -> logits (B, K, h, w). With a generator the network
    reads x^{t→s} = to_source(x^t), as the paper tests; without one it reads x^t itself.
    """

    def __init__(self, network: nn.Module, to_source: nn.Module | None) -> None:
        super().__init__()
        self.to_source = to_source
        self.network = network

    def forward(self, windows: Tensor) -> Tensor:
        """Logits."""
        if self.to_source is not None:
            windows = self.to_source(windows)
        logits: Tensor = self.network(windows)[0]
        return logits


class TorchEngine:
    """A module behind the runtime's engine signature, so that a run is tested as it is deployed.

    (B, 1, h, w) float32 -> (B, K, h, w) float32.
    """

    def __init__(self, product: nn.Module, hardware: Hardware) -> None:
        self.product, self.hardware = hardware.place(product).eval(), hardware

    @torch.no_grad()
    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of normalised windows."""
        with self.hardware.autocast():
            logits = self.product(self.hardware.put(torch.from_numpy(windows)))
        scores: NDArray[np.float32] = logits.float().cpu().numpy()
        return scores

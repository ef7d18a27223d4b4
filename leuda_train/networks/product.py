"""a run's networks -> the one module that is shipped: normalised target windows -> logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from leuda_deploy.errors import TrainingError
from leuda_deploy.scans.likeness import Domain
from leuda_deploy.scans.recipe import Recipe
from leuda_train.loop import checkpoint
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.unet import UNet

MODEL_FILE = "model.pt"


class Product(nn.Module):
    """What is fed at test time is part of the module, never left to the caller.

    (B, 1, h, w) normalised target windows -> logits (B, K, h, w). With a generator the network
    reads x^{t→s} = to_source(x^t), as the paper tests; without one it reads x^t itself.
    """

    def __init__(self, network: UNet, to_source: Generator | None) -> None:
        super().__init__()
        self.to_source = to_source
        self.network = network

    def forward(self, windows: Tensor) -> Tensor:
        """Logits."""
        if self.to_source is not None:
            windows = self.to_source(windows)
        logits, _ = self.network(windows)
        return logits


class ProductFacts(BaseModel):
    """What has to be known to build the module again and to write its model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    structures: tuple[str, ...]
    modality: str
    feed: Literal["target", "target_as_source"]
    network: str
    widths: tuple[int, ...]
    dropout: tuple[float, ...]
    generator: tuple[int, int]
    method: str
    cohort: str
    cohort_sha256: str
    config: dict[str, Any]
    seed: int
    steps: int
    hardware: str
    domain: Domain | None = None  # a run from before it was kept has none


def build_product(facts: ProductFacts) -> Product:
    """An untrained module of the right shape."""
    network = UNet(1 + len(facts.structures), facts.widths, facts.dropout)
    to_source = Generator(*facts.generator) if facts.feed == "target_as_source" else None
    return Product(network, to_source)


def save_product(
    run: Path, product: Product, facts: ProductFacts, samples: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write RUN/model.pt: weights, facts, and windows (N, h, w) by image family.

    The windows are what exports are compared on, and those of "target" what int8 is calibrated on.
    """
    state = {
        "facts": facts.model_dump_json(),
        "weights": {name: value.cpu() for name, value in product.state_dict().items()},
        "samples": {
            family: torch.from_numpy(np.array(images)) for family, images in samples.items()
        },
    }
    checkpoint.save(run / MODEL_FILE, state)


def load_product(run: Path) -> tuple[Product, ProductFacts, dict[str, NDArray[np.float32]]]:
    """The inverse of `save_product`; the module is in evaluation mode, float32, on the CPU."""
    if not (run / MODEL_FILE).is_file():
        raise TrainingError(f"{run} holds no finished run ({MODEL_FILE}); run `leuda train` first")
    state = checkpoint.load(run / MODEL_FILE)
    facts = ProductFacts.model_validate_json(state["facts"])
    product = build_product(facts)
    product.load_state_dict(state["weights"])
    samples = state["samples"]
    if isinstance(samples, Tensor):  # a run from before there were families
        samples = {"target": samples}
    return product.eval(), facts, {family: images.numpy() for family, images in samples.items()}


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
        return logits.float().cpu().numpy()

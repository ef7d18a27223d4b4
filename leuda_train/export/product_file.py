"""a run's deployed network, and what has to be known of it <-> RUN/model.pt and RUN/windows.pt.

model.pt holds weights and numbers and no image, so that it may go where scans may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from leuda_deploy.errors import TrainingError
from leuda_deploy.model.card import Anatomy, Code
from leuda_deploy.model.dice_curve import DiceCurve
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_deploy.scans.intensity.likeness import IntensityProfile
from leuda_deploy.scans.recipe import Recipe
from leuda_train.loop import checkpoint
from leuda_train.loop.run_folder import RunFolder
from leuda_train.networks.cyclegan import Generator
from leuda_train.networks.product import DeployedNetwork
from leuda_train.networks.unet import UNet


class ProductFacts(BaseModel):
    """What has to be known to build the module again and to write its model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    structures: tuple[str, ...]
    codes: dict[str, Code] = {}  # of structures; a run from before they were kept has none
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
    domain: IntensityProfile | None = None  # a run from before it was kept has none
    extents_mm: dict[str, float] | None = None  # the same; see prove_search.py
    anatomy: dict[str, Anatomy] = {}  # by structure; the same
    dice_curve: DiceCurve | None = None  # the same; nor has one that was adapted without source
    refine: Refine = AS_PREDICTED  # what is done to its probabilities before labels are taken
    class_shares: tuple[float, ...] | None = None  # (K,) of the source's labels; the same


def build_product(facts: ProductFacts) -> DeployedNetwork:
    """An untrained module of the right shape."""
    network = UNet(1 + len(facts.structures), facts.widths, facts.dropout)
    to_source = Generator(*facts.generator) if facts.feed == "target_as_source" else None
    return DeployedNetwork(network, to_source)


def save_product(
    run: Path,
    product: DeployedNetwork,
    facts: ProductFacts,
    samples: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write RUN/windows.pt, windows (N, h, w) by image family, then RUN/model.pt, all else.

    The windows are what exports are compared on, and those of "target" what int8 is calibrated on.
    """
    windows = {family: torch.from_numpy(np.array(images)) for family, images in samples.items()}
    weights = {name: value.cpu() for name, value in product.state_dict().items()}
    checkpoint.save(RunFolder(run).windows, windows)
    checkpoint.save(RunFolder(run).model, {"facts": facts.model_dump_json(), "weights": weights})


def load_product(run: Path) -> tuple[DeployedNetwork, ProductFacts, dict[str, NDArray[np.float32]]]:
    """The inverse of `save_product`; the module is in evaluation mode, float32, on the CPU."""
    folder = RunFolder(run)
    if not folder.model.is_file():
        raise TrainingError(
            f"{run} holds no finished run ({folder.model.name}); run `leuda train` first"
        )
    state = checkpoint.load(folder.model)
    product, facts = _product(state)
    # a run from before windows had a file of their own
    windows = state["samples"] if "samples" in state else checkpoint.load(folder.windows)
    if isinstance(windows, Tensor):  # and one from before there were families
        windows = {"target": windows}
    return product, facts, {family: images.numpy() for family, images in windows.items()}


def load_weights(path: Path) -> tuple[DeployedNetwork, ProductFacts]:
    """As `load_product`, from a model.pt wherever it stands, without windows."""
    return _product(checkpoint.load(path))


def _product(state: Mapping[str, Any]) -> tuple[DeployedNetwork, ProductFacts]:
    facts = ProductFacts.model_validate_json(state["facts"])
    product = build_product(facts)
    product.load_state_dict(state["weights"])
    return product.eval(), facts

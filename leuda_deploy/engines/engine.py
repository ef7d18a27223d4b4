"""the contract: windows (B, C, h, w) float32 -> scores (B, K, h, w) float32, background first.

C is 1, but for a card with channels. A 3D graph reads and gives (d, h, w) in place of (h, w).
Scores are logits, or probabilities where the card says that the graph ends in a softmax. Where the
card's structures are regions, each has a score and background has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ModelError
from leuda_deploy.model.card import ModelCard, Precision
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import Family

Float32 = NDArray[np.float32]
# normalised windows (B, 1, h, w) -> scores (B, K, h, w)
Scorer = Callable[[Float32], Float32]
EngineName = Literal["ort-cpu", "ort-cuda", "openvino", "tensorrt", "tensorrt-rtx"]
EngineChoice = Literal["auto"] | EngineName
PrecisionChoice = Literal["auto", "fp32", "bf16"]
# engine name -> the builder family of its passport, and the module that runs it
TENSORRT: dict[EngineName, Family] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
ON_THE_CPU: tuple[EngineName, ...] = ("ort-cpu", "openvino")
# that the windows given to an engine at once may take as scores
MAX_SCORE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine is opened.

    Attributes:
        precision: "fp32", "bf16" (OpenVINO), or "auto": the fastest that the engine has.
        threads: CPU threads; None: one for each core that this process may use.
        max_gpu_bytes: GPU memory that is never passed: ONNX Runtime's allocator is held to it, a
            TensorRT engine that takes more is refused.
        on_the_cpu: Where the engine is left to trials, only those for the CPU: processes side by
            side would get in each other's way on a GPU.
    """

    precision: PrecisionChoice = "auto"
    threads: int | None = None
    max_gpu_bytes: int | None = None
    on_the_cpu: bool = False


class Engine(Protocol):
    """A model that runs. It may be called from several threads; what it returns is the caller's.

    Attributes:
        path: Of the model file.
        card: Its card.
        sha256: Of the model file.
        precision: The coarsest that any of its layers computes in.
        streams: How many windows it works on side by side, each with cores of its own.
        threads: CPU threads that it computes on; None: it computes on a GPU.
    """

    path: Path
    card: ModelCard
    sha256: str
    precision: Precision
    streams: int
    threads: int | None

    @property
    def description(self) -> str:
        """One line for people: runtime, device, precision."""
        ...

    def __call__(self, windows: Float32) -> Float32:
        """Scores (B, K, h, w) float32 of normalised windows (B, 1, h, w) float32."""
        ...


def score_bytes(card: ModelCard) -> int:
    """What the scores of one window take."""
    return 4 * card.score_count * prod(card.window)


def check_shapes(shapes: list[list[Any]], model: ModelFile) -> None:
    """Refuse a graph that is not what its card says: one input, one output, K classes, any B.

    shapes  of inputs, then outputs; a side that the graph leaves open is anything but an int
    """
    card = model.card
    wanted = [[None, card.scan_count, *card.window], [None, card.score_count, *card.window]]
    fits = [len(shape) for shape in shapes] == [len(shape) for shape in wanted] and all(
        not isinstance(have, int) or want in (None, have)
        for shape, want_shape in zip(shapes, wanted, strict=True)
        for have, want in zip(shape, want_shape, strict=True)
    )
    if not fits:
        raise ModelError(f"the graph of {model.path} has shapes {shapes}, its card says {wanted}")
    batches = [shape[0] for shape in shapes]
    if any(isinstance(batch, int) for batch in batches):
        raise ModelError(
            f"the graph of {model.path} has a fixed batch ({batches[0]} in, {batches[1]} out); "
            "export it with an open one: axis 0 dynamic at both ends"
        )

"""engine -> what it was built from, by what, and for which GPU; whether it may run here."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict

from leuda_deploy.model.card import Text

Family = Literal["tensorrt", "tensorrt_rtx"]
# A profile with an open window goes up to this many times the recipe's window.
LARGEST_WINDOW = 2


class Passport(BaseModel):
    """What an engine is. It is checked before the engine is loaded.

    onnx_sha256    of the model file that it was built from
    family, version  the builder
    target         what was asked for: "this machine", or e.g. "rtx-ampere"
    capability     compute capability "8.6" that it was built for
    gpu            name of the GPU that it was built on; None: built ahead of time, without one
    layers         of the parsed, strongly typed network: layer name -> data type of its output
    layer_kinds    how many layers compute in each type
    inspected      of the built engine, from TensorRT's inspector: how many of its outputs have each
                   format and type; memory_mb: what running it takes. None until it is run
    batch          smallest, optimal and largest batch of its profile
    workspace_mb   limit given to the builder; engine_mb its size; build_seconds
    proven         whether it was run and agreed with ONNX Runtime; only such an engine is used
    sha256         of the engine file
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    onnx_sha256: Text
    family: Family
    version: Text
    target: Text
    capability: Text
    gpu: Text | None
    precision: Text
    layers: dict[Text, Text]
    layer_kinds: dict[Text, int]
    batch: tuple[int, int, int]
    window: tuple[int, ...]
    workspace_mb: int
    build_seconds: float
    engine_mb: float
    inspected: dict[Text, int] | None = None
    memory_mb: float | None = None
    proven: bool
    sha256: Text

    def key(self) -> str:
        """What engines and timing caches are kept under: everything that decides about the code."""
        return engine_key(
            self.onnx_sha256,
            self.family,
            self.version,
            self.capability,
            self.gpu,
            self.batch,
            self.workspace_mb,
        )


def engine_key(*parts: object) -> str:
    """SHA-256 of everything that decides about an engine's code."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()

"""engine file + passport -> (B, 1, h, w) float32 -> (B, K, h, w) float32, on this machine's GPU.

Which engines may be loaded, `engine_fit` says.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections import Counter
from typing import Any

import numpy as np

from leuda_deploy.engines.engine import Float32
from leuda_deploy.engines.tensorrt import cuda
from leuda_deploy.engines.tensorrt.buffers import (
    SLOTS,
    Buffers,
    LoadedEngine,
    buffer_bytes,
    groups_of,
    take_turns,
)
from leuda_deploy.engines.tensorrt.engine_fit import (
    EngineRefusedError,
    build_again,
    check_engine,
    fitting_engine,
    no_export,
)
from leuda_deploy.errors import InputError, MissingExtraError
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import LARGEST_WINDOW, Family, Passport

EXTRAS: dict[Family, str] = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}


def open_tensorrt(
    model: ModelFile, family: Family, *, max_gpu_bytes: int | None = None
) -> TensorRTEngine:
    """The engine of this family beside a model file that runs here, or why there is none.

    Raises EngineRefusedError with the command that builds or proves one, InputError if it takes
    more than max_gpu_bytes.
    """
    if model.manifest is None:
        raise no_export(model)
    name = fitting_engine(model, family)
    if name is None:  # none fits: the first says why not
        engines = model.manifest.engines
        name = next((n for n, passport in engines.items() if passport.family == family), None)
    if name is None:
        raise EngineRefusedError(
            f"{model.folder} has no {family} engine; build it: leuda export {model.path} --trt",
            "missing",
        )
    if max_gpu_bytes is not None:
        checked = check_engine(model, name)
        needed = _gpu_bytes(checked.passport, model.card)
        if needed > max_gpu_bytes:
            raise InputError(
                f"{checked.path} takes {needed // 10**6} MB of the GPU's memory; "
                f"the least that would do is --max-gpu-memory {-(-needed // 10**6)}M"
            )
    return TensorRTEngine(model, name)


def _largest_group(passport: Passport, card: ModelCard) -> tuple[int, ...]:
    """Shape (b, 1, h, w) of the most windows, and the largest, that the engine's profile holds."""
    times = LARGEST_WINDOW if card.options.dynamic_window else 1
    return passport.batch[2], card.scan_count, *(times * size for size in passport.window)


def _gpu_bytes(passport: Passport, card: ModelCard) -> int:
    """Code and weights, activations, and the windows and scores of the group in each slot."""
    buffers = buffer_bytes(_largest_group(passport, card), card.score_count)
    return int(1e6 * (passport.engine_mb + (passport.memory_mb or 0.0))) + buffers


class TensorRTEngine:
    """A proven engine on the GPU that it was built for; anything else is an error.

    unproven    load an engine that was not yet compared with ONNX Runtime, to compare it
    cuda_graph  launch runs as CUDA graphs where they can be captured; `description` tells
    """

    def __init__(
        self, model: ModelFile, name: str, *, unproven: bool = False, cuda_graph: bool = True
    ) -> None:
        checked = check_engine(model, name, unproven=unproven)
        self.passport, gpu = checked.passport, checked.gpu
        if not cuda.installed():
            raise MissingExtraError(
                "running a TensorRT engine", "cuda-python", EXTRAS[self.passport.family]
            )
        trt: Any = importlib.import_module(self.passport.family)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = self._runtime.deserialize_cuda_engine(checked.content)
        if engine is None:
            raise EngineRefusedError(
                f"{checked.path} cannot be loaded; {build_again(model.folder, self.passport, gpu)}",
                "unloadable",
            )
        self._trt = trt
        self.path, self.card, self.sha256 = model.path, model.card, model.sha256
        self.precision, self.streams = self.card.precision, 1
        self.threads: int | None = None
        self._loaded = LoadedEngine(
            trt,
            engine,
            self.passport.family,
            classes=self.card.score_count,
            cuda_graph=cuda_graph,
        )
        largest = _largest_group(self.passport, self.card)
        self._slots = [Buffers(self._loaded, largest) for _ in range(SLOTS)]
        # now, so that what keeps the engine from running, or from a CUDA graph, is known
        self._slots[0].run((self.passport.batch[1], *largest[1:2], *self.passport.window))
        self._lock = threading.Lock()
        self.provider, self._gpu = self.passport.family, gpu

    def __call__(self, windows: Float32) -> Float32:
        """Scores (B, K, h, w) of windows (B, 1, h, w), in groups that the profile holds."""
        scores = np.empty((len(windows), self._loaded.classes, *windows.shape[2:]), np.float32)
        with self._lock:  # the slots are this engine's own
            try:
                take_turns(
                    groups_of(len(windows), self.passport.batch[2]),
                    self._slots,
                    start=lambda slot, part: slot.start(windows[part]),
                    finish=lambda slot, part: slot.finish(scores[part]),
                )
            finally:  # also of an interrupt: the next call finds the buffers at rest
                for slot in self._slots:
                    slot.rest()
        return scores

    @property
    def description(self) -> str:
        """Runtime, GPU, precision, and whether runs are launched as CUDA graphs."""
        runtime = f"{self.passport.family} {self.passport.version}"
        return f"{runtime} on {self._gpu.name} {self.card.precision}, {self._loaded.launching}"

    @property
    def memory_mb(self) -> float:
        """What the engine's activations take on the device."""
        return round(float(self._loaded.engine.device_memory_size_v2) / 1e6, 2)

    def inspect(self) -> dict[str, int]:
        """How many outputs of the built engine's layers have each format and data type."""
        inspector = self._loaded.engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        outputs = [o for layer in layers if isinstance(layer, dict) for o in layer["Outputs"]]
        return dict(Counter(str(output.get("Format/Datatype", "?"))[:200] for output in outputs))

"""model file -> OpenVINO on the CPU, in a precision that is read back from what really runs."""

from __future__ import annotations

import threading
from collections import Counter
from importlib.util import find_spec
from typing import Any, get_args

import numpy as np

from leuda_deploy.engines.engine import (
    MAX_SCORE_BYTES,
    Float32,
    PrecisionChoice,
    check_shapes,
    score_bytes,
)
from leuda_deploy.engines.runtimes import import_openvino
from leuda_deploy.engines.threads import threads_for
from leuda_deploy.errors import LeudaError, MissingExtraError, one_line
from leuda_deploy.model.card import Precision
from leuda_deploy.model.model_file import ModelFile

COMPUTING_LAYERS = {"Convolution", "Deconvolution", "MatMul", "FullyConnected"}
MAX_STREAMS = 8  # each holds the activations of its windows
PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}


class OpenVinoEngine:
    """OpenVINO on the CPU; called as `OnnxEngine` is.

    precision  "auto": bf16 where the processor has it, else fp32; a graph that is quantised runs
               in int8 all the same. What the layers really compute in is read back from the
               compiled graph and stands in `description`; bf16 asked for and not had is an error.
    """

    def __init__(
        self, model: ModelFile, *, precision: PrecisionChoice = "auto", threads: int | None = None
    ) -> None:
        if find_spec("openvino") is None:
            raise MissingExtraError("--engine openvino", "OpenVINO", "openvino")
        openvino = import_openvino()

        self.path, self.card, self.sha256 = model.path, model.card, model.sha256
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise LeudaError("this processor has no bf16; use --precision fp32 or auto")
        hint = "bf16" if precision == "bf16" or (precision == "auto" and has_bf16) else "f32"
        threads = threads_for(threads)
        self.threads: int | None = threads
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": max(
                1, min(threads, MAX_STREAMS, MAX_SCORE_BYTES // score_bytes(self.card))
            ),
        }
        try:
            graph = core.read_model(model.content)
            check_shapes([_shape(part) for part in (*graph.inputs, *graph.outputs)], model)
            self._compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            reason = one_line(error)
            raise LeudaError(f"OpenVINO cannot run {self.path}: {reason}") from error
        self.layers = _precisions_that_run(self._compiled)
        self.kernels = _kernels_that_run(self._compiled)
        if precision == "bf16" and "bf16" not in self.layers:
            raise LeudaError(f"OpenVINO would run {self.path} in {dict(self.layers)}, not in bf16")
        ran = " + ".join(f"{name} ({n} layers)" for name, n in self.layers.most_common())
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version} CPU {ran or self.card.precision}"
        self.precision = _coarsest(self.layers) or self.card.precision
        self.streams = int(self._compiled.get_property("NUM_STREAMS"))
        self._requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
        self._lock = threading.Lock()

    def __call__(self, windows: Float32) -> Float32:
        """Scores (B, K, h, w) of normalised windows (B, 1, h, w), a share of them in each stream.

        Cores that work on windows of their own do not wait for each other at every layer; with
        fewer windows than `streams`, some are idle.
        """
        with self._lock:  # a request runs one thing at a time
            count = min(len(windows), len(self._requests))
            parts = np.array_split(windows, count)
            requests = self._requests[:count]
            for request, part in zip(requests, parts, strict=True):
                request.start_async([part], share_inputs=True)
            for request in requests:
                request.wait()
            found = [request.get_output_tensor(0).data for request in requests]
            return np.concatenate(found, dtype=np.float32)  # a copy: the caller's own


def _shape(part: Any) -> list[int | None]:
    return [side.get_length() if side.is_static else None for side in part.get_partial_shape()]


def _precisions_that_run(compiled: Any) -> Counter[str]:
    """How many of the layers that do the work compute in which precision."""
    found: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        facts = layer.get_rt_info()
        if facts["layerType"].astype(str) in COMPUTING_LAYERS:
            name = facts["runtimePrecision"].astype(str)
            found[PRECISIONS.get(name, name)] += 1
    return found


def _kernels_that_run(compiled: Any) -> frozenset[str]:
    """What OpenVINO calls the code of these layers, as "brgconv_avx512_i8"."""
    facts = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    return frozenset(
        fact["primitiveType"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) in COMPUTING_LAYERS
    )


def _coarsest(layers: Counter[str]) -> Precision | None:
    """Of the precisions that layers compute in, the one with the fewest bits."""
    from_coarse = reversed(get_args(Precision))
    return next((precision for precision in from_coarse if precision in layers), None)

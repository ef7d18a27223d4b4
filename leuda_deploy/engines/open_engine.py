"""model file -> engine, (B, 1, h, w) float32 -> (B, K, h, w) float32, on exactly what was asked.

A 3D graph reads and gives (d, h, w) in place of (h, w).
Every engine may be called from several threads, and what it returns is the caller's own.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError, LeudaError, MissingExtraError, ModelError
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.model_file import find_model, read_model

Float32 = NDArray[np.float32]
Provider = Literal["cpu", "cuda"]
EngineName = Literal["ort-cpu", "ort-cuda", "openvino", "tensorrt", "tensorrt-rtx"]
Precision = Literal["auto", "fp32", "bf16"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# engine name -> the builder family of its passport, and the module that runs it
TENSORRT: dict[EngineName, Literal["tensorrt", "tensorrt_rtx"]] = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
CUDA_NEEDS = "CUDA needs an NVIDIA GPU, its driver, and: pip install 'leuda[gpu]'"
COMPUTING_LAYERS = {"Convolution", "Deconvolution", "MatMul", "FullyConnected"}
# Of OpenVINO: each holds the activations of its windows, and all together so many bytes of scores
MAX_STREAMS, MAX_SCORE_BYTES = 8, 64 << 20
OPENVINO_PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}


def score_bytes(card: ModelCard) -> int:
    """What the scores of one window take."""
    return 4 * (1 + len(card.structures)) * prod(card.window)


class ModelEngine(Protocol):
    """What the runtime needs of an engine besides calling it.

    sha256  of the model file
    """

    path: Path
    card: ModelCard
    sha256: str

    @property
    def description(self) -> str:
        """One line: runtime, device, precision."""
        ...

    def __call__(self, windows: Float32) -> Float32:
        """Logits (B, K, h, w) float32 of normalised windows (B, 1, h, w) float32."""
        ...


def open_engine(
    name: EngineName,
    path: Path | str,
    *,
    precision: Precision = "auto",
    threads: int | None = None,
    max_gpu_bytes: int | None = None,
) -> ModelEngine:
    """Exactly the engine named, or an error that says what it lacks."""
    if name == "openvino":
        return OpenVinoEngine(path, precision=precision, threads=threads)
    if precision == "bf16":
        raise InputError(f"{name} computes in what the model file holds; bf16 is for openvino")
    if name in TENSORRT:
        from leuda_deploy.engines.tensorrt import open_tensorrt

        return open_tensorrt(find_model(path), TENSORRT[name], max_gpu_bytes=max_gpu_bytes)
    provider: Provider = "cuda" if name == "ort-cuda" else "cpu"
    return OnnxEngine(path, provider=provider, threads=threads, max_gpu_bytes=max_gpu_bytes)


class OnnxEngine:
    """ONNX Runtime on exactly the provider asked for; anything else is an error, never a fallback.

    Call it with (B, 1, h, w) float32; it returns (B, K, h, w) float32 logits, background first.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        provider: Provider = "cpu",
        threads: int | None = None,
        max_gpu_bytes: int | None = None,
    ) -> None:
        import onnxruntime as ort

        self.path = find_model(path)
        content, self.card = read_model(self.path)
        if self.card.precision == "bf16" and provider == "cpu":
            raise LeudaError(
                f"{self.path} is bf16, which ONNX Runtime does not run on the CPU; "
                "use --engine openvino"
            )
        # what ONNX Runtime would log is in the exception that it raises, too
        ort.set_default_logger_severity(4)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        settings: dict[str, str] = {}
        if provider == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            if max_gpu_bytes is not None:
                settings = {"gpu_mem_limit": str(max_gpu_bytes)}
            with redirect_stdout(StringIO()):  # it prints what it misses; stdout is for results
                ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(
                content, sess_options=options, providers=[(PROVIDERS[provider], settings)]
            )
        except Exception as error:  # ONNX Runtime's own types share no other base
            reason = " ".join(str(error).split())[:300]
            fix = f"; {CUDA_NEEDS}" if provider == "cuda" else ""
            raise LeudaError(
                f"ONNX Runtime cannot run {self.path} on {provider}: {reason}{fix}"
            ) from error
        self.provider = str(self._session.get_providers()[0])
        if self.provider != PROVIDERS[provider]:
            raise LeudaError(
                f"asked ONNX Runtime for {PROVIDERS[provider]}, it would run {self.provider}; "
                f"{CUDA_NEEDS}"
            )
        parts = (*self._session.get_inputs(), *self._session.get_outputs())
        _check_shapes([[*part.shape] for part in parts], self.card, self.path)
        self.description = f"ONNX Runtime {ort.__version__} {self.provider} {self.card.precision}"
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._input, self._output = parts[0].name, parts[1].name
        self._on_device: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()

    def __call__(self, windows: Float32) -> Float32:
        """Logits (B, K, h, w) of normalised windows (B, 1, h, w)."""
        try:
            if self.provider == PROVIDERS["cuda"]:
                return self._run_on_gpu(windows)
            (logits,) = self._session.run(None, {self._input: windows})
        except Exception as error:  # ONNX Runtime's own types share no other base
            reason = " ".join(str(error).split())[:300]
            raise LeudaError(
                f"ONNX Runtime cannot run {self.path} on windows {windows.shape}: {reason}"
            ) from error
        return np.asarray(logits, dtype=np.float32)

    def _run_on_gpu(self, windows: Float32) -> Float32:
        """With IO binding: one copy up into a buffer that is kept, one copy of the logits down."""
        import onnxruntime as ort

        with self._lock:  # the buffers are this engine's own
            buffer = self._on_device.get(windows.shape)
            if buffer is None:
                buffer = ort.OrtValue.ortvalue_from_numpy(windows, "cuda", 0)
                self._on_device[windows.shape] = buffer
            else:
                buffer.update_inplace(windows)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._input, buffer)
            binding.bind_output(self._output, "cuda")
            self._session.run_with_iobinding(binding)
            (logits,) = binding.get_outputs()
            return np.asarray(logits.numpy(), dtype=np.float32)


class OpenVinoEngine:
    """OpenVINO on the CPU; signature and card as `OnnxEngine`, from the same model file.

    precision  "auto": bf16 where the processor has it, else fp32; a graph that is quantised runs
               in int8 all the same. What the layers really compute in is read back from the
               compiled graph and stands in `description`; bf16 asked for and not had is an error.
    """

    def __init__(
        self, path: Path | str, *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        if find_spec("openvino") is None:
            raise MissingExtraError("--engine openvino", "OpenVINO", "openvino")
        import openvino

        self.path = find_model(path)
        content, self.card = read_model(self.path)
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise LeudaError("this processor has no bf16; use --precision fp32 or auto")
        hint = "bf16" if precision == "bf16" or (precision == "auto" and has_bf16) else "f32"
        threads = threads or os.cpu_count() or 1
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": max(
                1, min(threads, MAX_STREAMS, MAX_SCORE_BYTES // score_bytes(self.card))
            ),
        }
        try:
            graph = core.read_model(content)
            _check_shapes(
                [_openvino_shape(p) for p in (*graph.inputs, *graph.outputs)], self.card, self.path
            )
            self._compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise LeudaError(f"OpenVINO cannot run {self.path}: {reason}") from error
        self.layers = _precisions_that_run(self._compiled)
        if precision == "bf16" and "bf16" not in self.layers:
            raise LeudaError(f"OpenVINO would run {self.path} in {dict(self.layers)}, not in bf16")
        ran = " + ".join(f"{name} ({n} layers)" for name, n in self.layers.most_common())
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version} CPU {ran or self.card.precision}"
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.streams = int(self._compiled.get_property("NUM_STREAMS"))
        self._requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
        self._lock = threading.Lock()

    def __call__(self, windows: Float32) -> Float32:
        """Logits (B, K, h, w) of normalised windows (B, 1, h, w), a share of them in each stream.

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


def _openvino_shape(part: Any) -> list[int | None]:
    return [side.get_length() if side.is_static else None for side in part.get_partial_shape()]


def _precisions_that_run(compiled: Any) -> Counter[str]:
    """How many of the layers that do the work compute in which precision."""
    found: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        facts = layer.get_rt_info()
        if facts["layerType"].astype(str) in COMPUTING_LAYERS:
            name = facts["runtimePrecision"].astype(str)
            found[OPENVINO_PRECISIONS.get(name, name)] += 1
    return found


def _check_shapes(shapes: list[list[Any]], card: ModelCard, path: Path) -> None:
    """Refuse a graph that is not what its card says: one input, one output, K classes, any B."""
    wanted = [[None, 1, *card.window], [None, 1 + len(card.structures), *card.window]]
    # a dimension that the graph leaves open is a name, not a number
    fits = [len(shape) for shape in shapes] == [len(shape) for shape in wanted] and all(
        not isinstance(have, int) or want in (None, have)
        for shape, want_shape in zip(shapes, wanted, strict=True)
        for have, want in zip(shape, want_shape, strict=True)
    )
    if not fits:
        raise ModelError(f"the graph of {path} has shapes {shapes}, its card says {wanted}")
    batches = [shape[0] for shape in shapes]
    if any(isinstance(batch, int) for batch in batches):
        raise ModelError(
            f"the graph of {path} has a fixed batch ({batches[0]} in, {batches[1]} out); export it "
            "with an open one: axis 0 dynamic at both ends"
        )

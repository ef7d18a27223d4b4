"""model file -> ONNX Runtime on exactly the provider asked for, the CPU or CUDA."""

from __future__ import annotations

import threading
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Literal

import numpy as np

from leuda_deploy.engines.engine import Float32, check_shapes
from leuda_deploy.engines.runtimes import import_onnx_runtime
from leuda_deploy.engines.threads import threads_for
from leuda_deploy.errors import LeudaError, one_line
from leuda_deploy.model.card import Precision
from leuda_deploy.model.model_file import ModelFile

Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_NEEDS = "CUDA needs an NVIDIA GPU, its driver, and: pip install 'leuda[gpu]'"


def runs_on_the_cpu(precision: Precision) -> bool:
    """Whether ONNX Runtime runs graphs of this precision on the CPU: bf16 it does not."""
    return precision != "bf16"


class OnnxEngine:
    """ONNX Runtime on exactly the provider asked for; anything else is an error, never a fallback.

    Call it with (B, 1, h, w) float32; it returns (B, K, h, w) float32 scores, background first.
    """

    def __init__(
        self,
        model: ModelFile,
        provider: Provider = "cpu",
        *,
        threads: int | None = None,
        max_gpu_bytes: int | None = None,
    ) -> None:
        ort = import_onnx_runtime()

        self.path, self.card, self.sha256 = model.path, model.card, model.sha256
        self.precision, self.streams = self.card.precision, 1
        if provider == "cpu" and not runs_on_the_cpu(self.card.precision):
            raise LeudaError(
                f"ONNX Runtime does not run {self.card.precision} on the CPU, and {self.path} is "
                "of that precision; use --engine openvino"
            )
        # what ONNX Runtime would log is in the exception that it raises, too
        ort.set_default_logger_severity(4)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # int8 sums that do not saturate on x86 without VNNI, as they do not elsewhere (to_int8)
        options.add_session_config_entry("session.x64quantprecision", "1")
        self.threads: int | None = threads_for(threads) if provider == "cpu" else None
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        settings: dict[str, str] = {}
        if provider == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            if max_gpu_bytes is not None:
                settings = {"gpu_mem_limit": str(max_gpu_bytes)}
            with redirect_stdout(StringIO()):  # it prints what it misses; stdout is for results
                ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(
                model.content, sess_options=options, providers=[(PROVIDERS[provider], settings)]
            )
        except Exception as error:  # ONNX Runtime's own types share no other base
            reason = one_line(error)
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
        check_shapes([[*part.shape] for part in parts], model)
        self.description = f"ONNX Runtime {ort.__version__} {self.provider} {self.card.precision}"
        self._input, self._output = parts[0].name, parts[1].name
        self._on_device: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()

    def __call__(self, windows: Float32) -> Float32:
        """Scores (B, K, h, w) of normalised windows (B, 1, h, w)."""
        try:
            if self.provider == PROVIDERS["cuda"]:
                return self._run_on_gpu(windows)
            (scores,) = self._session.run(None, {self._input: windows})
        except Exception as error:  # ONNX Runtime's own types share no other base
            reason = one_line(error)
            raise LeudaError(
                f"ONNX Runtime cannot run {self.path} on windows {windows.shape}: {reason}"
            ) from error
        return np.asarray(scores, dtype=np.float32)

    def _run_on_gpu(self, windows: Float32) -> Float32:
        """With IO binding: one copy up into a buffer that is kept, one copy of the scores down."""
        ort = import_onnx_runtime()

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
            (scores,) = binding.get_outputs()
            return np.asarray(scores.numpy(), dtype=np.float32)

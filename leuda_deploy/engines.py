"""model file -> engine, (B, 1, h, w) float32 -> (B, K, h, w) float32, on exactly what was asked."""

from __future__ import annotations

import hashlib
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.card import ModelCard
from leuda_deploy.errors import LeudaError, ModelError
from leuda_deploy.model_file import find_model, read_model

Float32 = NDArray[np.float32]
Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_NEEDS = "CUDA needs an NVIDIA GPU, its driver, and: pip install 'leuda[gpu]'"


class OnnxEngine:
    """ONNX Runtime on exactly the provider asked for; anything else is an error, never a fallback.

    Call it with (B, 1, h, w) float32; it returns (B, K, h, w) float32 logits, background first.
    """

    def __init__(
        self, path: Path | str, *, provider: Provider = "cpu", threads: int | None = None
    ) -> None:
        import onnxruntime as ort

        self.path = find_model(path)
        content, self.card = read_model(self.path)
        # what ONNX Runtime would log is in the exception that it raises, too
        ort.set_default_logger_severity(4)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        if provider == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            with redirect_stdout(StringIO()):  # it prints what it misses; stdout is for results
                ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(
                content, sess_options=options, providers=[PROVIDERS[provider]]
            )
        except Exception as error:
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
        _check_shapes(self._session, self.card, self.path)
        self.description = f"ONNX Runtime {ort.__version__} {self.provider} {self.card.precision}"
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._input = self._session.get_inputs()[0].name

    def __call__(self, windows: Float32) -> Float32:
        """Logits (B, K, h, w) of normalised windows (B, 1, h, w)."""
        (logits,) = self._session.run(None, {self._input: windows})
        return np.asarray(logits, dtype=np.float32)


def _check_shapes(session: Any, card: ModelCard, path: Path) -> None:
    """Refuse a graph that does not do what its card says: one input, one output, K classes."""
    shapes = [[*part.shape] for part in (*session.get_inputs(), *session.get_outputs())]
    wanted = [[None, 1, *card.recipe.window], [None, 1 + len(card.structures), *card.recipe.window]]
    # a dimension that the graph leaves open is a name, not a number
    fits = [len(shape) for shape in shapes] == [4, 4] and all(
        not isinstance(have, int) or want in (None, have)
        for shape, want_shape in zip(shapes, wanted, strict=True)
        for have, want in zip(shape, want_shape, strict=True)
    )
    if not fits:
        raise ModelError(f"the graph of {path} has shapes {shapes}, its card says {wanted}")

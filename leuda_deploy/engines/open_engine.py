"""model file + name of an engine -> exactly that engine, or an error that says what it lacks."""

from __future__ import annotations

from leuda_deploy.engines.engine import TENSORRT, Engine, EngineName, EngineSettings
from leuda_deploy.engines.onnx_runtime import OnnxEngine, runs_on_the_cpu
from leuda_deploy.engines.openvino import OpenVinoEngine
from leuda_deploy.engines.tensorrt.engine import open_tensorrt
from leuda_deploy.errors import InputError
from leuda_deploy.model.model_file import ModelFile

DEFAULTS = EngineSettings()


def open_engine(model: ModelFile, name: EngineName, settings: EngineSettings = DEFAULTS) -> Engine:
    """Exactly the engine named.

    Raises:
        InputError: It cannot do what the settings ask for.
        ModelError: The model file is not for it, or there is no such TensorRT engine.
        MissingExtraError: Its runtime is not installed.
        LeudaError: It does not run here.
    """
    precision, threads = settings.precision, settings.threads
    if name == "openvino":
        return OpenVinoEngine(model, precision=precision, threads=threads)
    if precision == "bf16":
        raise InputError(f"{name} computes in what the model file holds; bf16 is for openvino")
    if name in TENSORRT:
        return open_tensorrt(model, TENSORRT[name], max_gpu_bytes=settings.max_gpu_bytes)
    if name == "ort-cuda":
        return OnnxEngine(model, "cuda", threads=threads, max_gpu_bytes=settings.max_gpu_bytes)
    return OnnxEngine(model, threads=threads)


def reference_engine(model: ModelFile, *, threads: int | None = None) -> Engine:
    """The engine that others are compared with: the graph as it is written, on the CPU.

    ONNX Runtime; for bf16, which it does not run there, OpenVINO held to the graph's precision.
    """
    if runs_on_the_cpu(model.card.precision):
        return open_engine(model, "ort-cpu", EngineSettings(threads=threads))
    return open_engine(model, "openvino", EngineSettings(precision="fp32", threads=threads))

"""model.onnx -> TensorRT engine + passport, with `tensorrt` or `tensorrt_rtx`.

One code path for both families and for TensorRT 10.12 to 11: the network is strongly typed, so its
precision is the graph's and no builder flag can change it. `tensorrt_rtx` also builds ahead of
time, for GPUs that are not here.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError, LeudaError, MissingExtraError, ModelError
from leuda_deploy.export.tensorrt_progress import make_log, make_monitor
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.export_folder import engine_file
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import LARGEST_WINDOW, Family, Passport, engine_key

THIS_MACHINE = "this-machine"
# `--trt-target` -> compute capability. Engines for these are built without a GPU.
RTX_TARGETS = {
    "rtx-turing": "7.5",
    "rtx-ampere": "8.6",
    "rtx-ada": "8.9",
    "rtx-blackwell": "12.0",
    "gb10": "12.1",
}
WORKSPACE_MB = 1024
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class EngineTarget:
    """The GPU that an engine is for, and how it is built.

    family        the builder: tensorrt or tensorrt_rtx
    name          as `--trt-target` has it
    capability    compute capability, "8.6"
    gpu           name of the GPU of this machine; None: built ahead of time, without one
    batch         largest number of windows that the engine takes at a time
    workspace_mb  memory that the builder may use
    """

    family: Family
    name: str
    capability: str
    gpu: str | None
    batch: int = BATCH
    workspace_mb: int = WORKSPACE_MB

    @property
    def file_name(self) -> str:
        """Of the engine, in its export folder."""
        return engine_file(self.name)

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch of the engine's profile."""
        return 1, self.batch, self.batch

    def key(self, onnx_sha256: str) -> str:
        """The key of the engine that would be built now; see `Passport.key`."""
        version = str(importlib.import_module(self.family).__version__)
        return engine_key(
            onnx_sha256,
            self.family,
            version,
            self.capability,
            self.gpu,
            self.batches,
            self.workspace_mb,
        )


def engine_targets(
    names: list[str],
    *,
    batch: int = BATCH,
    workspace_mb: int = WORKSPACE_MB,
    gpu: Gpu | None = None,
) -> list[EngineTarget]:
    """Values of `--trt-target` (none: this machine's GPU) -> what to build.

    Raises:
        InputError: A name is unknown, or this machine has no GPU and none was named.
        MissingExtraError: The builder is not installed.
    """
    targets = []
    for name in names or [THIS_MACHINE]:
        if name in RTX_TARGETS:
            if find_spec("tensorrt_rtx") is None:
                raise MissingExtraError(f"--trt-target {name}", "tensorrt-rtx", "rtx")
            family: Family = "tensorrt_rtx"
            capability, built_on = RTX_TARGETS[name], None
        elif name == THIS_MACHINE:
            gpu = gpu or find_gpu()
            if gpu is None:
                raise InputError(
                    "this machine has no NVIDIA GPU to build an engine for; name the GPU it is "
                    f"for: --trt-target {','.join(RTX_TARGETS)}"
                )
            family = "tensorrt" if find_spec("tensorrt") else "tensorrt_rtx"
            if find_spec(family) is None:
                raise MissingExtraError("--trt", "tensorrt", "trt")
            capability, built_on = gpu.capability, gpu.name
        else:
            known = ", ".join([THIS_MACHINE, *RTX_TARGETS])
            raise InputError(f"unknown --trt-target {name!r}; known are {known}")
        target = EngineTarget(
            family=family,
            name=name,
            capability=capability,
            gpu=built_on,
            batch=batch,
            workspace_mb=workspace_mb,
        )
        targets.append(target)
    return targets


def to_tensorrt(
    model: ModelFile,
    target: EngineTarget,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Passport:
    """Build one engine and write it to `out`.

    Args:
        model: The model file.
        target: What the engine is for.
        out: The engine file.
        cache: Folder of timing caches, which make a second build faster; None for no cache.
        progress: Told how far the builder is.

    Returns:
        Its passport. It says `proven=False`: running the engine is another step.

    Raises:
        ModelError: The parsed network has lost the precision that the card states.
        LeudaError: The graph cannot be parsed or built.
    """
    card, onnx_sha256 = model.card, model.sha256
    trt: Any = importlib.import_module(target.family)
    version = str(trt.__version__)
    log = make_log(trt)
    builder = trt.Builder(log)
    network = _parse(trt, builder, log, model)
    layers, kinds = read_precisions(trt, network)
    _check_precision(card.precision, kinds, model.path)

    config = _configure(trt, builder, network, target, card)
    monitor = make_monitor(trt, progress)  # has to live as long as the build
    config.progress_monitor = monitor
    tuned = cache is not None and target.family == "tensorrt"  # TensorRT for RTX tunes when it runs
    timings = cache / f"{target.key(onnx_sha256)}.timing" if cache and tuned else None
    _load_timings(config, timings)

    began = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    if engine is None:
        raise LeudaError(f"{target.family} {version} cannot build {model.path}: {log.reason()}")
    if timings is not None:
        with atomic_path(timings) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    code = bytes(engine)
    with atomic_path(out) as temporary:
        temporary.write_bytes(code)
    return Passport(
        onnx_sha256=onnx_sha256,
        family=target.family,
        version=version,
        target=target.name,
        capability=target.capability,
        gpu=target.gpu,
        precision=card.precision,
        layers=layers,
        layer_kinds=kinds,
        batch=target.batches,
        window=card.window,
        workspace_mb=target.workspace_mb,
        build_seconds=round(seconds, 2),
        engine_mb=round(len(code) / 1e6, 2),
        proven=False,
        sha256=hashlib.sha256(code).hexdigest(),
    )


def _configure(trt: Any, builder: Any, network: Any, target: EngineTarget, card: ModelCard) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
    config.add_optimization_profile(_profile(builder, network, target.batch, card))
    if target.family == "tensorrt_rtx":
        _set_capability(trt, config, target)
    return config


def read_precisions(trt: Any, network: Any) -> tuple[dict[str, str], dict[str, int]]:
    """Layer name -> "KIND DATATYPE" of the parsed network, and how many of each there are.

    A layer whose first input comes from a Q/DQ pair computes in int8, whatever it puts out.
    """
    dequantised: set[str] = set()
    layers: dict[str, str] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = _name(layer.type)
        if kind == "DEQUANTIZE":
            dequantised.add(layer.get_output(0).name)
        computes = {"CONVOLUTION", "DECONVOLUTION"}
        integer = kind in computes and layer.get_input(0).name in dequantised
        typed = "INT8" if integer else _name(layer.get_output(0).dtype)
        layers[_unique(layer.name[:400], layers)] = f"{kind} {typed}"
    return layers, dict(sorted(Counter(layers.values()).items()))


def _name(member: Any) -> str:
    return str(member).rsplit(".", 1)[-1]


def _unique(name: str, taken: dict[str, str]) -> str:
    number = 1
    while (candidate := name if number == 1 else f"{name} #{number}") in taken:
        number += 1
    return candidate


def _check_precision(precision: str, kinds: dict[str, int], model: Path) -> None:
    """Refuse a network that has no convolution in the precision that the card states."""
    wanted = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}[precision]
    if not kinds.get(f"CONVOLUTION {wanted}"):
        raise ModelError(
            f"{model} says {precision}, but no convolution of the parsed network is {wanted}: "
            f"{kinds}; export the model again"
        )


def _parse(trt: Any, builder: Any, log: Any, model: ModelFile) -> Any:
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.content):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise LeudaError(f"{trt.__name__} cannot parse {model.path}: {'; '.join(errors)[:300]}")
    return network


def _profile(builder: Any, network: Any, batch: int, card: ModelCard) -> Any:
    """1 to `batch` windows of the recipe's size; with an open graph, of other sizes, too."""
    entry = network.get_input(0)
    profile = builder.create_optimization_profile()
    least, most = card.window, card.window
    if card.options.dynamic_window:
        least = (2 * card.options.window_multiple,) * len(card.window)
        most = tuple(LARGEST_WINDOW * size for size in card.window)
    count = card.scan_count
    shapes = [(1, count, *least), (batch, count, *card.window), (batch, count, *most)]
    profile.set_shape(entry.name, *shapes)
    return profile


def _set_capability(trt: Any, config: Any, target: EngineTarget) -> None:
    """TensorRT for RTX builds for a compute capability; without one, for most of them at once."""
    name = "CURRENT" if target.gpu else "SM" + target.capability.replace(".", "")
    wanted = getattr(trt.ComputeCapability, name, None)
    config.num_compute_capabilities = 1
    if wanted is None or not config.set_compute_capability(wanted, 0):
        raise LeudaError(f"{trt.__name__} {trt.__version__} does not build for {target.name}")


def _load_timings(config: Any, timings: Path | None) -> None:
    if timings is None:
        return
    known = timings.read_bytes() if timings.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        timings.unlink(missing_ok=True)  # of another version; measure anew
        config.set_timing_cache(config.create_timing_cache(b""), False)

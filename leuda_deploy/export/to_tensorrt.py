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
from leuda_deploy.export.tensorrt_progress import Progress, make_log, make_monitor
from leuda_deploy.machine.gpu import Gpu, find_gpu
from leuda_deploy.model.card import ModelCard
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.passport import LARGEST_WINDOW, Family, Passport, engine_key
from leuda_deploy.scans.volume import atomic_path

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
class Plan:
    """What to build: family, target name, compute capability, and the GPU where one is at hand."""

    family: Family
    target: str
    capability: str
    gpu: str | None


def plan_engines(targets: list[str], *, gpu: Gpu | None = None) -> list[Plan]:
    """Names of targets (none: this machine's GPU) -> what to build.

    Raises InputError for an unknown target or where this machine has no GPU, MissingExtraError
    where no builder is installed.
    """
    plans = []
    for target in targets or [THIS_MACHINE]:
        if target in RTX_TARGETS:
            if find_spec("tensorrt_rtx") is None:
                raise MissingExtraError(f"--trt-target {target}", "tensorrt-rtx", "rtx")
            plans.append(
                Plan(family="tensorrt_rtx", target=target, capability=RTX_TARGETS[target], gpu=None)
            )
            continue
        if target != THIS_MACHINE:
            known = ", ".join([THIS_MACHINE, *RTX_TARGETS])
            raise InputError(f"unknown --trt-target {target!r}; known are {known}")
        gpu = gpu or find_gpu()
        if gpu is None:
            raise InputError(
                "this machine has no NVIDIA GPU to build an engine for; name the GPU it is for: "
                f"--trt-target {','.join(RTX_TARGETS)}"
            )
        family: Family = "tensorrt" if find_spec("tensorrt") else "tensorrt_rtx"
        if find_spec(family) is None:
            raise MissingExtraError("--trt", "tensorrt", "trt")
        plans.append(Plan(family=family, target=target, capability=gpu.capability, gpu=gpu.name))
    return plans


def plan_key(plan: Plan, onnx_sha256: str, batch: int, workspace_mb: int) -> str:
    """The key that an engine of this plan would have; see `Passport.key`."""
    version = str(importlib.import_module(plan.family).__version__)
    return engine_key(
        onnx_sha256,
        plan.family,
        version,
        plan.capability,
        plan.gpu,
        (1, batch, batch),
        workspace_mb,
    )


def to_tensorrt(
    model: ModelFile,
    plan: Plan,
    out: Path,
    *,
    batch: int = BATCH,
    workspace_mb: int = WORKSPACE_MB,
    cache: Path | None = None,
    progress: Progress = lambda done, total, note: None,
) -> Passport:
    """Build one engine for batches of 1 to `batch` windows and write it to `out`.

    cache  folder of timing caches, kept under a key of model, builder, GPU and profile
    The passport says `proven=False`: running the engine is another step. Raises LeudaError if the
    graph cannot be parsed or built, ModelError if the parsed network lost the card's precision.
    """
    card = model.card
    trt: Any = importlib.import_module(plan.family)
    version, onnx_sha256 = str(trt.__version__), model.sha256
    log = make_log(trt)
    builder = trt.Builder(log)
    network = _parse(trt, builder, log, model)
    layers, kinds = read_precisions(trt, network)
    _check_precision(card.precision, kinds, model.path)

    config = _configure(trt, builder, network, plan, card, batch, workspace_mb)
    monitor = make_monitor(trt, progress)  # has to live as long as the build
    config.progress_monitor = monitor
    key = plan_key(plan, onnx_sha256, batch, workspace_mb)
    timings = cache / f"{key}.timing" if cache and plan.family == "tensorrt" else None
    _load_timings(config, timings)

    began = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    if engine is None:
        raise LeudaError(f"{plan.family} {version} cannot build {model.path}: {log.said()}")
    if timings is not None:
        with atomic_path(timings) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    code = bytes(engine)
    with atomic_path(out) as temporary:
        temporary.write_bytes(code)
    return Passport(
        onnx_sha256=onnx_sha256,
        family=plan.family,
        version=version,
        target=plan.target,
        capability=plan.capability,
        gpu=plan.gpu,
        precision=card.precision,
        layers=layers,
        layer_kinds=kinds,
        batch=(1, batch, batch),
        window=card.window,
        workspace_mb=workspace_mb,
        build_seconds=round(seconds, 2),
        engine_mb=round(len(code) / 1e6, 2),
        proven=False,
        sha256=hashlib.sha256(code).hexdigest(),
    )


def _configure(
    trt: Any,
    builder: Any,
    network: Any,
    plan: Plan,
    card: ModelCard,
    batch: int,
    workspace_mb: int,
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
    config.add_optimization_profile(_profile(builder, network, batch, card))
    if plan.family == "tensorrt_rtx":
        _aim(trt, config, plan)
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
    shapes = [(1, 1, *least), (batch, 1, *card.window), (batch, 1, *most)]
    profile.set_shape(entry.name, *shapes)
    return profile


def _aim(trt: Any, config: Any, plan: Plan) -> None:
    """TensorRT for RTX builds for a compute capability; without one, for most of them at once."""
    name = "CURRENT" if plan.gpu else "SM" + plan.capability.replace(".", "")
    wanted = getattr(trt.ComputeCapability, name, None)
    config.num_compute_capabilities = 1
    if wanted is None or not config.set_compute_capability(wanted, 0):
        raise LeudaError(f"{trt.__name__} {trt.__version__} does not build for {plan.target}")


def _load_timings(config: Any, timings: Path | None) -> None:
    if timings is None:  # TensorRT for RTX has none: it tunes when it is run
        return
    known = timings.read_bytes() if timings.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        timings.unlink(missing_ok=True)  # of another version; measure anew
        config.set_timing_cache(config.create_timing_cache(b""), False)

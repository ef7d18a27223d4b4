"""fp32 model + reference scores -> the same model in fp16, bf16 or int8, proven, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx

from leuda_deploy.engines.open_engine import OnnxEngine, OpenVinoEngine
from leuda_deploy.errors import LeudaError, MissingExtraError, ParityError
from leuda_deploy.export.to_half import to_bf16, to_fp16
from leuda_deploy.export.to_int8 import calibrate, quantisable, quantise, split_concatenations
from leuda_deploy.inference.sliding_window import Engine
from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.card import ModelCard, Precision
from leuda_deploy.model.model_file import read_model, write_model
from leuda_deploy.proof.layers import Float32, first_layer_that_differs, layers_of, values_of
from leuda_deploy.proof.parity import LIMITS, Parity, check_parity, class_names
from leuda_deploy.proof.probes import Probes

# What counts as another layer when the fault is looked for: several times what rounding does.
LAYER_LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.25}
SENSITIVITY_WINDOWS = 8


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """Card as written, what the gate found by engine, and for int8 which layers are in it."""

    card: ModelCard
    parities: tuple[Parity, ...]
    int8_layers: tuple[str, ...] = ()
    lifted_layers: tuple[str, ...] = ()


def lower(
    model: onnx.ModelProto,
    card: ModelCard,
    precision: Precision,
    probes: Probes,
    calibration: Float32,
    expected: Float32,
    path: Path,
    progress: Progress,
) -> Lowered:
    """Convert, compare with the reference's scores (N, K, h, w) on the probes, write to `path`.

    calibration  (n, h, w) unlabelled target slices, which give int8 its ranges
    Raises ParityError, naming stage, window, class and layer.
    """
    card = card.model_copy(update={"precision": precision})

    def gate(candidate: onnx.ModelProto) -> tuple[ModelCard, tuple[Parity, ...]]:
        opset = candidate.opset_import[0].version
        written = write_model(candidate, card.model_copy(update={"opset": opset}), path)
        return written, prove(path, probes, expected, origin="ONNX fp32", reference=model)

    if precision == "int8":
        return _lower_to_int8(model, probes, calibration[:, None], gate, progress)
    written, parities = gate(to_bf16(model) if precision == "bf16" else to_fp16(model))
    return Lowered(card=written, parities=parities)


def prove(
    path: Path,
    probes: Probes,
    expected: Float32,
    *,
    origin: str,
    reference: onnx.ModelProto | None = None,
) -> tuple[Parity, ...]:
    """Compare a model file with the reference's scores (N, K, h, w), on each engine of this CPU.

    origin  what gave those scores, in words; with its graph, a refusal names the first layer
    Raises ParityError for the first engine that disagrees.
    """
    card = read_model(path)[1]
    found: list[Parity] = []
    for title, engine in _proving_engines(path, card.precision).items():
        try:
            found.append(
                check_parity(
                    expected,
                    engine,
                    probes,
                    stage=f"{origin} -> {title} {card.precision}",
                    classes=class_names(card),
                    limits=LIMITS[card.precision],
                )
            )
        except ParityError as error:
            if found:  # the graph is right, then
                raise ParityError(
                    f"{error}; '{found[0].stage}' passed; nothing was kept"
                ) from error
            if reference is None or error.window is None or card.precision == "bf16":
                raise
            window = probes.windows[error.window][None]
            limit = LAYER_LIMITS[card.precision]
            where = first_layer_that_differs(reference, onnx.load(path), window, limit=limit)
            raise ParityError(f"{error}; {where}; nothing was kept", error.window) from error
    return tuple(found)


def _proving_engines(path: Path, precision: Precision) -> dict[str, Engine]:
    """ONNX Runtime, which has no bf16 convolution on the CPU, and OpenVINO where it is installed.

    OpenVINO is held to the precision of the graph.
    """
    engines: dict[str, Engine] = {}
    if precision != "bf16":
        engines["ONNX Runtime CPU"] = OnnxEngine(path)
    if find_spec("openvino") is not None:
        engines["OpenVINO CPU"] = openvino = OpenVinoEngine(path, precision="fp32")
        if precision == "bf16" and not openvino.layers["bf16"]:
            raise LeudaError(
                "this processor has no bf16, so that a bf16 graph cannot be proven here"
            )
    if not engines:
        raise MissingExtraError("proving a bf16 graph", "OpenVINO", "openvino")
    return engines


def _lower_to_int8(
    model: onnx.ModelProto,
    probes: Probes,
    calibration: Float32,
    gate: Callable[[onnx.ModelProto], tuple[ModelCard, tuple[Parity, ...]]],
    progress: Progress,
) -> Lowered:
    """Quantise all that may be; while the gate refuses, lift the most sensitive layers back.

    One at a time at first, then half as many again as were lifted already.
    """
    model = split_concatenations(model)
    ranges = calibrate(model, calibration)
    kept = quantisable(model)
    titles = {layer.node: str(layer) for layer in layers_of(model)}
    lifted: list[str] = []
    worst_first: list[str] = []
    while True:
        progress(len(lifted), len(titles), "layers lifted")
        try:
            card, parities = gate(quantise(model, ranges, kept))
        except ParityError as error:
            worst_first = worst_first or _by_sensitivity(model, ranges, kept, probes, progress)
            worst = worst_first[: max(1, len(lifted) // 2)]
            worst_first = worst_first[len(worst) :]
            lifted += worst
            kept = [name for name in kept if name not in worst]
            if not kept:
                raise ParityError(f"{error}; no layer of it can be int8", error.window) from error
            continue
        return Lowered(
            card=card,
            parities=parities,
            int8_layers=tuple(titles[name] for name in kept),
            lifted_layers=tuple(titles[name] for name in lifted),
        )


def _by_sensitivity(
    model: onnx.ModelProto,
    ranges: dict[str, float],
    names: list[str],
    probes: Probes,
    progress: Progress,
) -> list[str]:
    """Convolutions by how much quantising each one alone moves the scores, worst first.

    Judged by labels first, as the gate does (the share that changes), then by the mean |Δ|.
    """
    chosen = np.linspace(0, probes.real - 1, min(SENSITIVITY_WINDOWS, probes.real)).astype(int)
    windows = probes.windows[chosen]
    scores = [value.name for value in model.graph.output]

    def run(graph: onnx.ModelProto) -> Float32:
        return np.concatenate([values[scores[0]] for values in values_of(graph, windows, scores)])

    expected = run(model)
    moved: dict[str, tuple[float, float]] = {}
    for done, name in enumerate(names, start=1):
        found = run(quantise(model, ranges, [name]))
        labels = float((found.argmax(axis=1) != expected.argmax(axis=1)).mean())
        moved[name] = labels, float(np.abs(found - expected).mean())
        progress(done, len(names), "layers tried alone")
    return sorted(names, key=lambda name: moved[name], reverse=True)

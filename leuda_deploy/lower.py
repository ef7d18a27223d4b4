"""fp32 model + reference scores -> the same model in fp16 or int8, proven, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leuda_deploy.card import ModelCard, Precision
from leuda_deploy.engines import OnnxEngine
from leuda_deploy.errors import ParityError
from leuda_deploy.layers import Float32, first_layer_that_differs, layers_of, values_of
from leuda_deploy.model_file import write_model
from leuda_deploy.parity import LIMITS, Parity, check_parity, class_names
from leuda_deploy.probes import Probes
from leuda_deploy.to_fp16 import to_fp16
from leuda_deploy.to_int8 import calibrate, quantisable, quantise, split_concatenations

# What counts as another layer when the fault is looked for: several times what rounding does.
LAYER_LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.25}
SENSITIVITY_WINDOWS = 8
LIFTED_AT_A_TIME = 8  # an eighth of the layers that are left, at least one
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """Card as written, what the gate found, and for int8 which layers are lower and which not."""

    card: ModelCard
    parity: Parity
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
    stage = f"ONNX fp32 -> ONNX Runtime CPU {precision}"

    def gate(candidate: onnx.ModelProto) -> tuple[ModelCard, Parity]:
        written = write_model(candidate, card, path)
        return written, prove(path, probes, expected, stage=stage, reference=model)

    if precision == "int8":
        return _lower_to_int8(model, probes, calibration[:, None], gate, progress)
    written, parity = gate(to_fp16(model))
    return Lowered(card=written, parity=parity)


def prove(
    path: Path,
    probes: Probes,
    expected: Float32,
    *,
    stage: str,
    reference: onnx.ModelProto | None = None,
) -> Parity:
    """Compare a model file in ONNX Runtime on the CPU with the reference's scores (N, K, h, w).

    Raises ParityError; with a reference graph it also names the first layer that differs.
    """
    engine = OnnxEngine(path)
    try:
        return check_parity(
            expected,
            engine,
            probes,
            stage=stage,
            classes=class_names(engine.card),
            limits=LIMITS[engine.card.precision],
        )
    except ParityError as error:
        if reference is None or error.window is None:
            raise
        window = probes.windows[error.window][None]
        limit = LAYER_LIMITS[engine.card.precision]
        where = first_layer_that_differs(reference, onnx.load(path), window, limit=limit)
        raise ParityError(f"{error}; {where}; nothing was kept", error.window) from error


def _lower_to_int8(
    model: onnx.ModelProto,
    probes: Probes,
    calibration: Float32,
    gate: Callable[[onnx.ModelProto], tuple[ModelCard, Parity]],
    progress: Progress,
) -> Lowered:
    """Quantise all that may be; while the gate refuses, lift the most sensitive layers back."""
    model = split_concatenations(model)
    ranges = calibrate(model, calibration)
    kept = quantisable(model)
    titles = {layer.node: str(layer) for layer in layers_of(model)}
    lifted: list[str] = []
    worst_first: list[str] = []
    while True:
        progress(len(lifted), len(titles), "layers lifted")
        try:
            card, parity = gate(quantise(model, ranges, kept))
        except ParityError as error:
            worst_first = worst_first or _by_sensitivity(model, ranges, kept, probes, progress)
            worst = worst_first[: max(1, len(kept) // LIFTED_AT_A_TIME)]
            worst_first = worst_first[len(worst) :]
            lifted += worst
            kept = [name for name in kept if name not in worst]
            if not kept:
                raise ParityError(f"{error}; no layer of it can be int8", error.window) from error
            continue
        return Lowered(
            card=card,
            parity=parity,
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

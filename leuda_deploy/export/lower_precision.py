"""fp32 graph + reference scores -> the same model in fp16, bf16 or int8, proven, or a refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx

from leuda_deploy.engines.engine import Float32
from leuda_deploy.errors import LeudaError, ParityError
from leuda_deploy.export.to_half import to_bf16, to_fp16
from leuda_deploy.export.to_int8 import (
    LEVELS,
    PORTABLE_LEVELS,
    calibrate,
    quantisable,
    quantise,
    split_concatenations,
)
from leuda_deploy.machine.isolated import run_isolated
from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.card import Int8, ModelCard, Precision
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.proof.layers import layers_of, values_of
from leuda_deploy.proof.parity import Parity
from leuda_deploy.proof.probes import Probes
from leuda_deploy.proof.processor import PORTABLE_BITS, int8_kind, kinds_below
from leuda_deploy.proof.prove import Reference, prove, prove_held_to

SENSITIVITY_WINDOWS = 8
_log = logging.getLogger(__name__)
# Writes a candidate graph and proves it. Raises ParityError.
Gate = Callable[[onnx.ModelProto, Int8 | None], tuple[ModelFile, tuple[Parity, ...]]]


@dataclass(frozen=True, kw_only=True)
class InPrecision:
    """A model in lower precision.

    model          as written
    parities       what each engine made of it
    int8_layers    layers in int8
    lifted_layers  layers that were put back to float32 until the model agreed with the reference
    """

    model: ModelFile
    parities: tuple[Parity, ...]
    int8_layers: tuple[str, ...] = ()
    lifted_layers: tuple[str, ...] = ()


def lower_precision(
    reference: Reference,
    card: ModelCard,
    precision: Precision,
    path: Path,
    *,
    calibration: Float32,
    progress: Progress,
) -> InPrecision:
    """Convert the reference's graph, write it to `path`, and compare the two.

    Args:
        reference: The fp32 graph with its scores on the probes.
        card: Of the fp32 model; what is written has the same with the new precision.
        precision: fp16, bf16 or int8.
        path: Where the model file is written. It may hold a refused candidate when this raises.
        calibration: (n, h, w) float32 unlabelled target slices, which give int8 its ranges.
        progress: Told how many layers were tried or lifted.

    Raises:
        ParityError: The model disagrees with the reference; names stage, window, class and layer.
    """
    graph = reference.graph
    assert graph is not None
    card = card.model_copy(update={"precision": precision})

    def gate(candidate: onnx.ModelProto, int8: Int8 | None) -> tuple[ModelFile, tuple[Parity, ...]]:
        facts = {"opset": candidate.opset_import[0].version, "int8": int8}
        written = write_model(candidate, card.model_copy(update=facts), path)
        parities = prove(written, reference)
        if int8 is None or int8.weight_bits == PORTABLE_BITS:
            return written, parities
        held = _as_on_other_kinds(written, reference)
        proven_on = (*int8.proven_on, *held)
        facts["int8"] = int8.model_copy(update={"proven_on": proven_on})
        written = write_model(candidate, card.model_copy(update=facts), path)
        return written, (*parities, *held.values())

    if precision == "int8":
        return _to_proven_int8(graph, reference.probes, calibration[:, None], gate, progress)
    written, parities = gate(to_bf16(graph) if precision == "bf16" else to_fp16(graph), None)
    return InPrecision(model=written, parities=parities)


def _as_on_other_kinds(model: ModelFile, reference: Reference) -> dict[str, Parity]:
    """Other kinds of processor that this one can compute like, those on which the graph agrees."""
    found: dict[str, Parity] = {}
    if find_spec("openvino") is None:
        return found
    for kind in kinds_below(int8_kind()):
        try:
            alone = replace(reference, graph=None)
            found[kind] = run_isolated(None, prove_held_to, kind, model, alone)
        except LeudaError as error:
            _log.info("not proven on %s: %s", kind, error)
    return found


def _to_proven_int8(
    model: onnx.ModelProto,
    probes: Probes,
    calibration: Float32,
    gate: Gate,
    progress: Progress,
) -> InPrecision:
    """Quantise every layer that may be; while the gate refuses, lift the most sensitive ones back.

    One layer at a time at first, then half as many again as were lifted already. Weights of 7 bits,
    which mean the same on every processor, are tried before weights of 8: see to_int8.
    """
    model = split_concatenations(model)
    ranges = calibrate(model, calibration)
    kept = quantisable(model)
    titles = {layer.node: str(layer) for layer in layers_of(model)}
    lifted: list[str] = []
    worst_first: list[str] = []
    while True:
        progress(len(lifted), len(titles), "layers lifted")
        for levels, bits in ((PORTABLE_LEVELS, 7), (LEVELS, 8)):
            int8 = Int8.model_validate({"weight_bits": bits, "proven_on": (int8_kind(),)})
            try:
                written, parities = gate(quantise(model, ranges, kept, weight_levels=levels), int8)
            except ParityError as error:
                refused = error
                continue
            return InPrecision(
                model=written,
                parities=parities,
                int8_layers=tuple(titles[name] for name in kept),
                lifted_layers=tuple(titles[name] for name in lifted),
            )
        worst_first = worst_first or _by_sensitivity(model, ranges, kept, probes, progress)
        worst = worst_first[: max(1, len(lifted) // 2)]
        worst_first = worst_first[len(worst) :]
        lifted += worst
        kept = [name for name in kept if name not in worst]
        if not kept:
            raise refused.adding("no layer of it can be int8") from refused


def _by_sensitivity(
    model: onnx.ModelProto,
    ranges: dict[str, float],
    names: list[str],
    probes: Probes,
    progress: Progress,
) -> list[str]:
    """Convolutions by how much quantising each one alone moves the scores, worst first.

    By labels first, as the gate judges (the share that changes), then by the mean |Δ|.
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

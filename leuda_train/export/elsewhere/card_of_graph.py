"""an ONNX graph from elsewhere, and what a person says of it -> its model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from leuda_deploy.engines.runtimes import import_onnx_runtime
from leuda_deploy.errors import InputError, ModelError, describe, one_line
from leuda_deploy.export.import_onnx import precision_of, read_graph
from leuda_deploy.model.card import (
    PALETTE,
    GraphOptions,
    ModelCard,
    Precision,
    Provenance,
    Structure,
)
from leuda_deploy.scans.recipe import Depth, FixedIntensity, Recipe, SliceAxis

NOT_STATED = "not stated"
SUM_WITHIN = 1e-3  # of 1, that the scores of a softmax add up to


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What the graph says of itself, and what it did with a window of noise.

    window  (h, w), or (d, h, w) of a 3D graph
    """

    window: tuple[int, ...]
    classes: int
    output: Literal["logits", "probabilities"]
    precision: Precision
    opset: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """What no graph says.

    slice_spacing_mm  of a 3D graph
    clip, fixed       percentiles; or low, high, shift, scale in scanner units instead of them
    """

    name: str
    modality: str
    structures: Sequence[str]
    axis: SliceAxis
    spacing_mm: tuple[float, float] | Literal["native"]
    slice_spacing_mm: float | Literal["native"] = "native"
    clip: tuple[float, float] = (0.0, 98.0)
    normalisation: Literal["zscore", "minmax"] = "zscore"
    fixed: FixedIntensity | None = None
    licence: str = NOT_STATED


def facts_of(path: Path, window: tuple[int, ...] | None = None) -> GraphFacts:
    """Read a graph and run it once. window: of a graph that takes any.

    Raises ModelError for a graph that leuda cannot use; InputError if a window has to be chosen,
    or cannot be.
    """
    graph = read_graph(path)
    ort = import_onnx_runtime()
    ort.set_default_logger_severity(4)
    try:
        session = ort.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own types share no other base
        raise ModelError(f"ONNX Runtime cannot run {path}: {one_line(error)}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed"
        )
    shape = [*inputs[0].shape]
    if len(shape) not in (4, 5) or (isinstance(shape[1], int) and shape[1] != 1):
        raise ModelError(
            f"{path} reads {shape}; leuda gives (B, 1, h, w), or (B, 1, d, h, w): one channel"
        )
    chosen = _window(shape[2:], window, path)
    noise = np.random.default_rng(0).normal(size=(1, 1, *chosen)).astype(np.float32)
    try:
        (scores,) = session.run(None, {inputs[0].name: noise})
    except Exception as error:  # ONNX Runtime's own types share no other base
        raise ModelError(
            f"{path} cannot read a window of {chosen}: {one_line(error)}; --window says another"
        ) from error
    if scores.ndim != noise.ndim or scores.shape[2:] != chosen or scores.shape[1] < 2:
        raise ModelError(
            f"{path} gives scores {scores.shape} of windows {noise.shape}; needed is one score a "
            "pixel and class, background first"
        )
    softmax = scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() < SUM_WITHIN
    return GraphFacts(
        window=chosen,
        classes=int(scores.shape[1]),
        output="probabilities" if softmax else "logits",
        precision=precision_of(graph),
        opset=next((entry.version for entry in graph.opset_import if not entry.domain), 1),
    )


def _window(stated: list[Any], asked: tuple[int, ...] | None, path: Path) -> tuple[int, ...]:
    sides = [side if isinstance(side, int) else None for side in stated]
    if asked is None:
        found = [side for side in sides if side is not None]
        if len(found) < len(sides):
            raise InputError(
                f"{path} takes any window: say --window {'SLICES,' * (len(sides) - 2)}ROWS,COLUMNS"
            )
        return tuple(found)
    fits = len(asked) == len(sides) and all(
        side in (None, want) for side, want in zip(sides, asked, strict=True)
    )
    if not fits:
        raise InputError(f"--window {asked}: {path} reads {stated}")
    return asked


def card_of(facts: GraphFacts, said: Said) -> ModelCard:
    """The card of a graph. Raises InputError for what no card can say."""
    if len(said.structures) != facts.classes - 1:
        raise InputError(
            f"the graph scores {facts.classes} classes, background and {facts.classes - 1} "
            f"structures; named are {len(said.structures)}: {', '.join(said.structures)}"
        )
    depth, plane = facts.window[:-2], facts.window[-2:]
    try:
        return ModelCard(
            name=said.name,
            modality=said.modality,
            recipe=Recipe(
                slice_axis=said.axis,
                spacing_mm=said.spacing_mm,
                window=(plane[0], plane[1]),
                clip_percentiles=said.clip,
                normalisation="fixed" if said.fixed else said.normalisation,
                fixed=said.fixed,
            ),
            structures=tuple(
                Structure(name=name, value=value, colour=PALETTE[(value - 1) % len(PALETTE)])
                for value, name in enumerate(said.structures, start=1)
            ),
            feed="target",
            precision=facts.precision,
            options=GraphOptions(output=facts.output),
            depth=Depth(slices=depth[0], spacing_mm=said.slice_spacing_mm) if depth else None,
            opset=facts.opset,
            licence=said.licence,
            provenance=Provenance(
                method=NOT_STATED,
                network=NOT_STATED,
                cohort=NOT_STATED,
                cohort_sha256=NOT_STATED,
                config={},
                seed=0,
                steps=0,
                created=datetime.now(UTC).date().isoformat(),
                versions={},
            ),
            sha256=NOT_STATED,
        )
    except ValidationError as error:
        raise InputError(f"this makes no model card: {describe(error)}") from error

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

    window   (h, w), or (d, h, w) of a 3D graph
    channels  how many scans it reads together
    scores   of a pixel: of background and each structure; or, of regions, of each structure
    regions  they are of regions that may overlap: it has one, or they are after a sigmoid
    """

    window: tuple[int, ...]
    channels: int
    scores: int
    regions: bool
    output: Literal["logits", "probabilities"]
    precision: Precision
    opset: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """What no graph says.

    regions           the structures may overlap; None: as the graph shows
    channels          names of the scans that it reads together; none: one
    slice_spacing_mm  of a 3D graph
    clip, fixed       percentiles; or low, high, shift, scale in scanner units instead of them
    """

    name: str
    modality: str
    structures: Sequence[str]
    axis: SliceAxis
    spacing_mm: tuple[float, float] | Literal["native"]
    regions: bool | None = None
    channels: Sequence[str] = ()
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
    if len(shape) not in (4, 5):
        raise ModelError(f"{path} reads {shape}; leuda gives (B, C, h, w), or (B, C, d, h, w)")
    channels = shape[1] if isinstance(shape[1], int) else 1
    chosen = _window(shape[2:], window, path)
    noise = np.random.default_rng(0).normal(size=(1, channels, *chosen)).astype(np.float32)
    try:
        (scores,) = session.run(None, {inputs[0].name: noise})
    except Exception as error:  # ONNX Runtime's own types share no other base
        raise ModelError(
            f"{path} cannot read a window of {chosen}: {one_line(error)}; --window says another"
        ) from error
    if scores.ndim != noise.ndim or scores.shape[2:] != chosen:
        raise ModelError(
            f"{path} gives scores {scores.shape} of windows {noise.shape}; needed is one score a "
            "pixel and class, background first, or a pixel and region"
        )
    within = bool(scores.min() >= 0 and scores.max() <= 1)
    softmax = within and bool(np.abs(scores.sum(axis=1) - 1).max() < SUM_WITHIN)
    alone = scores.shape[1] == 1
    return GraphFacts(
        window=chosen,
        channels=channels,
        scores=int(scores.shape[1]),
        regions=alone or (within and not softmax),
        output="probabilities" if within else "logits",
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
    regions = facts.regions if said.regions is None else said.regions
    wanted = facts.scores - (not regions)
    if len(said.structures) != wanted:
        what = "regions" if regions else "structures, and background"
        raise InputError(
            f"the graph scores {wanted} {what}; named are {len(said.structures)}: "
            f"{', '.join(said.structures)}"
        )
    if len(said.channels) != (facts.channels if facts.channels > 1 else 0):
        named = f"named are {len(said.channels)}: {', '.join(said.channels) or '--channels T1,T2'}"
        raise InputError(f"the graph reads {facts.channels} scan(s) together; {named}")
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
                outside="zero" if said.channels else "floor",
                normalisation="fixed" if said.fixed else said.normalisation,
                fixed=said.fixed,
            ),
            channels=tuple(said.channels),
            structures=tuple(
                Structure(name=name, value=value, colour=PALETTE[(value - 1) % len(PALETTE)])
                for value, name in enumerate(said.structures, start=1)
            ),
            feed="target",
            precision=facts.precision,
            options=GraphOptions(output=facts.output, regions=regions),
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

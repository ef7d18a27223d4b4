"""`leuda export`: a run or a graph -> an export folder, proven."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from leuda_deploy.cli import JsonOption, app
from leuda_deploy.cli.app import HAND_OVER
from leuda_train.cli.need import need_torch

Kind = Literal["run", "onnx", "nnunet", "monai"]
ExportPrecision = Literal["fp32", "fp16", "bf16", "int8"]
Blending = Literal["gaussian", "constant"]


class Axis(StrEnum):  # typer takes no list of a Literal
    """Of the window, along which `infer --mirror` may mirror it."""

    ROWS = "rows"
    COLUMNS = "columns"


@app.command(rich_help_panel=HAND_OVER)
def export(
    source: Annotated[
        Path | None, typer.Argument(help="A finished run, or an exported *.onnx file.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="exports/NAME. Default: the *.onnx file's own folder."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="Of an *.onnx from elsewhere: its model card, as exports/NAME/card.json."
        ),
    ] = None,
    from_nnunet: Annotated[
        Path | None,
        typer.Option(help="In place of SOURCE: a model folder of nnU-Net, TRAINER__PLANS__CONFIG."),
    ] = None,
    from_monai: Annotated[
        Path | None,
        typer.Option(
            help="In place of SOURCE: a MONAI bundle with models/model.onnx or models/model.ts."
        ),
    ] = None,
    region_order: Annotated[
        str | None,
        typer.Option(
            help="Of --from-monai, where structures overlap: their names, the largest first, each "
            "shown over those before it."
        ),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(help="Of --from-nnunet: 0, or 0,1,2, or all. Default: the finished ones."),
    ] = None,
    precision: Annotated[
        ExportPrecision, typer.Option(help="Written into the graph, and proven.")
    ] = "fp32",
    dynamic_window: Annotated[
        bool, typer.Option("--dynamic-window", help="Other window sizes than the recipe's, too.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The softmax is inside the graph.")
    ] = False,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Of windows, where a slice has several.")
    ] = 0.5,
    blending: Annotated[Blending, typer.Option(help="Of their scores.")] = "gaussian",
    mirror: Annotated[
        list[Axis] | None,
        typer.Option(help="A mirrored window means the same (no left and right): allow --mirror."),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine.")] = False,
    trt_target: Annotated[
        str,
        typer.Option(help="this-machine, or ahead of time, without a GPU: rtx-ampere,rtx-ada,..."),
    ] = "this-machine",
    trt_batch: Annotated[int, typer.Option(min=1, help="Largest batch of the engine.")] = 8,
    trt_workspace_mb: Annotated[int, typer.Option(min=1, help="The builder's memory.")] = 1024,
    prove: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scans to compare an engine on, or with --from-nnunet the export, and to prove "
            "the search on. Default for a run: its own slices, and its unlabelled target scans."
        ),
    ] = None,
    search: Annotated[
        bool | None,
        typer.Option(
            "--search/--no-search",
            help="Prove that scoring few slices finds all there is, or refuse; or do not try, nor "
            "whole slices, nor less air. Default: on where it is proven.",
        ),
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(help="Also write it into this Triton model repository.")
    ] = None,
    monai: Annotated[
        Path | None,
        typer.Option(help="Also write it as a MONAI bundle's metadata and graph, DIR/NAME."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(help="Private key (PEM, Ed25519): sign the export, for leuda verify --key."),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            help="TOML file: which DICOM series of a study the model is for, kept in its card."
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "not stated",
    as_json: JsonOption = False,
) -> None:
    """Write a model and prove it, or refuse.  [dim]A run needs: leuda\\[train].[/dim]"""
    origin, kind = _origin(source, from_nnunet, from_monai)
    if kind != "onnx" and not (kind == "monai" and (origin / "models" / "model.onnx").is_file()):
        need_torch("leuda export")
    from leuda_deploy.cli.show import export_summary
    from leuda_deploy.export.to_tensorrt import engine_targets
    from leuda_deploy.machine.progress import show_progress
    from leuda_deploy.model.card import GraphOptions
    from leuda_deploy.model.tiling import Tiling
    from leuda_deploy.scans.dicom.rules import NO_RULES, read_rules
    from leuda_train.export.request import ExportRequest, export_as_asked

    targets = (  # refused before the long work
        engine_targets(trt_target.split(","), batch=trt_batch, workspace_mb=trt_workspace_mb)
        if trt
        else []
    )
    request = ExportRequest(
        source=origin,
        kind=kind,
        output=output,
        card=card,
        precision=precision,
        graph=GraphOptions(
            dynamic_window=dynamic_window, output="probabilities" if probabilities else "logits"
        ),
        tiling=Tiling(
            overlap=overlap, blending=blending, mirror=tuple(axis.value for axis in mirror or ())
        ),
        series=NO_RULES if rules is None else read_rules(rules),
        licence=licence,
        folds=tuple(fold.split(",")) if fold else (),
        region_order=tuple(name.strip() for name in (region_order or "").split(",") if name),
        targets=tuple(targets),
        prove=tuple(prove or ()),
        search=search,
        triton=triton,
        monai=monai,
        sign=sign,
    )
    model, written = export_as_asked(request, show_progress)
    summary = export_summary(model, written)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    for key, value in summary["lines"]:
        typer.echo(f"{key:<9}{value}")


def _origin(
    source: Path | None, from_nnunet: Path | None, from_monai: Path | None
) -> tuple[Path, Kind]:
    """What is exported, and which kind of thing it is. Raises InputError unless it is one."""
    from leuda_deploy.errors import InputError

    given: list[tuple[Path, Kind]] = []
    if source is not None:
        given.append((source, "onnx" if source.suffix == ".onnx" else "run"))
    if from_nnunet is not None:
        given.append((from_nnunet, "nnunet"))
    if from_monai is not None:
        given.append((from_monai, "monai"))
    if len(given) != 1:
        raise InputError(
            "name one thing to export: RUN, MODEL.onnx, --from-nnunet FOLDER or --from-monai BUNDLE"
        )
    return given[0]

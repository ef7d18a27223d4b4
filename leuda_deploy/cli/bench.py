"""`leuda bench`: command line -> time and memory by engine, and a gate against earlier results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuda_deploy.cli.app import USE, JsonOption, app, say

if TYPE_CHECKING:
    from leuda_deploy.bench.accuracy import LabelledScans

# cohort.toml -> its labelled target scans: the training half, which reads cohorts, enters itself
cohort_readers: list[Callable[[Path], LabelledScans]] = []


@app.command(rich_help_panel=USE)
def bench(
    model: Annotated[
        Path | None,
        typer.Option(
            help="Export folder or *.onnx file. Default: the phantom model that comes with leuda."
        ),
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(
            help="cohort.toml: also Dice by engine and precision, on its labelled target scans."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="all, or names separated by commas: ort-cpu,openvino.")
    ] = "all",
    shape: Annotated[str, typer.Option(help="Voxels of the made-up scan.")] = "512x512x100",
    rounds: Annotated[int, typer.Option(help="Timed rounds, after a first one.", min=1)] = 5,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: the cores that it may use.", min=1)
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the results to this JSON file, and a chart (PNG) beside it."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Earlier results (JSON) to compare with.")
    ] = None,
    limit: Annotated[
        float, typer.Option(help="Allowed ratio of time and memory to the earlier ones.", min=1.0)
    ] = 1.2,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that leuda bench did not write.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Time and memory by engine and stage, on this machine.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.bench.bench import bench as run_bench
    from leuda_deploy.bench.bench import parse_shape, read_earlier, regressions
    from leuda_deploy.bench.saved import plan_saved, save_bench
    from leuda_deploy.bench.shown import show_bench
    from leuda_deploy.errors import MissingExtraError
    from leuda_deploy.model.export_folder import default_model

    if save:
        plan_saved(save, inputs=[path for path in (model, against, cohort) if path], force=force)
    if against:
        read_earlier(against)  # what is no result is found before the work
    voxels = parse_shape(shape)
    if cohort and not cohort_readers:
        raise MissingExtraError("leuda bench --cohort", "leuda_train", "train")
    labelled = cohort_readers[0](cohort) if cohort else None
    result = run_bench(
        model or default_model(), engine, voxels, rounds=rounds, threads=threads, labelled=labelled
    )
    slower = regressions(result, against, limit) if against else []
    if save:
        save_bench(save, result)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        from rich.console import Console

        show_bench(result, Console())
    for line in slower:
        say(f"error: {line}")
    if slower:
        sys.exit(1)

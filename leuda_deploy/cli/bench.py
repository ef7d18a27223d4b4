"""`leuda bench`: command line -> time and memory by engine, and a gate against earlier results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leuda_deploy.cli.app import USE, JsonOption, app, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from leuda_deploy.bench.accuracy import Accuracy, LabelledScans
    from leuda_deploy.bench.bench import Result, Row

# cohort.toml -> its labelled target scans: the training half, which reads cohorts, enters itself
cohort_readers: list[Callable[[Path], LabelledScans]] = []

# key of a row -> its heading in the terminal
FIGURES = {
    "cold_seconds": "cold s",
    "p50_seconds": "p50 s",
    "p95_seconds": "p95 s",
    "p99_seconds": "p99 s",
    "voxels_per_second": "Mvoxel/s",
    "peak_mb": "peak MB",
}


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
    """Time and memory by engine and phase, on this machine.  [dim]Needs: nothing more.[/dim]"""
    from leuda_deploy.bench.bench import bench as run_bench
    from leuda_deploy.bench.bench import parse_shape, read_earlier, regressions
    from leuda_deploy.bench.saved import plan_saved, save_bench
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


def show_bench(result: Result, console: Console) -> None:
    """For people, in 80 columns: a column an engine, and what each engine is."""
    shape = "x".join(map(str, result["shape"]))
    console.print(f"{shape}, {result['rounds']} warm rounds, {result['machine']}\n")
    rows = result["engines"]
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_column(row["engine"], justify="right", no_wrap=True)
    for key, heading in FIGURES.items():
        table.add_row(heading, *(_figure(key, row) for row in rows))
    table.add_section()
    for phase in dict.fromkeys(phase for row in rows for phase in row["stage_seconds"]):
        table.add_row(phase, *(_phase(phase, row) for row in rows))
    console.print(table)
    console.print("\nby phase: busy seconds, overlapping; (nx): n times what memory or gzip take")
    for row in rows:
        console.print(f"{row['engine']}: {row['description']}", soft_wrap=True)
    if "accuracy" in result:
        _show_accuracy(result["accuracy"], console)


def _figure(key: str, row: Row) -> str:
    value: Any = dict(row)[key]
    if value is None:
        return "-"
    if key == "voxels_per_second":
        return f"{value / 1e6:.1f}"
    return f"{value:.0f}" if key == "peak_mb" else f"{value:.2f}"


def _phase(phase: str, row: Row) -> str:
    """Seconds of a phase, and how many times the least that they are."""
    seconds, least = row["stage_seconds"].get(phase), row["least_seconds"].get(phase)
    if seconds is None:
        return "-"
    times = f" ({seconds / least:.{1 if seconds < 10 * least else 0}f}x)" if least else ""
    return f"{seconds:.2f}{times}"


def _show_accuracy(rows: Sequence[Accuracy], console: Console) -> None:
    """For people: a row an engine and precision."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Dice", no_wrap=True)
    for heading in ("s a scan", "mean", *rows[0]["dice"]):
        table.add_column(heading, justify="right")
    for row in rows:
        values = (row["mean_dice"], *row["dice"].values())
        shown = ("-" if value is None else f"{value:.4f}" for value in values)
        seconds = f"{row['seconds_per_scan']:.2f}"
        table.add_row(f"{row['engine']} {row['precision']}", seconds, *shown)
    console.print(f"\n{rows[0]['scans']} labelled scans")
    console.print(table)
    for row in rows:
        line = f"{row['engine']} {row['precision']}: {row['description']}"
        console.print(line, soft_wrap=True, markup=False)

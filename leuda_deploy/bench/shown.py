"""what `leuda bench` measured -> tables for people, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from leuda_deploy.bench.accuracy import Accuracy
from leuda_deploy.bench.bench import Result, Row

# key of a row -> its heading in the terminal
FIGURES = {
    "cold_seconds": "cold s",
    "p50_seconds": "p50 s",
    "p95_seconds": "p95 s",
    "p99_seconds": "p99 s",
    "voxels_per_second": "Mvoxel/s",
    "peak_mb": "peak MB",
}


def show_bench(result: Result, console: Console) -> None:
    """For people, in 80 columns: a column an engine, and what each engine is."""
    shape = "x".join(map(str, result["shape"]))
    console.print(f"{shape}, {result['rounds']} warm rounds, {result['machine']}\n")
    rows = result["engines"]
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
        show_accuracy(result["accuracy"], console)


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


def show_accuracy(rows: Sequence[Accuracy], console: Console) -> None:
    """For people: a row an engine and precision."""
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

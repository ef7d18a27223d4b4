"""model + engines + shape -> seconds by stage and end to end, cold and warm, memory; a gate.

Every engine is measured in a process of its own, on the same made scan, from the .nii.gz on disk to
the labels on disk.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from leuda_deploy.bench.machine_floor import least_seconds
from leuda_deploy.engines.engine import EngineChoice, EngineName
from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.machine.memory import peak_bytes
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.choose_engine import installed_engines
from leuda_deploy.scans.nifti import write_labels, write_scan
from leuda_deploy.scans.volume import read_volume

PERCENTILES = (50, 95, 99)
# key of a row -> its heading in the terminal
FIGURES = {
    "cold_seconds": "cold s",
    **{f"p{p}_seconds": f"p{p} s" for p in PERCENTILES},
    "voxels_per_second": "Mvoxel/s",
    "peak_mb": "peak MB",
}


def bench(
    model: Path, engine: str, shape: tuple[int, int, int], *, rounds: int, threads: int | None
) -> dict[str, Any]:
    """Measure engines by name, or with "all" each that is installed; JSON-able.

    least_seconds of a row: what memory and gzip alone would take, by stage; see `limits`.

    Raises LeudaError if an engine that was named cannot run.
    """
    names = engine.split(",")
    for name in names:
        if name not in ("all", "auto", *get_args(EngineName)):
            known = ", ".join(("all", "auto", *get_args(EngineName)))
            raise InputError(f"no engine is called {name!r}; there are {known}")
    if "all" in names:
        names = list(installed_engines(ModelFile.open(model)))
    rows = []
    with tempfile.TemporaryDirectory(prefix="leuda-bench-") as folder:
        scan = Path(folder) / "scan.nii.gz"
        write_made_scan(scan, shape)
        for name in names:
            row = _in_a_process(name, model, scan, rounds, threads)
            if not row.pop("settled"):  # its first round held the trials of this machine
                row = _in_a_process(name, model, scan, rounds, threads)
                del row["settled"]
            rows.append(row)
    return {
        "shape": list(shape),
        "rounds": rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "engines": rows,
    }


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "512x512x300" -> (512, 512, 300)."""
    try:
        x, y, z = (int(size) for size in text.lower().split("x"))
    except ValueError as error:
        raise InputError(f"--shape reads like 512x512x300, not {text!r}") from error
    if min(x, y, z) < 1:
        raise InputError(f"--shape has an axis without a voxel: {text}")
    return x, y, z


def write_made_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """An int16 CT of a noisy ball in air, so that gzip has as much to do as with a patient."""
    rng = np.random.default_rng(0)
    x, y, z = (np.linspace(-1, 1, size) for size in shape)
    voxels = np.empty(shape, np.int16, order="F")
    for k, height in enumerate(z):
        inside = x[:, None] ** 2 + y[None, :] ** 2 + 0.3 * height**2 < 0.7
        plane: NDArray[Any] = np.where(inside, 40.0, -1000.0) + rng.normal(0, 20, shape[:2])
        voxels[:, :, k] = plane.astype(np.int16)
    write_scan(path, voxels, np.diag([-0.75, -0.75, 1.0, 1.0]))


def _in_a_process(
    engine: str, model: Path, scan: Path, rounds: int, threads: int | None
) -> dict[str, Any]:
    """`measure` in a process of its own."""
    order = [engine, str(model), str(scan), str(rounds), str(threads or 0)]
    done = subprocess.run(
        [sys.executable, "-m", "leuda_deploy.bench.bench", *order],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LeudaError(f"{engine}: {said.removeprefix('error: ')}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def measure(
    engine: EngineChoice, model: Path, scan: Path, rounds: int, threads: int | None
) -> dict[str, Any]:
    """In this process: one cold round with the loading of the engine, then the warm ones."""
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    began = time.perf_counter()
    segmenter = Segmenter(model, Settings(engine=engine, threads=threads))
    settled = segmenter.settled
    for _ in range(rounds + 1):
        start = time.perf_counter() if totals else began
        volume = read_volume(scan)
        read = time.perf_counter()
        found = segmenter(volume)
        done = time.perf_counter()
        write_labels(scan.with_name(f"{engine}.nii.gz"), found.labels, volume, {})
        ended = time.perf_counter()
        totals.append(ended - start)
        spent = {"read": read - start, **found.seconds, "write": ended - done}
        for name, seconds in spent.items():
            stages.setdefault(name, []).append(seconds)
    warm = totals[1:]
    median = float(np.median(warm))
    stack, peak = segmenter.stack(volume), peak_bytes()
    least = least_seconds(scan, stack, found.labels, 1 + len(segmenter.card.structures))
    return {
        "engine": engine,
        "settled": settled,
        "description": segmenter.engine_for(stack).description,
        "cold_seconds": round(totals[0], 4),
        **{f"p{p}_seconds": round(float(np.percentile(warm, p)), 4) for p in PERCENTILES},
        "voxels_per_second": round(volume.raw.size / median),
        "stage_seconds": {n: round(float(np.median(s[1:])), 4) for n, s in stages.items()},
        "least_seconds": {stage: float(f"{seconds:.3g}") for stage, seconds in least.items()},
        "peak_mb": None if peak is None else round(peak / 1e6, 1),
        "batch": segmenter.plan(stack).batch,
    }


def show_bench(result: dict[str, Any], console: Console) -> None:
    """For people, in 80 columns: a column an engine, and what each engine is."""
    shape = "x".join(map(str, result["shape"]))
    console.print(f"{shape}, {result['rounds']} warm rounds, {result['machine']}\n")
    rows = result["engines"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_column(row["engine"], justify="right", no_wrap=True)
    for key, heading in FIGURES.items():
        table.add_row(heading, *(_figure(key, row[key]) for row in rows))
    table.add_section()
    for stage in dict.fromkeys(stage for row in rows for stage in row["stage_seconds"]):
        table.add_row(stage, *(_stage(row, stage) for row in rows))
    console.print(table)
    console.print("\nby stage: busy seconds, overlapping; (nx): n times what memory or gzip take")
    for row in rows:
        console.print(f"{row['engine']}: {row['description']}", soft_wrap=True)


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "voxels_per_second":
        return f"{value / 1e6:.1f}"
    return f"{value:.0f}" if key == "peak_mb" else f"{value:.2f}"


def _stage(row: dict[str, Any], stage: str) -> str:
    """Seconds of a stage, and how many times the least that they are."""
    seconds, least = row["stage_seconds"].get(stage), row["least_seconds"].get(stage)
    if seconds is None:
        return "-"
    times = f" ({seconds / least:.{1 if seconds < 10 * least else 0}f}x)" if least else ""
    return f"{seconds:.2f}{times}"


def regressions(now: dict[str, Any], before: Path, limit: float) -> list[str]:
    """Where `now` takes more than `limit` times the time or memory of an earlier result file."""
    try:
        earlier = json.loads(before.read_text())
        rows = {row["engine"]: row for row in earlier["engines"]}
        same = earlier["shape"] == now["shape"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{before} is no result of `leuda bench`: {error}") from error
    if not same:
        raise InputError(f"{before} was measured on {earlier['shape']}, this on {now['shape']}")
    found = []
    for row in now["engines"]:
        old = rows.get(row["engine"])
        for figure in ("p50_seconds", "peak_mb"):
            if old and old.get(figure) and row[figure] > limit * old[figure]:
                times = row[figure] / old[figure]
                found.append(
                    f"{row['engine']}: {figure} {old[figure]} -> {row[figure]}, "
                    f"{times:.2f} times; allowed {limit:g}"
                )
    return found


if __name__ == "__main__":
    name_, model_, scan_, rounds_, threads_ = sys.argv[1:]
    assert name_ in ("auto", *get_args(EngineName))
    try:
        row_ = measure(
            name_,  # type: ignore[arg-type]  # checked above
            Path(model_),
            Path(scan_),
            int(rounds_),
            int(threads_) or None,
        )
    except LeudaError as error_:
        sys.exit(f"error: {error_}")
    sys.stdout.write(json.dumps(row_))

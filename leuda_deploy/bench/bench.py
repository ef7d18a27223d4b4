"""model + engines + shape -> seconds by phase and end to end, cold and warm, memory; a gate.

Every engine is measured in a process of its own, on the same made scan, from the .nii.gz on disk to
the labels on disk.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from leuda_deploy.bench.accuracy import Accuracy, LabelledScans, accuracy, check_fits
from leuda_deploy.bench.machine_floor import least_seconds
from leuda_deploy.engines.engine import EngineChoice, EngineName
from leuda_deploy.engines.threads import usable_cores
from leuda_deploy.errors import InputError, describe
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.isolated import run_isolated
from leuda_deploy.machine.memory import peak_bytes
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.proof.choose_engine import installed_engines
from leuda_deploy.scans.nifti import write_labels, write_scan

GATED = ("p50_seconds", "peak_mb")
MADE_AFFINE = np.diag([-0.75, -0.75, 1.0, 1.0])


class Row(TypedDict):
    """Figures of one engine.

    stage_seconds  median busy seconds by phase of the work; phases overlap
    least_seconds  what memory and gzip alone would take for them (see machine_floor.py)
    """

    engine: EngineChoice
    description: str
    cold_seconds: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    voxels_per_second: int
    stage_seconds: dict[str, float]
    least_seconds: dict[str, float]
    peak_mb: float | None
    batch: int


class Result(TypedDict):
    """What `leuda bench` measured; JSON-able.

    accuracy  Dice by engine and precision, if a cohort was named
    """

    shape: list[int]
    rounds: int
    machine: str
    load_average: float
    engines: list[Row]
    accuracy: NotRequired[list[Accuracy]]


_Figure = Annotated[float, Field(ge=0, lt=1e12)]


class _EarlierRow(BaseModel):
    """What is compared of a `Row` from a file."""

    engine: str
    p50_seconds: _Figure | None = None
    peak_mb: _Figure | None = None


class _Earlier(BaseModel):
    """What is compared of a `Result` from a file."""

    shape: list[int]
    engines: list[_EarlierRow]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A figure of an engine that is worse than it was."""

    engine: str
    figure: str
    before: float
    now: float
    limit: float

    def __str__(self) -> str:
        times = self.now / self.before
        return (
            f"{self.engine}: {self.figure} {self.before} -> {self.now}, {times:.2f} times; "
            f"allowed {self.limit:g}"
        )


def bench(
    model: Path,
    engine: str,
    shape: tuple[int, int, int],
    *,
    rounds: int,
    threads: int | None,
    labelled: LabelledScans | None = None,
) -> Result:
    """Measure engines by name ("ort-cpu,openvino"), or each that is installed ("all").

    On a made scan of this shape; and on labelled scans, if there are some, also how right they are.

    Raises:
        LeudaError: An engine that was named does not exist or cannot run, or the labels are of
            other structures than the model's.
    """
    opened, names = ModelFile.open(model), _named(engine)
    if "all" in names:
        names = list(installed_engines(opened))
    if labelled is not None:
        check_fits(opened, labelled)  # before the long work
    rows = []
    with tempfile.TemporaryDirectory(prefix="leuda-bench-") as folder:
        scan = Path(folder) / "scan.nii.gz"
        write_made_scan(scan, shape)
        for name in names:
            settings = Settings(engine=name, threads=threads)
            settled, row = run_isolated(None, measure, opened, settings, scan, rounds)
            if not settled:  # its first round held the trials of this machine
                _, row = run_isolated(None, measure, opened, settings, scan, rounds)
            rows.append(row)
    result = Result(
        shape=list(shape),
        rounds=rounds,
        machine=f"{platform.machine()}, {usable_cores():g} cores",
        load_average=os.getloadavg()[0],
        engines=rows,
    )
    if labelled is not None:
        result["accuracy"] = accuracy(opened, names, labelled, threads=threads)
    return result


def _named(engines: str) -> list[Any]:
    """The engines of a list with commas; "all" may be among them."""
    names, known = engines.split(","), ("all", "auto", *get_args(EngineName))
    for name in names:
        if name not in known:
            raise InputError(f"no engine is called {name!r}; there are {', '.join(known)}")
    return names


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "512x512x300" -> (512, 512, 300). Raises InputError."""
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
    write_scan(path, voxels, MADE_AFFINE)


def measure(model: ModelFile, settings: Settings, scan: Path, rounds: int) -> tuple[bool, Row]:
    """In this process: one cold round with the loading of the engine, then the warm ones.

    Returns:
        Whether all trials of this machine had been made before, and the figures.
    """
    totals: list[float] = []
    phases: dict[str, list[float]] = {}
    began = time.perf_counter()
    segmenter = Segmenter(model, settings)
    settled = segmenter.settled
    for _ in range(rounds + 1):
        start, clock = time.perf_counter() if totals else began, Clock()
        with clock("read"):
            volume = segmenter.read(scan)
        found = segmenter(volume)
        with clock("write"):
            write_labels(scan.with_name(f"{settings.engine}.nii.gz"), found.labels, volume, {})
        totals.append(time.perf_counter() - start)
        for phase, seconds in {**clock.seconds, **found.seconds}.items():
            phases.setdefault(phase, []).append(seconds)
    stack, peak = segmenter.stack(volume), peak_bytes()
    least = least_seconds(scan, stack, found.labels, segmenter.card.score_count)
    p50, p95, p99 = np.percentile(totals[1:], (50, 95, 99)).tolist()
    return settled, Row(
        engine=settings.engine,
        description=segmenter.engine_for(stack).description,
        cold_seconds=round(totals[0], 4),
        p50_seconds=round(p50, 4),
        p95_seconds=round(p95, 4),
        p99_seconds=round(p99, 4),
        voxels_per_second=round(volume.raw.size / p50),
        stage_seconds={
            phase: round(float(np.median(phases[phase][1:])), 4)
            for phase in ("read", *found.seconds, "write")
        },
        least_seconds={phase: float(f"{seconds:.3g}") for phase, seconds in least.items()},
        peak_mb=None if peak is None else round(peak / 1e6, 1),
        batch=segmenter.plan(stack).batch,
    )


def read_earlier(path: Path) -> dict[str, Any]:
    """A result file of `leuda bench`.

    Raises:
        InputError: The file is no result.
    """
    earlier = read_json(path)
    try:
        _Earlier.model_validate(earlier)
    except ValidationError as error:
        raise InputError(f"{path} is no result of `leuda bench`: {describe(error)}") from error
    whole: dict[str, Any] = earlier
    return whole


def regressions(now: Result, before: Path, limit: float) -> list[Regression]:
    """Where `now` takes more than `limit` times the time or memory of an earlier result file.

    Raises:
        InputError: The file is no result, or one of a scan of another shape.
    """
    earlier = read_earlier(before)
    rows = {row["engine"]: row for row in earlier["engines"]}
    same = earlier["shape"] == now["shape"]
    if not same:
        raise InputError(f"{before} was measured on {earlier['shape']}, this on {now['shape']}")
    found = []
    for row in now["engines"]:
        old = rows.get(row["engine"], {})
        for figure in GATED:
            was, value = old.get(figure), dict(row)[figure]
            if was and isinstance(value, float) and value > limit * was:
                found.append(
                    Regression(
                        engine=row["engine"], figure=figure, before=was, now=value, limit=limit
                    )
                )
    return found

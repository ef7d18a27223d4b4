"""scan file + engine -> labels, picture, and a report of what was found and what really ran."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leuda_deploy.engines.engine import Engine
from leuda_deploy.inference.memory_plan import MemoryPlan
from leuda_deploy.inference.segment import Segmentation, segment, volumes_ml
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.jobs.find_jobs import picture_path, report_path
from leuda_deploy.jobs.overlay import draw_overlay
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.memory import peak_bytes
from leuda_deploy.machine.progress import show_progress
from leuda_deploy.scans.intensity import Intensity
from leuda_deploy.scans.likeness import likeness
from leuda_deploy.scans.nifti import check_label_path, write_labels, write_map
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume, read_volume


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `leuda infer` did to one scan.

    seconds         busy wall seconds by stage; they overlap, so they add up to more than
    total_seconds   end to end, from opening the scan to labels and picture written
    asked           frame, engine, precision and mirror as they were asked for
    low_confidence  share of the structures' voxels whose class has a probability below 0.7
    """

    scan: str
    labels: str
    overlay: str | None
    model: str
    model_sha256: str
    engine: str
    feed: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    volumes_ml: dict[str, float]
    seconds: dict[str, float]
    peak_memory_mb: float | None  # of the process so far; None where the system does not tell
    uncertainty: str | None = None
    scan_sha256: str | None = None
    asked: Mapping[str, object] | None = None
    low_confidence: float | None = None
    # clip limits, shift, scale and quartiles of this scan
    intensity: dict[str, float | tuple[float, ...]] | None = None
    # whether it looks like the target scans of training; None where the card does not know them
    domain: dict[str, bool | float | str] | None = None
    total_seconds: float | None = None
    predicted_peak_mb: float | None = None
    slab: int | None = None
    batch: int | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def infer_file(
    scan: Path,
    engine: Engine,
    output: Path,
    *,
    frame: int | None = None,
    batch: int = 8,
    overlay: bool = True,
) -> Report:
    """Read a scan, label it, write labels (and a PNG beside them), say what happened."""
    check_label_path(output, scan)
    clock, began = Clock(), time.perf_counter()
    with clock("read"):
        volume = read_volume(scan, frame=frame)
    found = segment_shown(
        Stack(volume, engine.card.recipe, window_depth=engine.card.depth), engine, batch=batch
    )
    return write_found(scan, volume, engine, found, output, clock, began=began, overlay=overlay)


def segment_shown(
    stack: Stack,
    engine: Engine,
    *,
    batch: int,
    slab: int | None = None,
    mirror: bool = False,
    uncertainty: bool = False,
) -> Segmentation:
    """`segment`, with its progress on stderr."""
    with show_progress(f"{stack.volume.name} on {engine.description}") as progress:
        scoring = Scoring(
            tiling=engine.card.tiling,
            batch=batch,
            slab=slab,
            mirror=mirror,
            probabilities=engine.card.probabilities,
        )
        return segment(stack, engine, scoring, uncertainty=uncertainty, progress=progress)


def write_found(
    scan: Path,
    volume: Volume,
    engine: Engine,
    found: Segmentation,
    output: Path,
    clock: Clock,
    *,
    began: float,
    overlay: bool = True,
    uncertainty: Path | None = None,
    scan_sha256: str | None = None,
    asked: Mapping[str, object] | None = None,
    plan: MemoryPlan | None = None,
) -> Report:
    """Labels, picture, entropy map and report of one scan -> files beside each other.

    The report, OUTPUT without its ending + .json, is written last: where it stands, all is done.
    """
    card = engine.card
    names = [structure.name for structure in card.structures]
    picture = picture_path(output) if overlay else None
    with clock("write"):
        write_labels(output, found.labels, volume, card.label_names)
        if uncertainty is not None and found.uncertainty is not None:
            write_map(uncertainty, found.uncertainty, volume)
    if picture is not None:
        with clock("overlay"):
            draw_overlay(picture, volume, found.labels, card)
    peak = peak_bytes()
    report = Report(
        scan=str(scan),
        labels=str(output),
        overlay=str(picture) if picture else None,
        uncertainty=str(uncertainty) if uncertainty else None,
        model=str(engine.path),
        model_sha256=engine.sha256,
        scan_sha256=scan_sha256,
        asked=asked,
        engine=engine.description,
        feed=card.feed,
        shape=volume.shape,
        spacing_mm=tuple(round(size, 4) for size in volume.spacing_mm),
        volumes_ml={
            name: round(millilitres, 3)
            for name, millilitres in volumes_ml(found.labels, volume, names).items()
        },
        low_confidence=round(found.low_confidence, 4),
        intensity=_rounded(found.intensity),
        domain=None if card.domain is None else asdict(likeness(found.intensity, card.domain)),
        seconds={name: round(s, 4) for name, s in {**found.seconds, **clock.seconds}.items()},
        total_seconds=round(time.perf_counter() - began, 4),
        peak_memory_mb=None if peak is None else round(peak / 1e6, 1),
        predicted_peak_mb=None if plan is None else round(plan.peak_bytes / 1e6, 1),
        slab=None if plan is None else plan.slab,
        batch=None if plan is None else plan.batch,
    )
    write_json(report_path(output), report.as_dict())
    return report


def _rounded(intensity: Intensity) -> dict[str, float | tuple[float, ...]]:
    quartiles = tuple(round(value, 4) for value in intensity.quartiles)
    limits = ("low", "high", "shift", "scale")
    return {name: round(getattr(intensity, name), 4) for name in limits} | {"quartiles": quartiles}


def show_report(report: Report, console: Console) -> None:
    """For people: structures with volumes, then what ran and where the time went."""
    table = Table("structure")
    table.add_column("mL", justify="right")
    for name, millilitres in report.volumes_ml.items():
        table.add_row(Text(name), f"{millilitres:.1f}")
    console.print(table)
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
    lines = [
        f"labels   {report.labels}",
        f"engine   {report.engine}",
        f"model    {report.model} (sha256 {report.model_sha256[:12]}, feed {report.feed})",
        f"time     {report.total_seconds or sum(report.seconds.values()):.2f} s; "
        f"by stage, overlapping: {stages}",
    ]
    if report.peak_memory_mb is not None:
        planned = report.predicted_peak_mb
        foretold = "" if planned is None else f", {planned:.0f} MB predicted"
        lines.append(f"memory   {report.peak_memory_mb:.0f} MB at its peak{foretold}")
    if report.low_confidence is not None:
        lines.append(f"doubts   {report.low_confidence:.1%} of the structures' voxels")
    if report.domain is not None:
        looks = "like" if report.domain["fits"] else "NOT like"
        lines.append(f"domain   {looks} the scans of training (z = {report.domain['z']})")
    if report.overlay:
        lines.append(f"look at  {report.overlay}")
    # markup off: rich would read "[x]" in a path or a name as its own
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)

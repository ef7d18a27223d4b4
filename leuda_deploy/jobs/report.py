"""a labelled scan -> label file, picture, and a report of what was found and what really ran."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leuda_deploy.engines.engine import Engine
from leuda_deploy.inference.memory_plan import MemoryPlan
from leuda_deploy.inference.segment import Segmentation, volumes_ml
from leuda_deploy.jobs.find_jobs import Job, picture_path, report_path
from leuda_deploy.jobs.overlay import draw_overlay
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.memory import peak_bytes
from leuda_deploy.scans.intensity import Intensity
from leuda_deploy.scans.likeness import likeness
from leuda_deploy.scans.nifti import write_labels, write_map
from leuda_deploy.scans.stack import Stack

if TYPE_CHECKING:
    from leuda_deploy.scans.dicom import Series


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `leuda infer` did to one scan.

    seconds         busy wall seconds by stage; they overlap, so they add up to more than
    total_seconds   end to end, from opening the scan to labels and picture written
    peak_memory_mb  of the process so far; None if the OS does not report it
    asked           frame, engine, precision and mirror as they were asked for
    low_confidence  share of the structures' voxels whose class has a probability below 0.7
    intensity       clip limits, shift, scale and quartiles of this scan
    domain          whether it looks like the target scans of training; None if the card does not
                    describe them
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
    peak_memory_mb: float | None
    uncertainty: str | None
    scan_sha256: str
    asked: Mapping[str, object]
    low_confidence: float
    intensity: dict[str, float | tuple[float, ...]]
    domain: dict[str, bool | float | str] | None
    total_seconds: float
    predicted_peak_mb: float
    slab: int
    batch: int

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """A scan that was read, as the model's recipe has it.

    stack        the scan; its voxels are read, its intensities fitted
    series       where it is a DICOM series
    scan_sha256  of the file, or of the series' files
    asked        what was asked for that decides the labels
    clock        seconds by stage so far
    began        `time.perf_counter()` when the work on it began
    """

    job: Job
    stack: Stack
    series: Series | None
    scan_sha256: str
    asked: Mapping[str, object]
    clock: Clock
    began: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """A scan that was labelled, before anything is written."""

    scan: PreparedScan
    engine: Engine
    plan: MemoryPlan
    found: Segmentation


def write_results(result: Result, *, overlay: bool) -> Report:
    """Write labels, picture, entropy map, DICOM SEG and report of one scan.

    The report, OUTPUT without its ending + .json, is written last: where it stands, all is done.

    Args:
        result: What was found.
        overlay: Whether to draw a picture beside the labels.
    """
    scan, found, card = result.scan, result.found, result.engine.card
    job, volume, clock = scan.job, scan.stack.volume, scan.clock
    picture = picture_path(job.output) if overlay else None
    with clock("write"):
        if scan.series is not None and job.seg is not None:
            from leuda_deploy.jobs.dicom_seg import write_dicom_seg

            write_dicom_seg(job.seg, found.labels, scan.series, card)
        write_labels(job.output, found.labels, volume, card.label_names)
        if job.uncertainty is not None and found.uncertainty is not None:
            write_map(job.uncertainty, found.uncertainty, volume)
    if picture is not None:
        with clock("overlay"):
            draw_overlay(picture, volume, found.labels, card)
    report = _report(result, picture)
    write_json(report_path(job.output), report.as_dict())
    return report


def _report(result: Result, picture: Path | None) -> Report:
    scan, found, card = result.scan, result.found, result.engine.card
    job, volume, peak = scan.job, scan.stack.volume, peak_bytes()
    names = [structure.name for structure in card.structures]
    millilitres = volumes_ml(found.labels, volume, names)
    return Report(
        scan=str(job.scan),
        labels=str(job.output),
        overlay=str(picture) if picture else None,
        uncertainty=str(job.uncertainty) if job.uncertainty else None,
        model=str(result.engine.path),
        model_sha256=result.engine.sha256,
        scan_sha256=scan.scan_sha256,
        asked=scan.asked,
        engine=result.engine.description,
        feed=card.feed,
        shape=volume.shape,
        spacing_mm=tuple(round(size, 4) for size in volume.spacing_mm),
        volumes_ml={name: round(volume_ml, 3) for name, volume_ml in millilitres.items()},
        low_confidence=round(found.low_confidence, 4),
        intensity=_rounded(found.intensity),
        domain=None if card.domain is None else asdict(likeness(found.intensity, card.domain)),
        seconds={name: round(s, 4) for name, s in {**found.seconds, **scan.clock.seconds}.items()},
        total_seconds=round(time.perf_counter() - scan.began, 4),
        peak_memory_mb=None if peak is None else round(peak / 1e6, 1),
        predicted_peak_mb=round(result.plan.peak_bytes / 1e6, 1),
        slab=result.plan.slab,
        batch=result.plan.batch,
    )


def _rounded(intensity: Intensity) -> dict[str, float | tuple[float, ...]]:
    quartiles = tuple(round(value, 4) for value in intensity.quartiles)
    limits = ("low", "high", "shift", "scale")
    return {name: round(getattr(intensity, name), 4) for name in limits} | {"quartiles": quartiles}

"""a labelled scan -> label file, picture, and a report of what was found and what really ran."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leuda_deploy.engines.engine import Engine
from leuda_deploy.errors import LeudaError, keep_traceback, one_line
from leuda_deploy.inference.memory_plan import MemoryPlan
from leuda_deploy.inference.segment import Segmentation, volumes_ml
from leuda_deploy.jobs.dicom_out.objects import makers
from leuda_deploy.jobs.find_jobs import DICOM_ENDINGS, Job, picture_path
from leuda_deploy.jobs.outputs import JobWriter, region_role
from leuda_deploy.jobs.picture.flags import Flag, flags_of
from leuda_deploy.jobs.picture.overlay import Shown, draw_overlay
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.memory import peak_bytes
from leuda_deploy.model.card import Structure
from leuda_deploy.model.dice_curve import predict_all
from leuda_deploy.model.regions import region_mask
from leuda_deploy.scans.formats.seg_nrrd import ENDING as SEG_NRRD
from leuda_deploy.scans.formats.seg_nrrd import write_seg_nrrd
from leuda_deploy.scans.intensity.likeness import likeness
from leuda_deploy.scans.nifti import write_labels, write_map
from leuda_deploy.scans.stack import Stack

if TYPE_CHECKING:
    from leuda_deploy.jobs.dicom_out import Findings
    from leuda_deploy.jobs.dicom_out.seg import SegType
    from leuda_deploy.scans.dicom import Series

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `leuda infer` did to one scan.

    channels        what a model with channels read as which: a file or a frame; None: one scan
    regions         the mask of each structure that may overlap others, by its name; None: not asked
                    for. Its voxels in `labels` are those that no later structure covers
    written         SHA-256 of each file that was written, by its field: labels, overlay, ...
    not_written     why a file that was asked for is not there, by its field
    seconds         busy wall seconds by phase, which overlap
    total_seconds   end to end, from opening the scan to labels and picture written
    peak_memory_mb  of the process so far; None if the OS does not report it
    implausible     what is odd about the scan's geometry; volumes depend on it
    asked           frame, engine, precision, mirror and clean-up as they were asked for
    low_confidence  share of the structures' voxels whose class has a probability below 0.7
    predicted_dice  of what was found, from its probabilities: not measured. None: no dice_curve in
                    the card, or the scan is unlike those of training
    intensity       clip limits, shift, scale and quartiles of this scan
    cleaned_ml      mL of islands taken away, by structure; None: not asked for, or no rules for it
    flags           what is odd about a structure's labels, e.g. that the scan's border cuts it
    threads         CPU threads that the engine computed on; None: a GPU did
    same_bytes      whether the scan is sure to get the same labels again here; no GPU promises that
    slices          how many the scan has on the model grid, how many were scored, and searched;
                    why all were scored (full_because), else null: the others are background
    windows         pixels (h, w) of a slice on the model grid, of the part of it that was scored
                    (the rest is air), and of the windows it was scored in, and their count
    series          of DICOM: which series it is, its phase, and what was done to mend its slices;
                    then the labels lie on the mended grid, those of a DICOM SEG on the slices
    domain          whether it looks like the target scans of training; None: the card has no such
    """

    scan: str
    channels: Mapping[str, str] | None
    labels: str
    regions: Mapping[str, str] | None
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
    dicom_seg: str | None
    dicom_sr: str | None
    rtstruct: str | None
    written: Mapping[str, str]
    not_written: Mapping[str, str]
    scan_sha256: str
    implausible: Sequence[str]
    asked: Mapping[str, object]
    low_confidence: float
    predicted_dice: Mapping[str, float] | None
    intensity: dict[str, float | tuple[float, ...]]
    cleaned_ml: Mapping[str, float] | None
    flags: tuple[Flag, ...]
    domain: dict[str, bool | float | str] | None
    slices: Mapping[str, int | str | None]
    windows: Mapping[str, tuple[int, ...]]
    series: Mapping[str, object] | None
    threads: int | None
    same_bytes: bool
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
    implausible  what is odd about its geometry
    asked        what was asked for that decides the labels
    clock        seconds by phase so far
    began        `time.perf_counter()` when the work on it began
    """

    job: Job
    stack: Stack
    series: Series | None
    scan_sha256: str
    implausible: Sequence[str]
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


def write_results(result: Result, *, overlay: bool, seg_type: SegType = "binary") -> Report:
    """Write labels, entropy map, picture, DICOM objects and report of one scan.

    The report, OUTPUT without its ending + .json, is written last: where it stands, all is done.
    A picture or DICOM object that cannot be made costs no labels: the report says why.

    Args:
        result: What was found.
        overlay: Whether to draw a picture beside the labels.
        seg_type: How a DICOM SEG holds its segments.
    """
    scan, found = result.scan, result.found
    job, volume, clock, series = scan.job, scan.stack.volume, scan.clock, scan.series
    writer, not_written = JobWriter(job), dict[str, str]()
    with clock("write"):
        writer.write(
            "labels",
            job.output,
            lambda path: _write_labels(path, result),
        )
        if found.regions is not None:
            for structure in result.engine.card.structures:
                if structure.name in job.regions:
                    _write_region(writer, result, structure)
        if job.uncertainty is not None and (entropy := found.uncertainty) is not None:
            writer.write(
                "uncertainty", job.uncertainty, lambda path: write_map(path, entropy, volume)
            )

    def write_if_possible(role: str, path: Path, make: Callable[[Path], None]) -> None:
        try:
            writer.write(role, path, make)
        except Exception as error:  # noqa: BLE001  (whatever it is, the labels are written)
            kept = isinstance(error, LeudaError | OSError | MemoryError)
            not_written[role] = one_line(error) if kept else keep_traceback(error)
            _log.warning("%s was not written: %s", path, not_written[role])

    if overlay:
        with clock("overlay"):
            write_if_possible(
                "overlay",
                picture_path(job.output),
                lambda path: draw_overlay(path, _shown(result)),
            )
    if series is not None and job.dicom:
        with clock("DICOM"):
            for what, make in makers(_findings(result, series), seg_type).items():
                if what in job.dicom:
                    write_if_possible(what, job.dicom[what], make)
    report = _report(result, writer.written, not_written)
    writer.finish(report.as_dict())
    return report


def _findings(result: Result, series: Series) -> Findings:
    from leuda_deploy.jobs.dicom_out import Findings

    return Findings(
        labels=result.found.labels,
        series=series,
        card=result.engine.card,
        model_sha256=result.engine.sha256,
        low_confidence=result.found.low_confidence,
    )


def _write_region(writer: JobWriter, result: Result, structure: Structure) -> None:
    assert result.found.regions is not None
    mask = region_mask(result.found.regions, structure.value)
    volume = result.scan.stack.volume
    writer.write(
        region_role(structure.name),
        result.scan.job.regions[structure.name],
        lambda path: write_labels(path, mask, volume, {1: structure.name}),
    )


def _write_labels(path: Path, result: Result) -> None:
    found, volume, card = result.found, result.scan.stack.volume, result.engine.card
    if result.scan.job.output.name.endswith(SEG_NRRD):
        write_seg_nrrd(path, found.labels, volume.affine, card.structures)
    else:
        write_labels(path, found.labels, volume, card.label_names)


def _shown(result: Result) -> Shown:
    found, card = result.found, result.engine.card
    return Shown(
        volume=result.scan.stack.volume,
        labels=found.labels,
        structures=card.structures,
        modality=card.modality,
        slice_axis=card.recipe.slice_axis,
        likeness=None if card.domain is None else likeness(found.intensity, card.domain),
        flags=flags_of(
            found.labels, card.structures, result.scan.stack.volume.voxel_ml, found.regions
        ),
        regions=found.regions,
    )


def _report(result: Result, written: Mapping[str, str], not_written: Mapping[str, str]) -> Report:
    scan, found, card = result.scan, result.found, result.engine.card
    job, volume, peak = scan.job, scan.stack.volume, peak_bytes()
    names = [structure.name for structure in card.structures]
    millilitres = volumes_ml(found.labels, volume, names, found.regions)
    domain = None if card.domain is None else likeness(found.intensity, card.domain)
    curve = card.dice_curve if domain is None or domain.fits else None
    return Report(
        scan=str(job.scan),
        channels=job.files_of(card.channels) if card.channels else None,
        labels=str(job.output),
        regions={name: str(path) for name, path in job.regions.items()} or None,
        overlay=str(picture_path(job.output)) if "overlay" in written else None,
        uncertainty=str(job.uncertainty) if "uncertainty" in written else None,
        **{what: str(job.dicom[what]) if what in written else None for what in DICOM_ENDINGS},
        written=dict(written),
        not_written=dict(not_written),
        model=str(result.engine.path),
        model_sha256=result.engine.sha256,
        scan_sha256=scan.scan_sha256,
        implausible=list(scan.implausible),
        asked=scan.asked,
        engine=result.engine.description,
        threads=result.engine.threads,
        same_bytes=result.engine.threads is not None,
        feed=card.feed,
        shape=volume.shape,
        spacing_mm=tuple(round(size, 4) for size in volume.spacing_mm),
        volumes_ml={name: round(volume_ml, 3) for name, volume_ml in millilitres.items()},
        low_confidence=round(found.low_confidence, 4),
        predicted_dice=predict_all(curve, found.expected_dice, card.label_names),
        intensity=found.intensity.rounded(),
        cleaned_ml=None
        if (cleaned := found.cleaned_ml) is None
        else {card.label_names[value]: round(ml, 3) for value, ml in cleaned.items()},
        flags=tuple(flags_of(found.labels, card.structures, volume.voxel_ml, found.regions)),
        domain=None if domain is None else asdict(domain),
        series=None if scan.series is None else scan.series.about(job.frame),
        seconds={name: round(s, 4) for name, s in {**found.seconds, **scan.clock.seconds}.items()},
        slices={
            "all": scan.stack.depth,
            "scored": found.scored,
            "searched": found.searched,
            "full_because": found.full_because,
        },
        windows=found.windows(scan.stack.grid_shape, card.tiling.overlap),
        total_seconds=round(time.perf_counter() - scan.began, 4),
        peak_memory_mb=None if peak is None else round(peak / 1e6, 1),
        predicted_peak_mb=round(result.plan.peak_bytes / 1e6, 1),
        slab=result.plan.slab,
        batch=result.plan.batch,
    )

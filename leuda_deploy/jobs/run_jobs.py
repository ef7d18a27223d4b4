"""jobs + a Segmenter -> labels and reports; a bad scan stops no other.

read and prepare (the next scan)  thread 1   |   label  thread 2   |   write  caller
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from leuda_deploy.errors import InputError, LeudaError, keep_traceback
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.dicom_out.seg import SegType
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.flags import implausible_geometry
from leuda_deploy.jobs.outputs import is_done, plan_job_outputs, scan_sha256
from leuda_deploy.jobs.report import PreparedScan, Report, Result, write_results
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.scans.likeness import likeness
from leuda_deploy.scans.volume import read_volume

_log = logging.getLogger(__name__)
Item = TypeVar("Item")
Before = TypeVar("Before")
After = TypeVar("After")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: its report, or that it was done before, or why it failed."""

    job: Job
    report: Report | None = None
    skipped: bool = False
    error: str | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "scan": str(self.job.scan),
            "labels": str(self.job.output),
            "skipped": self.skipped,
            "error": self.error,
            "report": self.report.as_dict() if self.report else None,
        }


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for besides the settings of the model.

    force          replace files that leuda did not write; scans never are
    allow_partial  label what is there of a DICOM series that is not whole
    seg_type       how a DICOM SEG holds its segments
    """

    force: bool = False
    allow_partial: bool = False
    seg_type: SegType = "binary"


NO_WISHES = Wishes()


def run_job(
    job: Job,
    segmenter: Segmenter,
    *,
    overlay: bool = True,
    show: ShowProgress = show_nothing,
    wishes: Wishes = NO_WISHES,
) -> Report:
    """Label one scan and write its results; see `run_jobs`.

    Raises:
        InputError: The scan cannot be used, needs too much memory, or its outputs cannot be
            written.
        ModelError: The model gives scores that are not finite.
    """
    scan = _prepare(job, segmenter, overlay=overlay, skip_done=False, wishes=wishes)
    assert scan is not None
    result = _label(scan, segmenter, show)
    return write_results(result, overlay=overlay, seg_type=wishes.seg_type)


def run_jobs(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    *,
    overlay: bool = True,
    skip_done: bool = True,
    show: ShowProgress = show_nothing,
    wishes: Wishes = NO_WISHES,
) -> Generator[Outcome, None, None]:
    """Work the jobs off in order: the next scan is read while one is labelled, another written.

    With a memory budget, which holds for one scan at a time, nothing is read or written meanwhile.
    What is wrong with one scan becomes its outcome's `error`; the others go on.

    Args:
        jobs: The scans and where their results go.
        segmenter: The model.
        overlay: Whether to draw a picture beside the labels.
        skip_done: Whether to leave out scans that this model has labelled before as asked.
        show: Shows how far a scan is.
        wishes: What else the user asked for.
    """
    overlapped = len(jobs) > 1 and segmenter.settings.max_bytes is None

    def together(items: Iterable[Item]) -> Iterator[Item]:
        return prefetch(items) if overlapped else iter(items)

    def prepare(job: Job) -> PreparedScan | Outcome:
        scan = _prepare(job, segmenter, overlay=overlay, skip_done=skip_done, wishes=wishes)
        return scan or Outcome(job=job, skipped=True)

    def label(scan: PreparedScan) -> Result:
        return _label(scan, segmenter, show, overlapped=overlapped)

    def write(result: Result) -> Outcome:
        report = write_results(result, overlay=overlay, seg_type=wishes.seg_type)
        return Outcome(job=result.scan.job, report=report)

    # `map`, unlike a loop, keeps no hold of a scan that it has handed on: memory is free at once
    prepared = map(_step(prepare), ((job, job) for job in jobs))
    labelled = map(_step(label), together(prepared))
    for _, outcome in map(_step(write), together(labelled)):
        yield outcome


def _step(
    work: Callable[[Before], After | Outcome],
) -> Callable[[tuple[Job, Before | Outcome]], tuple[Job, After | Outcome]]:
    """One step of every job, unless an earlier step has settled it; a failure settles it."""

    def step(given: tuple[Job, Before | Outcome]) -> tuple[Job, After | Outcome]:
        job, before = given
        if isinstance(before, Outcome):
            return job, before
        try:
            return job, work(before)
        except (LeudaError, OSError, MemoryError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            return job, Outcome(job=job, error=line)
        except Exception as error:  # noqa: BLE001  (one bad scan stops no other, whatever it raises)
            return job, Outcome(job=job, error=f"{job.scan}: {keep_traceback(error)}")

    return step


def _prepare(
    job: Job, segmenter: Segmenter, *, overlay: bool, skip_done: bool, wishes: Wishes
) -> PreparedScan | None:
    """Read a scan and fit its intensities; None if it was done before and may be skipped."""
    began, clock = time.perf_counter(), Clock()
    inputs = [segmenter.model.path]
    plan_job_outputs([job], overlay=overlay, force=wishes.force, inputs=inputs)
    asked = segmenter.asked | {"frame": job.frame}
    if wishes.allow_partial:
        asked["allow_partial"] = True
    if "dicom_seg" in job.dicom and wishes.seg_type != "binary":
        asked["seg_type"] = wishes.seg_type
    series = None
    with clock("read"):
        if job.dicom and not job.scan.is_dir() and job.scan.exists():
            option = next(iter(job.dicom)).replace("_", "-")
            raise InputError(f"--{option} is for a DICOM series; {job.scan} is not one")
        sha256 = scan_sha256(job)
        done = skip_done and is_done(job, sha256, segmenter.sha256, asked, overlay=overlay)
        if done:
            return None
        _check_memory(job, segmenter, wishes)
        if job.scan.is_dir():
            from leuda_deploy.scans.dicom import read_series

            series = read_series(job.scan, allow_partial=wishes.allow_partial)
            volume = series.volume
        else:
            volume = read_volume(job.scan, frame=job.frame)
    implausible = implausible_geometry(volume)
    for doubt in implausible:
        _log.warning("%s: %s", job.scan, doubt)
    with clock("normalise"):
        stack = segmenter.stack(volume)
        _ = stack.intensity  # refused here if it cannot be normalised, before anything is logged
    return PreparedScan(
        job=job,
        stack=stack,
        series=series,
        scan_sha256=sha256,
        implausible=implausible,
        asked=asked,
        clock=clock,
        began=began,
    )


def _check_memory(job: Job, segmenter: Segmenter, wishes: Wishes) -> None:
    """Refuse a scan that needs more memory than it may take, where its header alone shows that."""
    if segmenter.settings.max_bytes is None or not segmenter.settled:
        return
    if job.scan.is_dir():
        from leuda_deploy.scans.dicom import read_series

        header = read_series(job.scan, allow_partial=wishes.allow_partial, voxels=False).volume
    else:
        header = read_volume(job.scan, frame=job.frame, voxels=False)
    segmenter.plan(segmenter.stack(header), uncertainty=job.uncertainty is not None)


def _label(
    scan: PreparedScan, segmenter: Segmenter, show: ShowProgress, *, overlapped: bool = False
) -> Result:
    job, stack, card = scan.job, scan.stack, segmenter.card
    uncertainty = job.uncertainty is not None
    # overlapped: one scan labelled, one read, one written
    scans, results = (3, 2) if overlapped else (1, 1)
    plan = segmenter.plan(stack, uncertainty=uncertainty, scans=scans, results=results)
    _log.info("plan     %s", plan)
    if card.domain is not None and not (like := likeness(stack.intensity, card.domain)).fits:
        _log.warning("%s does not look like the scans of training: %s", job.scan, like)
    engine = segmenter.engine_for(stack)
    with show(f"{stack.volume.name} on {engine.description}") as progress:
        found = segmenter.segment(stack, plan, uncertainty=uncertainty, progress=progress)
    return Result(scan=scan, engine=engine, plan=plan, found=found)

"""jobs + a Segmenter -> labels and reports; a bad scan stops no other.

read and prepare (the next scan)  thread 1   |   label  thread 2   |   write  caller
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from leuda_deploy.errors import LeudaError, keep_traceback
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.prepare import NO_WISHES, Wishes, prepare
from leuda_deploy.jobs.report import PreparedScan, Report, Result, write_results
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.scans.likeness import likeness

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
    scan = prepare(job, segmenter, overlay=overlay, skip_done=False, wishes=wishes)
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

    def read(job: Job) -> PreparedScan | Outcome:
        scan = prepare(job, segmenter, overlay=overlay, skip_done=skip_done, wishes=wishes)
        return scan or Outcome(job=job, skipped=True)

    def label(scan: PreparedScan) -> Result:
        return _label(scan, segmenter, show, overlapped=overlapped)

    def write(result: Result) -> Outcome:
        report = write_results(result, overlay=overlay, seg_type=wishes.seg_type)
        return Outcome(job=result.scan.job, report=report)

    # `map`, unlike a loop, keeps no hold of a scan that it has handed on: memory is free at once
    prepared = map(_step(read), ((job, job) for job in jobs))
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

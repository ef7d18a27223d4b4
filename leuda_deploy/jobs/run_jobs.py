"""one scan or a folder of them + a Segmenter -> labels and reports; a bad scan stops no other.

read (the next scan)  thread 1   |   label  thread 2   |   write  caller
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.inference.memory_plan import MemoryPlan
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.inference.segment import Segmentation
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import Job, is_done, scan_sha256
from leuda_deploy.jobs.report import Report, segment_shown, show_report, write_found
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.files import check_writable
from leuda_deploy.scans.likeness import likeness
from leuda_deploy.scans.nifti import check_label_path
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume, read_volume

if TYPE_CHECKING:
    from leuda_deploy.scans.dicom import Series


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: a report, or the one line that says why there is none."""

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


@dataclass(kw_only=True)
class _Case:
    """A scan on its way."""

    job: Job
    asked: dict[str, object]
    clock: Clock
    began: float
    sha256: str = ""
    stack: Stack | None = None
    series: Series | None = None
    found: Segmentation | None = None
    plan: MemoryPlan | None = None
    done: Outcome | None = None


def run_jobs(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    *,
    overlay: bool = True,
    skip_done: bool = True,
    say: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Work the jobs off in order: the next scan is read while one is labelled, another written.

    A memory budget holds for one scan at a time: with one, nothing is read or written meanwhile.

    Whatever is wrong with one scan becomes its outcome's `error`; the others go on.
    """
    overlapped = len(jobs) > 1 and segmenter.settings.max_bytes is None
    together = prefetch if overlapped else iter

    def read() -> Iterator[_Case]:
        for job in jobs:
            asked = segmenter.asked | {"frame": job.frame}
            case = _Case(job=job, asked=asked, clock=Clock(), began=time.perf_counter())
            yield _guarded(case, lambda case: _read(case, segmenter, skip_done))

    def label() -> Iterator[_Case]:
        for case in together(read()):
            yield _guarded(case, lambda case: _label(case, segmenter, overlapped, say))

    for case in together(label()):
        _guarded(case, lambda case: _write(case, segmenter, overlay))
        assert case.done is not None
        yield case.done


def _guarded(case: _Case, work: Callable[[_Case], None]) -> _Case:
    """Do one stage of a case, unless an earlier one has settled it."""
    if case.done is None:
        try:
            work(case)
        except (LeudaError, OSError, MemoryError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            case.done = Outcome(job=case.job, error=line)
    if case.done is not None:
        case.stack = case.series = case.found = None  # free the memory at once
    return case


def _read(case: _Case, segmenter: Segmenter, skip_done: bool) -> None:
    job = case.job
    check_label_path(job.output, job.scan)
    for target in (job.output, job.uncertainty, job.seg):
        if target is not None:
            check_writable(target)  # before hours of work, not after
    with case.clock("read"):
        case.sha256 = scan_sha256(job.scan)
        if skip_done and is_done(job, case.sha256, segmenter.sha256, case.asked):
            case.done = Outcome(job=job, skipped=True)
            return
        if segmenter.settings.max_bytes is not None and segmenter.settled and job.scan.is_file():
            # refused before it is read
            header = read_volume(job.scan, frame=job.frame, voxels=False)
            segmenter.plan(segmenter.stack(header), uncertainty=job.uncertainty is not None)
        volume = _read_scan(case)
    with case.clock("normalise"):
        case.stack = segmenter.stack(volume)
        _ = case.stack.intensity  # what cannot be normalised is refused before anything is said


def _read_scan(case: _Case) -> Volume:
    job = case.job
    if job.scan.is_dir():
        from leuda_deploy.scans.dicom import read_series

        case.series = read_series(job.scan)
        return case.series.volume
    if job.seg is not None:
        raise InputError(f"--dicom-seg refers to a DICOM series; {job.scan} is none")
    return read_volume(job.scan, frame=job.frame)


def _label(case: _Case, segmenter: Segmenter, overlapped: bool, say: Callable[[str], None]) -> None:
    assert case.stack is not None
    wanted = case.job.uncertainty is not None
    # at once: one scan labelled, one read, one written
    plan = case.plan = segmenter.plan(
        case.stack, uncertainty=wanted, scans=3 if overlapped else 1, results=2 if overlapped else 1
    )
    say(f"plan     {plan}")
    domain = segmenter.card.domain
    if domain is not None and not (like := likeness(case.stack.intensity, domain)).fits:
        say(f"warning: {case.job.scan} does not look like the scans of training: {like}")
    engine = segmenter.engine_for(case.stack)
    case.found = segment_shown(
        case.stack, engine, slab=plan.slab, batch=plan.batch, mirror=segmenter.settings.mirror,
        uncertainty=wanted,
    )  # fmt: skip


def _write(case: _Case, segmenter: Segmenter, overlay: bool) -> None:
    assert case.stack is not None
    assert case.found is not None
    if case.series is not None and case.job.seg is not None:
        from leuda_deploy.jobs.dicom_seg import write_dicom_seg

        with case.clock("write"):
            write_dicom_seg(case.job.seg, case.found.labels, case.series, segmenter.card)
    report = write_found(
        case.job.scan,
        case.stack.volume,
        segmenter.engine_for(case.stack),
        case.found,
        case.job.output,
        case.clock,
        began=case.began,
        overlay=overlay,
        uncertainty=case.job.uncertainty,
        scan_sha256=case.sha256,
        asked=case.asked,
        plan=case.plan,
    )
    case.done = Outcome(job=case.job, report=report)


def label_scan(
    job: Job, segmenter: Segmenter, overlay: bool, *, as_json: bool, say: Callable[[str], None]
) -> None:
    """`leuda infer SCAN`: one scan, its report on stdout. Raises InputError if it fails."""
    (outcome,) = run_jobs([job], segmenter, overlay=overlay, skip_done=False, say=say)
    if outcome.report is None:
        raise LeudaError(outcome.error)
    if as_json:
        print(json.dumps(outcome.report.as_dict(), indent=1))  # noqa: T201
    else:
        show_report(outcome.report, Console())


def label_folder(coming: Iterable[Outcome], *, as_json: bool, say: Callable[[str], None]) -> bool:
    """`leuda infer FOLDER`: all scans, a summary on stdout; whether every one of them is done."""
    outcomes = []
    for outcome in coming:
        outcomes.append(outcome)
        if outcome.error is not None:
            say(f"error: {outcome.error}")
    if as_json:
        print(json.dumps([outcome.as_dict() for outcome in outcomes], indent=1))  # noqa: T201
    else:
        show_outcomes(outcomes, Console())
    return all(outcome.error is None for outcome in outcomes)


def show_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """For people: a line a scan, then how many there are of each kind."""
    table = Table("scan", "")
    table.add_column("s", justify="right")
    table.add_column("mL", overflow="fold")
    for outcome in outcomes:
        report = outcome.report
        kind = "done" if report else "was done" if outcome.skipped else "failed"
        seconds = f"{report.total_seconds:.1f}" if report and report.total_seconds else ""
        found = (
            ", ".join(f"{name} {ml:.1f}" for name, ml in report.volumes_ml.items())
            if report
            else outcome.error or ""
        )
        table.add_row(Text(outcome.job.scan.name), kind, seconds, Text(found))
    console.print(table)
    failed = sum(outcome.error is not None for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    console.print(
        f"{len(outcomes) - failed - skipped} labelled, {skipped} were done before, {failed} failed"
    )

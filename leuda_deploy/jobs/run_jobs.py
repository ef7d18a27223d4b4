"""jobs + a Segmenter -> labels and reports; a bad scan stops no other.

read and prepare (the next scan)  thread 1   |   label  thread 2   |   write  caller
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from leuda_deploy.errors import LeudaError, keep_traceback, printable
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.find_jobs import Job, report_path
from leuda_deploy.jobs.outputs import plan_job_outputs
from leuda_deploy.jobs.prepare import NO_WISHES, Wishes, prepare, writing_bytes
from leuda_deploy.jobs.report import PreparedScan, Report, Result, write_results
from leuda_deploy.machine.files import atomic_path, file_sha256
from leuda_deploy.machine.outputs import Output
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.scans.intensity.likeness import likeness

_log = logging.getLogger(__name__)
# of a report, in the table of volumes
TABLE_FACTS = ("flags", "low_confidence", "total_seconds", "labels", "scan_sha256", "model_sha256")
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
    return _write(result, segmenter, overlay, wishes)


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
        report = _write(result, segmenter, overlay, wishes)
        return Outcome(job=result.scan.job, report=report)

    # `map`, unlike a loop, keeps no hold of a scan that it has handed on: memory is free at once
    prepared = map(_step(read), ((job, job) for job in jobs))
    labelled = map(_step(label), together(prepared))
    for _, outcome in map(_step(write), together(labelled)):
        yield outcome


def _write(result: Result, segmenter: Segmenter, overlay: bool, wishes: Wishes) -> Report:
    """Write the results, unless somebody put a file of theirs there while the network ran."""
    inputs = segmenter.model.files
    plan_job_outputs([result.scan.job], overlay=overlay, force=wishes.force, inputs=inputs)
    return write_results(result, overlay=overlay, seg_type=wishes.seg_type)


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
    plan = segmenter.plan(
        stack,
        uncertainty=uncertainty,
        scans=scans,
        results=results,
        writing=writing_bytes(job, stack.volume),
    )
    _log.info("plan     %s", plan)
    if card.domain is not None and not (like := likeness(stack.intensity, card.domain)).fits:
        _log.warning("%s does not look like the scans of training: %s", job.scan, like)
    engine = segmenter.engine_for(stack)
    with show(f"{stack.volume.name} on {engine.description}") as progress:
        found = segmenter.segment(stack, plan, uncertainty=uncertainty, progress=progress)
    return Result(scan=scan, engine=engine, plan=plan, found=found)


def volumes_output(folder: Path, shard: str = "1/1") -> Output:
    """The table of volumes of a folder of scans, as it is going to be written."""
    part, parts = shard.split("/")
    path = folder / ("volumes.csv" if parts == "1" else f"volumes_{part}of{parts}.csv")
    return Output(path=path, what="table of volumes", is_ours=_is_own_table)


def write_volumes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a table: a row a scan, a column a structure (mL), also of scans that were done before.

    The same outcomes give the same bytes. Beside it lies its hash, by which it is known as leuda's.
    """
    said = [_said(outcome) for outcome in outcomes]
    names = list(dict.fromkeys(name for each in said for name in each.get("volumes_ml", {})))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scan", "state", *(f"{name}_ml" for name in names), *TABLE_FACTS, "error"])
    for outcome, each in zip(outcomes, said, strict=True):
        state = "failed" if outcome.error else "was done" if outcome.skipped else "labelled"
        volumes = [each.get("volumes_ml", {}).get(name, "") for name in names]
        flags = "; ".join(f"{flag['structure']}: {flag['flag']}" for flag in each.get("flags", ()))
        facts = [flags, *(each.get(name, "") for name in TABLE_FACTS[1:])]
        row = [str(outcome.job.scan), state, *volumes, *facts, outcome.error or ""]
        table.writerow([_cell(value) for value in row])
    content = text.getvalue().encode()
    with atomic_path(_mark_path(path)) as temporary:
        temporary.write_text(hashlib.sha256(content).hexdigest())
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _said(outcome: Outcome) -> dict[str, Any]:
    """The report of a scan, also of one that was done before; empty if it failed."""
    if outcome.report is not None:
        return outcome.report.as_dict()
    try:
        return dict(read_json(report_path(outcome.job.output))) if outcome.skipped else {}
    except LeudaError:
        return {}


def _cell(value: object) -> str:
    """A cell that no program for tables takes for a formula."""
    text = printable(str(value), 1000)
    return f"'{text}" if text[:1] in ("=", "+", "@") else text


def _mark_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _is_own_table(path: Path) -> bool:
    try:
        return _mark_path(path).read_text() == file_sha256(path)
    except (OSError, ValueError):
        return False

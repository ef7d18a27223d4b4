"""jobs + settings -> the same jobs, worked off by several processes on one machine.

Each process has an engine of its own on its share of the processor's cores and of the memory
budget. What a scan's labels are depends on neither: they are those of one process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from leuda_deploy.engines import Precision
from leuda_deploy.errors import InputError
from leuda_deploy.jobs import Job
from leuda_deploy.scans import Outcome, run_jobs
from leuda_deploy.segmenter import EngineChoice, Segmenter

ON_THE_CPU = ("auto", "ort-cpu", "openvino")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `Segmenter` is opened with; the fields are its arguments."""

    model: Path
    engine: EngineChoice
    precision: Precision
    threads: int | None
    batch: int | None
    max_bytes: int | None
    max_gpu_bytes: int | None
    mirror: bool

    def segmenter(self, say: Callable[[str], None]) -> Segmenter:
        """A segmenter with these settings."""
        return Segmenter(**vars(self), say=say)

    def share(self, processes: int) -> Settings:
        """The settings of one of several processes that work at once."""
        cores = self.threads or os.cpu_count() or 1
        budget = self.max_bytes and self.max_bytes // processes
        return replace(self, threads=max(1, cores // processes), max_bytes=budget)


def spread(
    jobs: Sequence[Job], settings: Settings, processes: int, *, overlay: bool, skip_done: bool
) -> Iterator[Outcome]:
    """Work the jobs off in several processes; outcomes as they come, each scan's own.

    The first job goes alone, so that trials of engines are made once and on a quiet machine.
    A process that is killed takes the scans that were under way with it; each says so.
    Raises InputError for an engine on a GPU, where processes only get in each other's way.
    """
    if settings.engine not in ON_THE_CPU:
        raise InputError(f"--jobs is for engines on the CPU, not for {settings.engine}")
    processes = max(1, min(processes, len(jobs)))
    share = settings.share(processes)
    share.segmenter(_say)  # what cannot run is said once, before anything is started
    # spawned: threads of an engine do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _open, (share, overlay, skip_done)) as pool:
        pending: dict[Future[Outcome], Job] = {}
        for job in jobs:
            pending[_submitted(pool, job)] = job
            if len(pending) == 1:
                wait(pending)
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(future, pending.pop(future))


def _submitted(pool: ProcessPoolExecutor, job: Job) -> Future[Outcome]:
    try:
        return pool.submit(_work, job)
    except BrokenProcessPool as error:
        broken: Future[Outcome] = Future()
        broken.set_exception(error)
        return broken


def _outcome(future: Future[Outcome], job: Job) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(job=job, error=f"{job.scan}: a process was killed (out of memory?)")


# --- in each process

_opened: tuple[Segmenter, bool, bool]


def _open(settings: Settings, overlay: bool, skip_done: bool) -> None:
    global _opened
    _opened = settings.segmenter(_say), overlay, skip_done


def _work(job: Job) -> Outcome:
    segmenter, overlay, skip_done = _opened
    (outcome,) = run_jobs([job], segmenter, overlay=overlay, skip_done=skip_done, say=_say)
    return outcome


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201

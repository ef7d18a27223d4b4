"""jobs + settings -> the same jobs, worked off by several processes on one machine.

Each process has an engine of its own on its share of the processor's cores and of the memory
budget. What a scan's labels are depends on neither: they are those of one process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from leuda_deploy.engines.engine import ON_THE_CPU
from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.run_jobs import Outcome, run_jobs
from leuda_deploy.machine.memory import in_megabytes, resident_bytes
from leuda_deploy.model.model_file import ModelFile


def share_of(settings: Settings, processes: int) -> Settings:
    """The settings of one of several processes that work at once, beside this one.

    Raises InputError for a budget of which this process leaves nothing.
    """
    cores = settings.threads or os.cpu_count() or 1
    budget = settings.max_bytes
    if budget is not None:
        held = resident_bytes() or 0
        if budget <= held:
            raise InputError(
                f"--max-memory {in_megabytes(budget)} is no more than the {in_megabytes(held)} "
                "of the process that hands out the scans; give more, or leave out --jobs"
            )
        budget = (budget - held) // processes
    return replace(settings, threads=max(1, cores // processes), max_bytes=budget)


def spread(
    jobs: Sequence[Job],
    model: ModelFile,
    settings: Settings,
    processes: int,
    *,
    overlay: bool,
    skip_done: bool,
) -> Generator[Outcome, None, None]:
    """Work the jobs off in several processes; outcomes as they come, each scan's own.

    Jobs go one by one until trials of engines have been made, once and on a quiet machine.
    A process that is killed takes the scans that were under way with it, and each says so; the
    others go to new processes. Closed or interrupted, all processes stop and leave nothing half
    written.
    Raises InputError for an engine on a GPU, where processes only get in each other's way.
    """
    if settings.engine not in ("auto", *ON_THE_CPU):
        raise InputError(f"--jobs is for engines on the CPU, not for {settings.engine}")
    processes = max(1, min(processes, len(jobs)))
    # what cannot run is said once, before anything is started
    tried = Segmenter(model, share_of(settings, processes)).settled
    # again, of what is left now that this process has loaded all it does
    share = share_of(settings, processes)
    waiting = deque(jobs)
    while waiting:
        with _workers(processes, model, share, overlay, skip_done) as pool:
            under_way: dict[Future[Outcome], Job] = {}
            whole = True
            while under_way or (whole and waiting):
                room = processes if tried else 1
                while whole and waiting and len(under_way) < room:
                    try:
                        under_way[pool.submit(_work, waiting[0])] = waiting[0]
                        waiting.popleft()
                    except BrokenProcessPool:
                        whole = False
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    whole = whole and not isinstance(future.exception(), BrokenProcessPool)
                    outcome = _outcome(future, under_way.pop(future))
                    tried = tried or outcome.report is not None
                    yield outcome


@contextmanager
def _workers(
    processes: int, model: ModelFile, share: Settings, overlay: bool, skip_done: bool
) -> Iterator[ProcessPoolExecutor]:
    """A pool of which no process is left when the block is, however that ends."""
    # spawned: threads of an engine do not survive a fork
    context = multiprocessing.get_context("spawn")
    # nothing is sent: its end, closed or gone with this process, tells the others to stop
    leash, held = context.Pipe(duplex=False)
    asked = (model, share, overlay, skip_done, leash)
    with leash, ProcessPoolExecutor(processes, context, _open, asked) as pool, held:
        yield pool
        pool.shutdown()  # without hurry, where all is done


def _outcome(future: Future[Outcome], job: Job) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(job=job, error=f"{job.scan}: a process was killed (out of memory?)")


# --- in each process

_opened: tuple[Segmenter, bool, bool]


def _open(
    model: ModelFile, settings: Settings, overlay: bool, skip_done: bool, leash: Connection
) -> None:
    global _opened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that holds the leash
    threading.Thread(target=_follow, args=(leash,), daemon=True).start()
    _opened = Segmenter(model, settings), overlay, skip_done


def _follow(leash: Connection) -> None:
    with suppress(EOFError, OSError):
        leash.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _work(job: Job) -> Outcome:
    segmenter, overlay, skip_done = _opened
    with suppress(SystemExit):
        signal.signal(signal.SIGTERM, _stop)
        (outcome,) = run_jobs([job], segmenter, overlay=overlay, skip_done=skip_done, say=_say)
        if signal.signal(signal.SIGTERM, signal.SIG_DFL) is _stop:
            return outcome
    os._exit(1)  # told to stop; what was half written is removed


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what is removed is removed in peace
    raise SystemExit


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201

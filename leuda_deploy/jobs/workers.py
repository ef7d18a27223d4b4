"""jobs + settings -> outcomes, from several processes on one machine.

Each process has an engine of its own, on its share of the CPU cores and of the memory budget. The
labels are the same as from one process.

Each process is a standard executor of its own, so one that dies fails only its current scan. Pebble
5.2.3 was tried in its place. There, too, only that scan fails, but the death of an idle or starting
process breaks the whole pool, and a process in the middle of a scan outlives a parent that was
killed. So the pool is ours.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from leuda_deploy.engines.engine import ON_THE_CPU
from leuda_deploy.engines.threads import threads_for
from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.prepare import NO_WISHES, Wishes
from leuda_deploy.jobs.run_jobs import Outcome, run_jobs
from leuda_deploy.machine.isolated import keep_children_safe
from leuda_deploy.machine.memory import in_megabytes, resident_bytes
from leuda_deploy.machine.progress import ShowProgress, show_nothing
from leuda_deploy.machine.stop import SECONDS, end_now
from leuda_deploy.model.model_file import ModelFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What each process is started with.

    overlay    whether to draw a picture beside the labels
    skip_done  whether to leave out scans that were done before
    wishes     what else the user asked for
    set_up     called first in each process, e.g. to show its log
    show       shows how far a scan is

    The last two are functions of modules, so that they can be sent.
    """

    model: ModelFile
    settings: Settings
    overlay: bool = True
    skip_done: bool = True
    wishes: Wishes = NO_WISHES
    set_up: Callable[[], None] | None = None
    show: ShowProgress = show_nothing


def run_in_processes(
    jobs: Sequence[Job], orders: Orders, processes: int
) -> Generator[Outcome, None, None]:
    """Work the jobs off in several processes; outcomes come as scans are done.

    Until every trial of an engine has been made, one scan at a time: trials want a quiet machine.
    If a process dies, only its current scan fails. Closed or interrupted, all processes stop and
    leave nothing half written.

    Args:
        jobs: The scans and where their results go.
        orders: The model and the settings of all processes together.
        processes: How many processes at most.

    Raises:
        InputError: The engine runs on a GPU, where processes only get in each other's way, or
            cannot run; or the memory budget is too small.
    """
    if orders.settings.engine not in ("auto", *ON_THE_CPU):
        raise InputError(f"--jobs is for engines on the CPU, not for {orders.settings.engine}")
    processes = max(1, min(processes, len(jobs)))
    # what cannot run is refused once, before any process starts
    tried = Segmenter(orders.model, share_of(orders.settings, processes)).settled
    # again, of the memory that is left now that this process has loaded all it does
    orders = replace(orders, settings=share_of(orders.settings, processes))
    waiting = deque(jobs)
    under_way: dict[Future[Outcome], tuple[Job, _Worker]] = {}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")  # an engine's threads do not survive a fork
        # nothing is sent: its end, closed or gone with this process, tells the others to stop
        watched, held = context.Pipe(duplex=False)
        stack.enter_context(watched)
        free = [_Worker(orders, watched) for _ in range(processes)]
        every = list(free)
        for worker in every:
            stack.callback(worker.shut)
        stack.enter_context(held)
        while waiting or under_way:
            while waiting and len(under_way) < (processes if tried else 1):
                job, worker = waiting.popleft(), free.pop()
                under_way[worker.submit(job)] = job, worker
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                job, worker = under_way.pop(future)
                free.append(worker)
                outcome = _outcome(future, job)
                tried = tried or outcome.report is not None
                yield outcome
        for worker in every:
            worker.shut()  # before `held` closes: they end by themselves


def share_of(settings: Settings, processes: int) -> Settings:
    """The settings of one of several processes that work at once, beside this one.

    Raises:
        InputError: This process alone takes all of the memory budget.
    """
    cores = threads_for(settings.threads)
    budget = settings.max_bytes
    if budget is not None:
        held = resident_bytes() or 0
        if budget <= held:
            raise InputError(
                f"--max-memory {in_megabytes(budget)} is no more than the {in_megabytes(held)} "
                "of the process that hands out the scans; give more, or leave out --jobs"
            )
        budget = (budget - held) // processes
    return replace(settings, threads=max(1, cores // processes), max_bytes=budget, on_the_cpu=True)


class _Worker:
    """One process at a time, with an engine of its own; a new one if the last has died."""

    def __init__(self, orders: Orders, watched: Connection) -> None:
        self._orders = orders, watched
        self._executor = self._start()

    def submit(self, job: Job) -> Future[Outcome]:
        try:
            return self._executor.submit(_work, job)
        except BrokenProcessPool:  # it died with its last scan, or idle
            self.shut()
            self._executor = self._start()
            return self._executor.submit(_work, job)

    def shut(self) -> None:
        """Return when its process has ended."""
        self._executor.shutdown()

    def _start(self) -> ProcessPoolExecutor:
        keep_children_safe()
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, _open, self._orders)


def _outcome(future: Future[Outcome], job: Job) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(job=job, error=f"{job.scan}: its process was killed (out of memory?)")


# --- in each process

_opened: tuple[Segmenter, Orders]


def _open(orders: Orders, watched: Connection) -> None:
    global _opened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that holds the pipe
    threading.Thread(target=_stop_at_the_end_of, args=(watched,), daemon=True).start()
    if orders.set_up is not None:
        orders.set_up()
    _opened = Segmenter(orders.model, orders.settings), orders


def _stop_at_the_end_of(watched: Connection) -> None:
    with suppress(EOFError, OSError):
        watched.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS / 2)  # the main thread may be in the middle of long work, or waiting for it
    end_now(1)


def _work(job: Job) -> Outcome:
    segmenter, orders = _opened
    try:
        signal.signal(signal.SIGTERM, _stop)
        (outcome,) = run_jobs(
            [job],
            segmenter,
            overlay=orders.overlay,
            skip_done=orders.skip_done,
            show=orders.show,
            wishes=orders.wishes,
        )
        if signal.signal(signal.SIGTERM, signal.SIG_DFL) is not _stop:
            raise SystemExit
    except SystemExit:  # asked to stop
        end_now(1)
    return outcome


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what is removed is removed in peace
    raise SystemExit

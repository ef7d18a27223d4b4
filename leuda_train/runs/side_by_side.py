"""trainings in lanes -> their evaluations; every lane in a process and on cores of its own.

A small network makes poor use of a second core; two trainings side by side use both.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from leuda_deploy.engines.threads import usable_cores
from leuda_deploy.errors import LeudaError, keep_traceback
from leuda_deploy.machine.isolated import keep_children_safe
from leuda_deploy.machine.progress import Progress
from leuda_deploy.machine.stop import end_with_parent
from leuda_train.config.schema import TrainConfig
from leuda_train.data.cohort import Cohort
from leuda_train.runs.train import train

LOOK_SECONDS = 0.5  # between two looks at whether a process lives
STEPS = 1000  # of the joint progress
Work = Mapping[str, float]  # title of a stage, or how it begins -> its share of the time


@dataclass(frozen=True, kw_only=True)
class Training:
    """One call of `train`; see there. Its name is the method's."""

    cohort: Cohort
    config: TrainConfig
    out: Path
    cache: Path


Lane = Sequence[Training]
Evaluations = dict[str, dict[str, Any]]  # by method


class LaneError(LeudaError):
    """A lane's process ended otherwise than it should."""


class _Heard(Protocol):
    """Told how much of a lane's work is done, 0 to 1, and what is under way."""

    def __call__(self, share: float, note: str) -> None: ...


def train_lanes(lanes: Sequence[Lane], work: Work, progress: Progress) -> Evaluations:
    """Train every lane, in order within it, all lanes at once.

    Args:
        lanes: One lane alone is trained in this process. Whoever trains what two lanes need, a
            translation, makes the other wait.
        work: For the time left: what a stage takes, in any unit.
        progress: Shows the lane that is least far.

    Raises:
        LeudaError: Whatever a training raises; the other lanes are ended, and go on from their
            checkpoints when they are started again.
    """
    shares, notes = [0.0] * len(lanes), [""] * len(lanes)

    def heard(number: int, share: float, note: str) -> None:
        shares[number], notes[number] = share, note
        progress(round(STEPS * min(shares)), STEPS, "; ".join(note for note in notes if note))

    if len(lanes) == 1:
        return _train_lane(lanes[0], work, lambda share, note: heard(0, share, note))
    keep_children_safe()
    context = multiprocessing.get_context("spawn")
    messages: multiprocessing.Queue[tuple[int, str, Any]] = context.Queue()
    threads = max(1, int(usable_cores()) // len(lanes))
    evaluations: Evaluations = {}
    with ExitStack() as stack:
        processes = [
            context.Process(target=_lane, args=(n, lane, work, threads, messages), daemon=True)
            for n, lane in enumerate(lanes)
        ]
        for process in processes:
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        working = set(range(len(lanes)))
        while working:
            try:
                number, kind, value = messages.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                dead = [n for n in working if not processes[n].is_alive()]
                if dead and messages.empty():
                    code = processes[dead[0]].exitcode
                    raise LaneError(f"training ended with code {code} (out of memory?)") from None
                continue
            if kind == "error":
                raise value
            if kind == "done":
                evaluations |= value
                working.discard(number)
            else:
                heard(number, *value)
    return evaluations


def _lane(
    number: int,
    lane: Lane,
    work: Work,
    threads: int,
    messages: multiprocessing.Queue[tuple[int, str, Any]],
) -> None:
    """In a process of its own: train a lane and tell of it."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: whoever started it ends it
    torch.set_num_threads(threads)
    try:
        done = _train_lane(lane, work, lambda *heard: messages.put((number, "progress", heard)))
        messages.put((number, "done", done))
    except LeudaError as error:
        messages.put((number, "error", error))
    except Exception as error:  # noqa: BLE001  (said in one line, as errors are)
        messages.put((number, "error", LaneError(keep_traceback(error))))


def _train_lane(lane: Lane, work: Work, heard: _Heard) -> Evaluations:
    evaluations: Evaluations = {}
    every = sum(_work_of(training.config, work) for training in lane)
    before = 0.0
    for training in lane:
        method = training.config.method
        show = _show(method, before, every, work, heard)
        evaluations[method] = train(
            training.cohort, training.config, training.out, cache=training.cache, show=show
        )
        before += _work_of(training.config, work)
        heard(before / every, method)
    return evaluations


def _work_of(config: TrainConfig, work: Work) -> float:
    """What a whole training takes."""
    stages = [config.method, "test scans", *(["translation"] if config.uses_translation else [])]
    return sum(work[stage] for stage in stages)


def _show(
    method: str, before: float, every: float, work: Work, heard: _Heard
) -> Callable[[str], Any]:
    """A `ShowProgress` that tells how much of the lane is done."""
    gone = before

    @contextmanager
    def show(title: str) -> Iterator[Progress]:
        nonlocal gone
        own = next((share for stage, share in work.items() if title.startswith(stage)), 0.0)
        name = title if title.startswith(method) else f"{method}: {title}"

        def progress(done: int, total: int, note: str) -> None:
            heard((gone + own * done / max(total, 1)) / every, f"{name} {done}/{total}")

        yield progress
        gone += own

    return show

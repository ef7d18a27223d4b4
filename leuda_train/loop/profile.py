"""what runs -> where its time goes, for `leuda train --profile`, and the most memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from leuda_deploy.machine.memory import (
    forget_peak,
    peak_bytes,
    resident_bytes,
    resident_file_bytes,
)
from leuda_train.loop.hardware import give_back_freed_memory


class Clock:
    """Seconds by phase, and in all. On a GPU every border waits for the device."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wall = 0.0


_running: list[Clock] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name what runs within; the time counts only within `timed`."""
    if not _running:
        yield
        return
    clock, began = _running[-1], _now()
    yield
    clock.seconds[name] = clock.seconds.get(name, 0.0) + _now() - began


@contextmanager
def timed(wanted: bool = True) -> Iterator[Clock]:
    """Within, phases are timed, by the clock that is yielded; not at all if it is not wanted."""
    clock = Clock()
    if not wanted:
        yield clock
        return
    _running.append(clock)
    began = _now()
    try:
        yield clock
    finally:
        clock.wall = _now() - began
        _running.pop()


class PeakMemory:
    """The most that this process takes from now on, beyond what it holds: of the GPU, or of RAM.

    Pages of files do not count: the system can drop them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
        else:
            give_back_freed_memory()
            self.before = _without_files(resident_bytes()) if forget_peak() else None

    def bytes(self) -> int | None:
        """So far; None if the system does not report it."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _without_files(peak_bytes())  # of files, those that are held now
        return None if peak is None or self.before is None else max(0, peak - self.before)


def _without_files(held: int | None) -> int | None:
    files = resident_file_bytes()
    return None if held is None or files is None else held - files


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()

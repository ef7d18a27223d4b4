"""what runs -> where its time goes, for `leuda train --profile`; free when nobody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()

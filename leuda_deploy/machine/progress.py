"""long work -> one line on stderr that shows the stage, how far it is, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# (done, total, note)
Report = Callable[[int, int, str], None]
LOG_SECONDS = 20.0  # between lines where there is no terminal to draw a bar on


@contextmanager
def stage(name: str) -> Iterator[Report]:
    """Yield a function that reports progress: a bar on a terminal, else a line now and then."""
    began = time.monotonic()
    drawing = _bar(name) if sys.stderr.isatty() else _lines(name, began)
    with drawing as report:
        yield report
    print(f"  {name}: {time.monotonic() - began:.1f} s", file=sys.stderr)  # noqa: T201


@contextmanager
def _bar(name: str) -> Iterator[Report]:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=None, note="")

        def report(done: int, total: int, note: str) -> None:
            if note:
                bars.update(task, completed=done, total=total, note=note)
            else:
                bars.update(task, completed=done, total=total)

        yield report


@contextmanager
def _lines(name: str, began: float) -> Iterator[Report]:
    spoken = began

    def report(done: int, total: int, note: str) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken >= LOG_SECONDS and 0 < done < total:
            spoken = now
            left = (now - began) / done * (total - done)
            parts = (f"{done}/{total}", note, f"about {left:.0f} s left")
            line = f"  {name}: {', '.join(part for part in parts if part)}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    yield report

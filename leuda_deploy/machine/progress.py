"""long work -> one line on stderr: what is done, how far it is, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich import progress as rich_progress
from rich.console import Console

from leuda_deploy.errors import printable

# How far work is: (done, total, note), e.g. (3, 20, "patient 7"). The note may be empty.
Progress = Callable[[int, int, str], None]
# A title -> a context that yields the progress of the work under it: the type of `show_progress`.
ShowProgress = Callable[[str], AbstractContextManager[Progress]]
LINE_SECONDS = 20.0  # between two lines where there is no terminal to draw a bar on


def no_progress(done: int, total: int, note: str) -> None:
    """The progress that nobody looks at."""


@contextmanager
def show_nothing(title: str) -> Iterator[Progress]:
    """`show_progress` for nobody."""
    yield no_progress


def titled(show: ShowProgress, prefix: str) -> ShowProgress:
    """The same, every title of which begins with the prefix."""
    return lambda title: show(f"{prefix}: {title}")


@contextmanager
def show_progress(title: str) -> Iterator[Progress]:
    """Yield a callback that shows progress: a bar on a terminal, else a line now and then."""
    began, title = time.monotonic(), printable(title)  # a scan's name is in it
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with _bar(title, console) if sys.stderr.isatty() else _lines(title, console, began) as progress:
        yield progress
    console.print(f"  {title}: {time.monotonic() - began:.1f} s")


@contextmanager
def _bar(title: str, console: Console) -> Iterator[Progress]:
    columns = (
        rich_progress.TextColumn("  {task.description}", markup=False),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("gone,"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("left"),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None, note="")

        def progress(done: int, total: int, note: str) -> None:
            note = printable(note)
            if note:  # else the last note stays
                bars.update(task, completed=done, total=total, note=note)
            else:
                bars.update(task, completed=done, total=total)

        yield progress


@contextmanager
def _lines(title: str, console: Console, began: float) -> Iterator[Progress]:
    last = began

    def progress(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS and 0 < done < total:
            last = now
            left = (now - began) / done * (total - done)
            parts = (f"{done}/{total}", printable(note), f"about {left:.0f} s left")
            console.print(f"  {title}: {', '.join(part for part in parts if part)}")

    yield progress

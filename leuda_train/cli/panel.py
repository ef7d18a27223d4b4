"""a run under way -> one live panel in a terminal: stages, time left, losses, speed, memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.memory import resident_bytes
from leuda_deploy.machine.progress import Progress
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.loop.run_folder import RunFolder

BARS = "▁▂▃▄▅▆▇█"
WIDTH, MOST_TERMS = 40, 6  # of a sparkline; terms shown
READ_SECONDS = 2.0  # between two looks at the metrics


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as a line of bars, the newest at the right, from the least to the largest.

    On a logarithmic scale where all are positive: a loss falls fast, then slowly.
    """
    shown = list(values)[-width:]
    if min(shown) > 0:
        shown = [math.log(value) for value in shown]
    low, high = min(shown), max(shown)
    reach = (high - low) or 1.0
    return "".join(BARS[min(7, int(8 * (value - low) / reach))] for value in shown)


def clock(seconds: float) -> str:
    """ "4:05" or "1:04:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(kw_only=True)
class TrainingPanel:
    """Shows the stages of one run; `show` is a `ShowProgress`.

    steps  title of a stage -> its steps, in order, of those that are planned
    """

    folder: RunFolder
    steps: dict[str, int]
    console: Console = field(default_factory=lambda: Console(stderr=True))
    title: str = ""
    began: float = 0.0
    first: int = 0
    done: int = 0
    total: int = 0
    finished: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    read_at: float = 0.0

    @contextmanager
    def __call__(self, title: str) -> Iterator[Progress]:
        """Show a stage. Its last state leaves one quiet line."""
        self.title, self.began, self.first, self.done, self.total = title, time.monotonic(), 0, 0, 0
        with Live(
            get_renderable=lambda: self.draw() if self.title else Text(),
            console=self.console,
            refresh_per_second=2,
            transient=True,
        ):

            def progress(done: int, total: int, note: str) -> None:
                if note == "resumed":
                    self.first = done
                self.done, self.total = done, total

            try:
                yield progress
            finally:
                self.title = ""  # rich draws the last state whole, also where the window is lower
        self.finished[title] = time.monotonic() - self.began
        self.console.print(Text(f"  {title}: {self.finished[title]:.1f} s"), highlight=False)

    def seconds_left(self) -> tuple[float | None, float | None]:
        """Of this stage, and of all; None before the first step.

        Steps of later stages are taken to last as long as this one's.
        """
        taken = self.done - self.first
        if taken <= 0:
            return None, None
        each = (time.monotonic() - self.began) / taken
        later = sum(
            steps
            for title, steps in self.steps.items()
            if title not in self.finished and title != self.title
        )
        own = each * (self.total - self.done)
        return own, own + each * later if self.title in self.steps else None

    def draw(self) -> Panel:
        """The panel as it is now."""
        now = time.monotonic()
        if now - self.read_at >= READ_SECONDS:
            self.read_at = now
            try:
                self.rows = read_metrics(self.folder.metrics)
            except (LeudaError, OSError, ValueError):
                self.rows = []  # it is being written: the next look finds it
        titles = [*self.finished, self.title]
        titles += [title for title in self.steps if title not in titles]
        own, every = self.seconds_left()
        left = "" if own is None else f"{clock(own)} left of this stage"
        if every is not None and every != own:
            left += f", about {clock(every)} of all"
        done = Table.grid(padding=(0, 1))
        done.add_row(
            ProgressBar(total=self.total or None, completed=self.done, width=24),
            Text(f"{self.done}/{self.total}" if self.total else ""),
        )
        stage = Text(f"stage {titles.index(self.title) + 1} of {len(titles)}: {self.title}")
        parts = [stage, done, *([Text(left)] if left else []), *self._losses()]
        return Panel(Group(*parts), title=str(self.folder.path), title_align="left")

    def _losses(self) -> list[Any]:
        """Sparklines of the newest stage's terms, and what is measured beside them."""
        if not self.rows:
            return []
        stage = self.rows[-1]["stage"]
        own = [row for row in self.rows if row["stage"] == stage]
        shown = Table.grid(padding=(0, 1))
        terms = [
            name
            for name in own[-1]
            if name not in ("stage", "step", "images_per_s")
            and "/" not in name
            and any(row.get(name) for row in own)
        ]
        for name in terms[:MOST_TERMS]:
            values = [row[name] for row in own if name in row]
            shown.add_row(Text(name), Text(sparkline(values)), Text(f"{values[-1]:.3f}"))
        memory = resident_bytes()
        facts = [f"{own[-1]['images_per_s']:.1f} images/s"] if "images_per_s" in own[-1] else []
        facts += [f"{memory / 1e6:,.0f} MB of memory"] if memory else []
        return [shown, Text("   ".join(facts))]

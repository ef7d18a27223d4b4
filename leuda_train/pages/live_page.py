"""a run under way -> its picture and page, drawn anew every few minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from leuda_deploy.errors import LeudaError, keep_traceback, one_line
from leuda_deploy.machine.progress import Progress, ShowProgress
from leuda_deploy.scans.recipe import SliceAxis
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.loop.run_folder import RunFolder
from leuda_train.pages.pictures import draw_run
from leuda_train.pages.run_page import write_run_page
from leuda_train.stages.translated_sets import TranslatedSets

FIRST_SECONDS, EVERY_SECONDS = 20.0, 150.0
BESIDES = ("stage", "images_per_s")  # in a row of metrics, beside the terms
MOST_SHARE = 0.02  # of the time of a run that its page may take
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LivePage:
    """The page of a run that trains.

    slice_axis  of the recipe: which way up slices are drawn
    translated  the image sets, once there are any
    """

    folder: RunFolder
    method: str
    slice_axis: SliceAxis
    translated: TranslatedSets | None = None
    next_at: float = field(default_factory=lambda: time.monotonic() + FIRST_SECONDS)

    def write(self) -> None:
        """Draw what there is, in passing."""
        began = time.monotonic()
        if self.translated is not None:
            with self._in_passing(self.folder.run_picture):
                own = [
                    {name: value for name, value in row.items() if name not in BESIDES}
                    for row in read_metrics(self.folder.metrics)
                    if row["stage"] == self.method
                ]
                draw_run(self.folder.run_picture, self.translated, own, self.slice_axis)
        self.finish()
        took = time.monotonic() - began
        self.next_at = time.monotonic() + max(EVERY_SECONDS, took / MOST_SHARE)

    def finish(self) -> None:
        """Write the page alone."""
        with self._in_passing(self.folder.page):
            write_run_page(self.folder.path, self.folder.page)

    @contextmanager
    def _in_passing(self, path: Path) -> Iterator[None]:
        """A picture or page that cannot be made is said, and stops no training."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever it is, hours of training are worth more)
            kept = isinstance(error, LeudaError | OSError)
            why = one_line(error) if kept else keep_traceback(error)
            _log.warning("cannot write %s: %s", path, why)

    def watching(self, show: ShowProgress) -> ShowProgress:
        """The same progress; now and then the page is written in passing."""

        @contextmanager
        def shown(title: str) -> Iterator[Progress]:
            with show(title) as progress:

                def watched(done: int, total: int, note: str) -> None:
                    progress(done, total, note)
                    if time.monotonic() >= self.next_at:
                        self.write()

                yield watched

        return shown

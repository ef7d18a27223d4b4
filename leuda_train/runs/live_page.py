"""a run under way -> its picture and page, drawn anew every few minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from leuda_deploy.machine.progress import Progress, ShowProgress
from leuda_train.loop.metrics_log import read_metrics
from leuda_train.loop.run_folder import RunFolder
from leuda_train.pages.run_page import write_run_page
from leuda_train.runs.pictures import draw_run
from leuda_train.stages.translated_sets import TranslatedSets

EVERY_SECONDS = 150.0
MOST_SHARE = 0.02  # of the time of a run that its page may take
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LivePage:
    """The page of a run that trains. translated: the image sets, once there are any."""

    folder: RunFolder
    method: str
    translated: TranslatedSets | None = None
    next_at: float = 0.0

    def write(self) -> None:
        """Draw what there is. A page that cannot be written is said, and stops no training."""
        began = time.monotonic()
        try:
            if self.translated is not None:
                rows = read_metrics(self.folder.metrics)
                own = [
                    {name: value for name, value in row.items() if name != "stage"}
                    for row in rows
                    if row["stage"] == self.method
                ]
                draw_run(self.folder.run_picture, self.translated, own)
            write_run_page(self.folder.path, self.folder.page)
        except (OSError, ValueError, KeyError) as error:
            _log.warning("cannot write %s: %s", self.folder.page, error)
        took = time.monotonic() - began
        self.next_at = time.monotonic() + max(EVERY_SECONDS, took / MOST_SHARE)

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

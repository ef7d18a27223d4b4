"""the queue of a node -> one page that says what came and what became of it."""

from __future__ import annotations

import sqlite3
from http import HTTPStatus
from pathlib import Path
from typing import Any

from leuda_deploy.jobs.node.queue import Queue
from leuda_deploy.view.guarded import GuardedRequest, GuardedServer

PAGE = Path(__file__).parent / "page"
ASSETS = {
    "": (PAGE / "node.html", "text/html; charset=utf-8"),
    "node.css": (PAGE / "node.css", "text/css; charset=utf-8"),
    "node.js": (PAGE / "node.js", "text/javascript; charset=utf-8"),
}
SHOWN = 200  # series


class Dashboard(GuardedServer):
    """Serves the page of a queue; nothing of a patient is on it, nor can anything be changed.

    Args:
        queue: What is shown.
        about: Lines on the node itself: its model, its address.
        port: 0: a free one.
    """

    def __init__(self, queue: Queue, about: dict[str, str], *, port: int = 0) -> None:
        super().__init__(_Request, port=port)
        self.queue, self.about = queue, about


class _Request(GuardedRequest):
    server: Dashboard

    def do_GET(self) -> None:  # noqa: N802  (so it is called)
        path = self.checked_path()
        if path is None:
            return
        if path in ASSETS:
            self.send_file(*ASSETS[path])
        elif path == "state":
            try:
                self.send_json(state_of(self.server.queue) | {"about": self.server.about})
            except sqlite3.Error as error:
                self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")


def state_of(queue: Queue, most: int = SHOWN) -> dict[str, Any]:
    """How many series are in each state, and the newest ones. JSON-able."""
    return {
        "counts": queue.counts(),
        "series": [entry.as_dict() for entry in queue.entries(most)],
    }

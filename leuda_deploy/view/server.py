"""content and marks -> a page to look at scans; see `guarded` for who can read it.

What a request may name is a number of a scene and one of a few words, so no path reaches the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from leuda_deploy.errors import LeudaError
from leuda_deploy.machine.outside import parse_json
from leuda_deploy.view.content import Content, Every
from leuda_deploy.view.guarded import JSON, GuardedRequest, GuardedServer
from leuda_deploy.view.marks import Marks

HERE = Path(__file__).parent
ASSETS = {
    "": (HERE / "page" / "view.html", "text/html; charset=utf-8"),
    "view.css": (HERE / "page" / "view.css", "text/css; charset=utf-8"),
    **{
        name: (HERE / "page" / name, "text/javascript; charset=utf-8")
        for name in ("data.js", "pictures.js", "view.js")
    },
    "niivue.umd.js": (HERE / "niivue" / "niivue.umd.js", "text/javascript; charset=utf-8"),
}
FILE = r"file/(\d{1,6})/([a-z0-9-]{1,20})(?:\?every=([1-9])x([1-9])x([1-9]))?"
MAX_POST_BYTES = 1000


class PageServer(GuardedServer):
    """Serves one page on a free port of 127.0.0.1.

    Args:
        content: What there is to see.
        marks: Where marks are kept; None: the page offers none.
        port: 0: a free one.
    """

    def __init__(self, content: Content, marks: Marks | None, *, port: int = 0) -> None:
        super().__init__(_Request, port=port)
        self.content, self.marks = content, marks


class _Request(GuardedRequest):
    server: PageServer

    def do_GET(self) -> None:  # noqa: N802  (so it is called)
        path = self.checked_path()
        if path is None:
            return
        if path in ASSETS:
            file, kind = ASSETS[path]
            self.send_file(file, kind)
        elif path == "list":
            self._answer(self._list)
        elif match := re.fullmatch(r"(facts|structures|thumbnail)/(\d{1,6})", path):
            self._answer(getattr(self, f"_{match[1]}"), int(match[2]))
        elif match := re.fullmatch(FILE, path):
            every = tuple(int(n or 1) for n in match.group(3, 4, 5))
            self._answer(self._file, int(match[1]), match[2], every)
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")

    def do_POST(self) -> None:  # noqa: N802  (so it is called)
        path = self.checked_path()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_POST_BYTES:
            self.refuse(HTTPStatus.BAD_REQUEST, "a mark is a short JSON text")
        elif self.headers.get("Content-Type") != JSON or not self._own_page():
            self.refuse(HTTPStatus.FORBIDDEN, "marks are set on the page itself")
        elif (match := re.fullmatch(r"mark/(\d{1,6})", path)) and self.server.marks is not None:
            self._answer(self._mark, int(match[1]), self.rfile.read(int(length)))
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")

    def _own_page(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or origin in {f"http://{host}" for host in self.server.hosts}

    def _answer(self, make: Callable[..., None], *given: Any) -> None:
        """Whatever is wrong with a file becomes one line on the page."""
        try:
            make(*given)
        except (IndexError, KeyError):
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")
        except ValueError as error:  # also InputError
            self.refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (LeudaError, OSError, MemoryError) as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or type(error).__name__)

    def _list(self) -> None:
        marks, content = self.server.marks, self.server.content
        scenes = [
            {**said, "mark": marks.of(scene) if marks else None}
            for said, scene in zip(content.list(), content.scenes, strict=True)
        ]
        self.send_json({"scenes": scenes, "marks": marks.path.name if marks else None})

    def _facts(self, index: int) -> None:
        self.send_json(self.server.content.facts(index))

    def _thumbnail(self, index: int) -> None:
        self.send(self.server.content.thumbnail(index), "image/png")

    def _structures(self, index: int) -> None:
        self.send_json(self.server.content.structures(index))

    def _file(self, index: int, which: str, every: Every) -> None:
        found = self.server.content.file(index, which, every)
        if isinstance(found, bytes):
            self.send(found, "application/octet-stream")
        else:
            self.send_file(found, "application/octet-stream")

    def _mark(self, index: int, body: bytes) -> None:
        said = parse_json(body, "the mark")
        mark = said.get("mark") if isinstance(said, dict) else ""
        marks, scene = self.server.marks, self.server.content.scenes[index]
        assert marks is not None
        marks.set(scene, mark)
        self.send_json({"mark": marks.of(scene)})

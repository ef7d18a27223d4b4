"""content and marks -> a page that this computer's browser can read, and nobody else.

Only 127.0.0.1 is listened on. Every address begins with a secret; what a request may name is a
number of a scene and one of a few words, so no path reaches the disk. A request for another host
name is refused, so that no foreign page can come in through its own name (DNS rebinding).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from leuda_deploy.errors import LeudaError
from leuda_deploy.view.content import Content, Every
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
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FILE = r"file/(\d{1,6})/([a-z0-9-]{1,20})(?:\?every=([1-9])x([1-9])x([1-9]))?"
MAX_POST_BYTES = 1000
IDLE_SECONDS = 30.0
JSON = "application/json"


class PageServer(ThreadingHTTPServer):
    """Serves one page on a free port of 127.0.0.1.

    Args:
        content: What there is to see.
        marks: Where marks are kept; None: the page offers none.
        port: 0: a free one.
    """

    daemon_threads = True

    def __init__(self, content: Content, marks: Marks | None, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.content, self.marks = content, marks
        self.token = secrets.token_urlsafe(24)

    @property
    def hosts(self) -> tuple[str, str]:
        """Names under which the page may be asked for."""
        return (f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}")

    @property
    def url(self) -> str:
        """Address of the page, with its secret."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the browser went away, e.g. since another scan was chosen."""


class _Request(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server_version, sys_version = "leuda", ""

    def do_GET(self) -> None:
        path = self._checked_path()
        if path is None:
            return
        if path in ASSETS:
            file, kind = ASSETS[path]
            self._send_file(file, kind)
        elif path == "list":
            self._answer(self._list)
        elif match := re.fullmatch(r"(facts|structures|thumbnail)/(\d{1,6})", path):
            self._answer(getattr(self, f"_{match[1]}"), int(match[2]))
        elif match := re.fullmatch(FILE, path):
            every = tuple(int(n or 1) for n in match.group(3, 4, 5))
            self._answer(self._file, int(match[1]), match[2], every)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")

    def do_POST(self) -> None:
        path = self._checked_path()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_POST_BYTES:
            self._refuse(HTTPStatus.BAD_REQUEST, "a mark is a short JSON text")
        elif self.headers.get("Content-Type") != JSON or not self._own_page():
            self._refuse(HTTPStatus.FORBIDDEN, "marks are set on the page itself")
        elif (match := re.fullmatch(r"mark/(\d{1,6})", path)) and self.server.marks is not None:
            self._answer(self._mark, int(match[1]), self.rfile.read(int(length)))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")

    def _own_page(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or origin in {f"http://{host}" for host in self.server.hosts}

    def _checked_path(self) -> str | None:
        """What is asked for, after the secret; None: the request was refused."""
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 alone")
            return None
        _, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that leuda view printed")
            return None
        return path

    def _answer(self, make: Callable[..., None], *given: Any) -> None:
        """Whatever is wrong with a file becomes one line on the page."""
        try:
            make(*given)
        except (IndexError, KeyError):
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")
        except ValueError as error:  # also InputError
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (LeudaError, OSError, MemoryError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or type(error).__name__)

    def _list(self) -> None:
        marks, content = self.server.marks, self.server.content
        scenes = [
            {**said, "mark": marks.of(scene) if marks else None}
            for said, scene in zip(content.list(), content.scenes, strict=True)
        ]
        self._send_json({"scenes": scenes, "marks": marks.path.name if marks else None})

    def _facts(self, index: int) -> None:
        self._send_json(self.server.content.facts(index))

    def _thumbnail(self, index: int) -> None:
        self._send(self.server.content.thumbnail(index), "image/png")

    def _structures(self, index: int) -> None:
        self._send_json(self.server.content.structures(index))

    def _file(self, index: int, which: str, every: Every) -> None:
        found = self.server.content.file(index, which, every)
        if isinstance(found, bytes):
            self._send(found, "application/octet-stream")
        else:
            self._send_file(found, "application/octet-stream")

    def _mark(self, index: int, body: bytes) -> None:
        said = json.loads(body)
        mark = said.get("mark") if isinstance(said, dict) else ""
        marks, scene = self.server.marks, self.server.content.scenes[index]
        assert marks is not None
        marks.set(scene, mark)
        self._send_json({"mark": marks.of(scene)})

    def _send_file(self, path: Path, kind: str) -> None:
        with path.open("rb") as file:
            self._head(HTTPStatus.OK, kind, path.stat().st_size)
            copyfileobj(file, self.wfile, 1 << 20)

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content, allow_nan=False).encode(), JSON)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # a body that was not read must not be taken for a request
        self._send(" ".join(why.split()).encode(), "text/plain; charset=utf-8", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep no record: an address holds the secret."""

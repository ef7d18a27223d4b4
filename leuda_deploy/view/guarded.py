"""an address with a secret -> a page that this computer's browser can read, and nobody else.

Only 127.0.0.1 is listened on. Every address begins with a secret, so that no other user of this
computer finds it. A request for another host name is refused, so that no foreign page can come in
through its own name (DNS rebinding). Who connects and asks for nothing, or never ends its headers,
is hung up on, and keeps no browser waiting.
"""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from leuda_deploy.jobs.node.waiting import Waiting

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
IDLE_SECONDS = 30.0  # from one request's end to the next one's, and for a browser to take a part
MOST_IDLE = 64  # connections from which no whole request has come; a browser opens six a page
JSON = "application/json"


class GuardedServer(ThreadingHTTPServer):
    """A server on 127.0.0.1 whose addresses begin with a secret.

    Args:
        handler: What answers.
        port: 0: a free one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[GuardedRequest], *, port: int = 0) -> None:
        self.waiting = Waiting(MOST_IDLE, IDLE_SECONDS)
        super().__init__(("127.0.0.1", port), handler)
        self.token = secrets.token_urlsafe(24)

    def service_actions(self) -> None:
        """After each connection, and every half second."""
        self.waiting.hang_up()

    def shutdown_request(self, request: Any) -> None:
        """A connection has ended."""
        self.waiting.end(request)
        super().shutdown_request(request)

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


class GuardedRequest(BaseHTTPRequestHandler):
    """The checks and the answers; a child says what is where."""

    server: GuardedServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server_version, sys_version = "leuda", ""

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it."""
        self.server.waiting.add(self.connection)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the headers; afterwards a request is there, or a refusal was sent."""
        whole = super().parse_request()
        self.server.waiting.end(self.connection)
        return whole

    def checked_path(self) -> str | None:
        """What is asked for, after the secret; None: the request was refused."""
        if self.headers.get("Host") not in self.server.hosts:
            self.refuse(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 alone")
            return None
        _, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self.refuse(HTTPStatus.FORBIDDEN, "open the address that leuda printed")
            return None
        return path

    def send_file(self, path: Path, kind: str) -> None:
        """Answer with a file."""
        with path.open("rb") as file:
            self._head(HTTPStatus.OK, kind, path.stat().st_size)
            copyfileobj(file, self.wfile, 1 << 20)

    def send_json(self, content: Any) -> None:
        """Answer with JSON."""
        self.send(json.dumps(content, allow_nan=False).encode(), JSON)

    def refuse(self, status: HTTPStatus, why: str) -> None:
        """Answer with a line that says why not."""
        self.close_connection = True  # a body that was not read must not be taken for a request
        self.send(" ".join(why.split()).encode(), "text/plain; charset=utf-8", status)

    def send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with bytes."""
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

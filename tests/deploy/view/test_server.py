"""The server gives the page what it may see, and refuses everybody and everything else."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from support.view_files import write_case

from leuda_deploy.view import guarded
from leuda_deploy.view.content import Content
from leuda_deploy.view.marks import Marks
from leuda_deploy.view.scene import find_scenes
from leuda_deploy.view.server import ASSETS, PageServer

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    for name in ("one", "two"):
        write_case(tmp_path, name)
    (tmp_path / "secret.txt").write_text("secret")
    with serving(tmp_path) as made:
        yield made


@contextmanager
def serving(folder: Path) -> Iterator[PageServer]:
    made = PageServer(Content(find_scenes(folder), {}), Marks(folder / "marks.csv"))
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def ask(
    server: PageServer,
    path: str,
    *,
    method: str = "GET",
    body: str | None = None,
    headers: dict[str, str] | None = None,
    token: str | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    secret = server.token if token is None else token
    connection.request(method, f"/{secret}/{path}", body=body, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_it_listens_on_this_computer_alone(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"


@pytest.mark.parametrize("path", [*ASSETS, "list", "facts/0", "structures/1", "file/0/scan"])
def test_the_page_gets_what_it_needs_under_a_strict_policy(server: PageServer, path: str) -> None:
    answer, content = ask(server, path)
    assert answer.status == 200
    assert content
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("token", ["", "x", "0" * 32])
def test_without_the_secret_nothing_is_given(server: PageServer, token: str) -> None:
    assert ask(server, "list", token=token)[0].status == 403
    assert ask(server, "", token=token)[0].status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "", "localhost"])
def test_another_host_name_is_refused(server: PageServer, host: str) -> None:
    assert ask(server, "list", headers={"Host": host})[0].status == 403


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "secret.txt",
        "%2e%2e/secret.txt",
        "file/0/../../secret.txt",
        "file/0/..%2fsecret",
        "file/0//etc/passwd",
        "file/9/scan",
        "file/-1/scan",
        "file/0/labels-7",
        "facts/9",
        "file/0/scan?every=0x1x1",
        "niivue/LICENSES.txt",
        "../server.py",
    ],
)
def test_nothing_else_is_reached(server: PageServer, path: str) -> None:
    answer, content = ask(server, path)
    assert answer.status == 404
    assert b"secret" not in content


def test_a_mark_is_kept_and_nothing_else_can_be_written(server: PageServer, tmp_path: Path) -> None:
    answer, content = ask(
        server, "mark/0", method="POST", body='{"mark": "look again"}', headers=JSON
    )
    assert (answer.status, json.loads(content)) == (200, {"mark": "look again"})
    listed = json.loads(ask(server, "list")[1])
    assert [scene["mark"] for scene in listed["scenes"]] == ["look again", None]
    before = (tmp_path / "marks.csv").read_bytes()
    for body, headers in (
        ('{"mark": "fine"}', JSON),
        ("no json", JSON),
        ("[]", JSON),
        ("[" * 1000, JSON),
        ('{"mark": "ok"}', {"Content-Type": "text/plain"}),
        ('{"mark": "ok"}', JSON | {"Origin": "http://evil.example"}),
        ('{"mark": "ok"}', JSON | {"Host": "evil.example"}),
        ('{"mark": "ok"}' + " " * 2000, JSON),
    ):
        status = ask(server, "mark/0", method="POST", body=body, headers=headers)[0].status
        assert 400 <= status < 500, body
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert ask(server, "mark/0", method=method)[0].status == 501
    assert (tmp_path / "marks.csv").read_bytes() == before


def test_a_scan_that_is_gone_is_one_line(server: PageServer, tmp_path: Path) -> None:
    for scan in ("one.nii.gz", "two.nii.gz"):
        (tmp_path / scan).unlink()
    answer, content = ask(server, "facts/0")
    assert answer.status == 422
    assert content.count(b"\n") == 0
    assert b"no such scan" in content


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n"])
def test_the_page_opens_beside_many_that_never_end_their_request(
    server: PageServer, said: bytes
) -> None:
    with ExitStack() as every:
        for _ in range(3 * guarded.MOST_IDLE):
            peer = every.enter_context(socket.create_connection(server.server_address))
            peer.sendall(said)
        assert ask(server, "list")[0].status == 200
        threads = [each for each in threading.enumerate() if "process_request" in each.name]
        assert len(threads) <= guarded.MOST_IDLE + 20


def test_headers_that_drip_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "IDLE_SECONDS", 0.5)  # each drop comes in time
    write_case(tmp_path, "one")
    with serving(tmp_path) as server, socket.create_connection(server.server_address) as peer:
        peer.settimeout(0.05)
        peer.sendall(b"GET / HTTP/1.1\r\n")
        end = time.monotonic() + 30
        with suppress(ConnectionError):
            while True:
                assert time.monotonic() < end
                peer.sendall(b"X: y\r\n")
                with suppress(TimeoutError):
                    assert peer.recv(1) == b""
                    break


def test_a_connection_is_used_again(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    used = set()
    for _ in range(3):
        connection.request("GET", f"/{server.token}/list")
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
        used.add(connection.sock)
    connection.close()
    assert len(used) == 1

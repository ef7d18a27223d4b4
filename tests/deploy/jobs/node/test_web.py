"""Results go to an archive by STOW-RS: to a real Orthanc, and to servers that do not take them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
pytest.importorskip("dicomweb_client", reason="the node extra is not installed")
pytest.importorskip("pynetdicom", reason="the node extra is not installed")

from support.dicom_series import make_image  # noqa: E402

from leuda_deploy.errors import InputError  # noqa: E402
from leuda_deploy.jobs.node.peers import WebDestination, parse_destination  # noqa: E402
from leuda_deploy.jobs.node.send import (  # noqa: E402
    AUTHORIZATION,
    NotReachedError,
    NotTakenError,
    send,
)

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.dcm"
    made = make_image(0, "1.2.4")
    made.save_as(path, enforce_file_format=True)
    return path


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Its address, for as long as the block lasts."""
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = taken.getsockname()[1], other.getsockname()[1]
    config = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": ports[0],
        "DicomPort": ports[1],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"leuda": "secret"},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            for _ in range(300):
                try:
                    with socket.create_connection(("127.0.0.1", ports[0])):
                        break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{ports[0]}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_orthanc_takes_what_is_sent(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PLUGIN.is_file():
        pytest.skip("Orthanc's DICOMweb is not installed (Debian: orthanc, orthanc-dicomweb)")
    with orthanc(tmp_path) as url:
        to = WebDestination(url=f"{url}/dicom-web")
        with pytest.raises(NotTakenError, match="401"):
            send(image, to, title="LEUDA")
        monkeypatch.setenv(AUTHORIZATION, "Basic bGV1ZGE6c2VjcmV0")  # leuda:secret
        send(image, to, title="LEUDA")
        send(image, to, title="LEUDA")  # as after a kill
        asked = urllib.request.Request(
            f"{url}/instances", headers={"Authorization": "Basic bGV1ZGE6c2VjcmV0"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert len(json.loads(answer.read())) == 1


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that gives every request this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "kind"), [(409, NotTakenError), (503, NotReachedError)])
def test_what_another_try_may_mend_is_told_from_what_it_cannot(
    image: Path, status: int, kind: type[Exception]
) -> None:
    with answering(status) as url, pytest.raises(kind, match=str(status)):
        send(image, WebDestination(url=url), title="LEUDA")


def test_nobody_there_is_to_be_tried_again(image: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(NotReachedError):
        send(image, WebDestination(url=url), title="LEUDA")


def test_addresses() -> None:
    assert parse_destination("https://pacs.example/dicom-web/") == WebDestination(
        url="https://pacs.example/dicom-web"
    )
    assert parse_destination("http://127.0.0.1:8042/dicom-web").title.startswith("http")
    for wrong in ("http://pacs.example/x", "https://me:secret@pacs.example/x", "https:///x"):
        with pytest.raises(InputError):
            parse_destination(wrong)

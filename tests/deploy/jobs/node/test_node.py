"""A node on this computer between a sender and an archive, over real associations."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import leuda_here
from support.makers import MakeModel, certificates

pytest.importorskip("highdicom", reason="the dicom extra is not installed")
pynetdicom = pytest.importorskip("pynetdicom", reason="the node extra is not installed")

from pynetdicom.sop_class import CTImageStorage, Verification  # noqa: E402
from support.dicom_series import make_image, make_series, write_images  # noqa: E402

from leuda_deploy.errors import InputError  # noqa: E402
from leuda_deploy.inference.segmenter import Segmenter  # noqa: E402
from leuda_deploy.inference.settings import Settings  # noqa: E402
from leuda_deploy.jobs.node import node as node_module  # noqa: E402
from leuda_deploy.jobs.node.database import Entry  # noqa: E402
from leuda_deploy.jobs.node.node import Node, NodeSettings  # noqa: E402
from leuda_deploy.jobs.node.peers import (  # noqa: E402
    Destination,
    Sender,
    Tls,
    parse_destination,
    parse_sender,
)
from leuda_deploy.jobs.node.queue import Queue  # noqa: E402
from leuda_deploy.jobs.node.receive import Door  # noqa: E402
from leuda_deploy.view.dashboard import Dashboard  # noqa: E402

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "how-to" / "hospital-node.md").read_text()
LISTENS = [line for line in re.findall("^leuda listen.*", PAGE, re.M) if "--status" not in line]
# pynetdicom leaves a socket open where nobody answers
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PATIENT = "Secret^Name"


class Archive:
    """A C-STORE SCP that keeps what it gets; statuses: what it answers first."""

    def __init__(self, port: int = 0, *, ssl_context: Any = None) -> None:
        self.got: list[Any] = []
        self.statuses: list[int] = []
        self._entity = pynetdicom.AE(ae_title="PACS")
        self._entity.supported_contexts = pynetdicom.StoragePresentationContexts
        self._server = self._entity.start_server(
            ("127.0.0.1", port),
            block=False,
            ssl_context=ssl_context,
            evt_handlers=[(pynetdicom.evt.EVT_C_STORE, self._store)],
        )
        self.port = self._server.server_address[1]

    def _store(self, event: Any) -> int:
        if self.statuses:
            return self.statuses.pop(0)
        self.got.append(event.dataset)
        return 0

    def stop(self) -> None:
        self._entity.shutdown()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What pynetdicom leaves open is collected here, where it is no error."""
    yield
    gc.collect()


@pytest.fixture
def archive() -> Iterator[Archive]:
    found = Archive()
    yield found
    found.stop()


@pytest.fixture
def segmenter(tmp_path: Path, make_model: MakeModel) -> Segmenter:
    return Segmenter(make_model(tmp_path / "model"), Settings(threads=1, batch=4))


@contextmanager
def working(node: Node) -> Iterator[int]:
    """The node at work in a thread; yields its port."""
    with node.open():
        thread = threading.Thread(target=node.work)
        thread.start()
        try:
            yield node.receiver.port
        finally:
            node._stop.set()
            thread.join()


def make_node(tmp_path: Path, segmenter: Segmenter, port: int, **settings: Any) -> Node:
    door = settings.pop("door", Door(port=0))
    to = Destination(title="PACS", host="127.0.0.1", port=port)
    all_of_it = {"door": door, "destination": to, "quiet_s": 0.2} | settings
    return Node(Queue(tmp_path / "queue"), segmenter, NodeSettings(**all_of_it))


def call(port: int, *, title: str = "CT1", called: str = "LEUDA", tls: Any = None) -> Any:
    entity = pynetdicom.AE(ae_title=title)
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage)
    return entity.associate("127.0.0.1", port, ae_title=called, tls_args=tls)


def store(port: int, images: list[Any], **how: Any) -> list[int]:
    """Send data sets; the statuses."""
    association = call(port, **how)
    assert association.is_established
    statuses = [association.send_c_store(image).Status for image in images]
    association.release()
    return statuses


def until(found: Callable[[], Any], seconds: float = 300.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return value


def in_state(queue: Queue, state: str) -> Callable[[], list[Entry]]:
    return lambda: [entry for entry in queue.entries() if entry.state == state]


def test_a_series_is_labelled_and_its_results_sent_once(
    tmp_path: Path, segmenter: Segmenter, archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = make_series(PatientName=PATIENT)
    node = make_node(tmp_path, segmenter, archive.port)
    with working(node) as port:
        association = call(port)
        assert association.send_c_echo().Status == 0
        association.release()
        assert store(port, images) == [0] * len(images)
        until(in_state(node.queue, "sent"))
        assert [each.Modality for each in archive.got] == ["SEG", "SR"]
        assert store(port, images) == [0] * len(images)  # again: known, and nothing is done
        time.sleep(0.5)
        page = Dashboard(node.queue, {})
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        with urllib.request.urlopen(f"{page.url}state") as answer:
            state = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://{page.hosts[0]}/guess/state")
        page.shutdown()
        thread.join()
        page.server_close()
    assert len(archive.got) == 2
    seg, report = archive.got
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == images[0].SeriesInstanceUID
    assert seg.PatientName == PATIENT  # the objects name the patient; what is logged does not
    referred = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert seg.SeriesInstanceUID in {each.SeriesInstanceUID for each in referred}
    assert "Secret" not in caplog.text + state
    assert json.loads(state)["counts"] == {"sent": 1}
    done = leuda_here("listen", "--queue", node.queue.folder, "--status", "--json")
    assert json.loads(done.stdout)["counts"] == {"sent": 1}


def test_what_is_not_for_the_model_is_passed_over_and_what_is_broken_fails(
    tmp_path: Path, segmenter: Segmenter, archive: Archive
) -> None:
    broken = [make_image(k, "1.2.6") for k in range(5)]
    del broken[2].ImagePositionPatient
    scout = make_series(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    other = [make_image(k, "1.2.7", Modality="MR") for k in range(5)]
    node = make_node(tmp_path, segmenter, archive.port)
    with working(node) as port:
        store(port, [*broken, *scout, *other])
        until(lambda: len(in_state(node.queue, "passed over")()) == 2)
        (failed,) = until(in_state(node.queue, "failed"))
    assert failed.uid == "1.2.6"
    assert "ImagePositionPatient" in failed.reason
    reasons = {each.uid: each.reason for each in in_state(node.queue, "passed over")()}
    assert reasons.keys() == {"1.2.5", "1.2.7"}
    assert archive.got == []


@pytest.mark.parametrize("asked", [False, True])
def test_patients_are_named_in_the_log_only_if_asked(
    tmp_path: Path, segmenter: Segmenter, asked: bool
) -> None:
    node = make_node(tmp_path, segmenter, 1, show_names=asked)
    with node.open():
        store(node.receiver.port, make_series(PatientName=PATIENT))
    (entry,) = node.queue.entries()
    assert (PATIENT in node._name(entry)) == asked


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, of this size (Linux, as root)."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "leuda-test", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"0" * 1024)
    return filler


def test_a_disk_that_is_full_under_a_living_node_loses_nothing(
    tmp_path: Path, segmenter: Segmenter, archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "queue", 4096) as disk:
        node = make_node(tmp_path, segmenter, archive.port, quiet_s=1.0)
        with working(node) as port:
            images = make_series()
            filler = fill(disk)
            assert {*store(port, images)} == {0xA700}  # out of resources: the sender keeps them
            filler.unlink()
            assert store(port, images) == [0] * len(images)
            filler = fill(disk)  # full when it is to be labelled
            until(lambda: "cannot be used now" in caplog.text or "tried again" in caplog.text)
            assert archive.got == []
            filler.unlink()
            (entry,) = until(in_state(node.queue, "sent"))
        node.queue.close()
    assert entry.images == len(images)
    assert [each.Modality for each in archive.got] == ["SEG", "SR"]


def test_an_archive_that_is_away_or_full_gets_it_later(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "FIRST_DELAY_S", 0.05)
    with socket.socket() as taken:  # a port where nobody is
        taken.bind(("127.0.0.1", 0))
        away = taken.getsockname()[1]
    node = make_node(tmp_path, segmenter, away)
    with working(node) as port:
        store(port, make_series())
        waiting = until(lambda: [e for e in in_state(node.queue, "labelled")() if e.reason])
        assert "cannot be reached" in waiting[0].reason
        archive = Archive(away)
        archive.statuses = [0xA700]  # out of room, once
        until(in_state(node.queue, "sent"))
        archive.stop()
    assert [each.Modality for each in archive.got] == ["SEG", "SR"]


def test_who_is_not_on_the_list_is_refused(
    tmp_path: Path, segmenter: Segmenter, archive: Archive
) -> None:
    senders = [Sender(title="CT1", host="127.0.0.1"), Sender(title="CT2", host="10.9.9.9")]
    node = make_node(tmp_path, segmenter, archive.port, door=Door(port=0, senders=senders))
    with working(node) as port:
        association = call(port, title="CT1")
        assert association.is_established
        association.release()
        assert call(port, title="CT3").is_rejected
        assert call(port, title="CT1", called="OTHER").is_rejected
        assert store(port, make_series()[:1], title="CT2") == [0x0124]  # from another host
    assert node.queue.counts() == {}


def test_a_host_that_others_reach_needs_a_list() -> None:
    with pytest.raises(InputError, match="--from"):
        Door(host="0.0.0.0")
    assert parse_sender("CT1@10.0.0.5") == Sender(title="CT1", host="10.0.0.5")
    assert parse_destination("PACS@h:104") == Destination(title="PACS", host="h", port=104)
    for wrong in ("PACS", "PACS@h", "@h:1", "PACS@h:x", "PACS@h:99999", f"{'x' * 17}@h:1"):
        with pytest.raises(InputError):
            parse_destination(wrong)
    for wrong in ("", "CT1@", "a\\b"):
        with pytest.raises(InputError):
            parse_sender(wrong)


def test_who_ends_no_handshake_keeps_nobody_waiting(
    tmp_path: Path, segmenter: Segmenter, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leuda_deploy.jobs.node.connections.BEGINNING_S", 1.0)
    tls = certificates(tmp_path)
    node = make_node(tmp_path, segmenter, archive.port, door=Door(port=0, tls=tls))
    with node.open(), socket.create_connection(("127.0.0.1", node.receiver.port)) as silent:
        echo = call(node.receiver.port, tls=(tls.calling(), "127.0.0.1"))
        assert echo.is_established
        echo.release()
        silent.settimeout(30)
        assert silent.recv(1) == b""  # hung up on


def test_a_message_of_gigabytes_is_hung_up_on(tmp_path: Path, segmenter: Segmenter) -> None:
    node = make_node(tmp_path, segmenter, 1)
    with node.open():
        port = node.receiver.port
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(30)
            peer.sendall(b"\x01\x00\xff\xff\xff\xf0")
            assert peer.recv(100) == b""
        echo = call(port)
        assert echo.is_established
        echo.release()


@pytest.mark.parametrize("name", ["SeriesInstanceUID", "SOPInstanceUID"])
def test_an_image_without_a_uid_is_refused(tmp_path: Path, segmenter: Segmenter, name: str) -> None:
    """Two of them would be taken for one and the same."""
    node = make_node(tmp_path, segmenter, 1)
    dataset = make_series()[0]
    setattr(dataset, name, "")
    assert node.receiver._store(stored(dataset)) == 0xC000
    assert node.queue.counts() == {}


def stored(dataset: Any) -> Any:
    """As pynetdicom hands over an image that was sent."""
    requestor = SimpleNamespace(ae_title="CT1", address="127.0.0.1")
    return SimpleNamespace(dataset=dataset, assoc=SimpleNamespace(requestor=requestor))


def test_with_tls_both_ways_are_secret(tmp_path: Path, segmenter: Segmenter) -> None:
    tls = certificates(tmp_path)
    archive = Archive(ssl_context=tls.accepting())
    node = make_node(tmp_path, segmenter, archive.port, door=Door(port=0, tls=tls))
    with working(node) as port:
        assert not call(port).is_established  # in the clear
        if shutil.which("echoscu"):  # dcmtk's
            files = ("+tls", tls.key, tls.certificate, "+cf", tls.authority)
            echo = ["echoscu", *files, "-aec", "LEUDA", "127.0.0.1", str(port)]
            subprocess.run(echo, check=True)
            assert subprocess.run([echo[0], *echo[-4:]], capture_output=True).returncode != 0
        assert store(port, make_series(), tls=(tls.calling(), "127.0.0.1")) == [0] * 5
        until(in_state(node.queue, "sent"))
    archive.stop()
    assert len(archive.got) == 2
    with pytest.raises(InputError):
        Tls(certificate=tmp_path, key=tmp_path, authority=tmp_path).accepting()


@pytest.mark.slow
@pytest.mark.parametrize("listen", LISTENS, ids=("in a hospital", "on one computer"))
def test_the_commands_of_the_page_do_what_it_says(
    listen: str, tmp_path: Path, archive: Archive, make_model: MakeModel
) -> None:
    if shutil.which("storescu") is None:
        pytest.skip("storescu is not installed (Debian: dcmtk)")
    send, status = (
        next(line for line in PAGE.splitlines() if line.startswith(start))
        for start in ("storescu", "leuda listen --queue queue --status")
    )
    (tmp_path / "exports" / "first").mkdir(parents=True)
    make_model(tmp_path / "exports" / "first")
    write_images(tmp_path / "series", make_series())
    to = f"PACS@127.0.0.1:{archive.port}"
    listen = re.sub(r"(?<=--return )\S+", to, listen).replace("/var/lib/leuda/queue", "queue")
    listen = re.sub(r"10\.0\.0\.\d+", "127.0.0.1", listen).replace("--page 8080", "--page 0")
    search = {**os.environ, "PYTHONPATH": str(ROOT)}

    def leuda(command: str) -> list[str]:
        return [sys.executable, "-m", "leuda_train", *shlex.split(command)[1:]]

    where = {"cwd": tmp_path, "env": search}
    more = ["--port", "0", "--quiet", "0.5"]
    node = subprocess.Popen([*leuda(listen), *more], stderr=subprocess.PIPE, text=True, **where)
    try:
        assert node.stderr is not None
        said = until(lambda: line if "listens on" in (line := node.stderr.readline()) else None)
        port = re.findall(r"listens on 127\.0\.0\.1:(\d+)", said)[0]
        if "--page" in listen:
            assert "page: http://127.0.0.1:" in node.stderr.readline()
        command = shlex.split(send.replace("11112", port))
        if "--from" in listen:
            refused = subprocess.run([*command, "-aet", "CT3"], capture_output=True, **where)
            assert refused.returncode != 0
            command += ["-aet", "CT1"]
        subprocess.run(command, check=True, **where)
        until(lambda: len(archive.got) == 2)
        said = until(
            lambda: (
                " sent" in (out := subprocess.check_output(leuda(status), text=True, **where))
                and out
            )
        )
        assert said.startswith("1 sent")
    finally:
        node.terminate()
        node.wait()


@pytest.mark.slow
def test_orthanc_gets_all_of_a_burst_though_the_node_is_killed(tmp_path: Path) -> None:
    """The benchmark, with few studies; it compares with labels made without a network."""
    for program in ("Orthanc", "storescu", "echoscu"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            pytest.skip(f"{program} is not installed (Debian: orthanc, dcmtk)")
    out = tmp_path / "found.json"
    measured = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "neighbours" / "hospital_node.py", out),
            *("--studies", "4", "--kills", "2", "--quiet", "1"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert measured.returncode == 0, measured.stderr
    found = json.loads(out.read_text())
    assert (found["lost"], found["twice"], found["kills"]) == (0, 0, 2)
    assert found["studies_with_both"] == found["labels_as_without_a_network"] == 4
    assert found["in_orthanc"] == {"SEG": 4, "SR": 4}
    assert found["queue"] == {"sent": 4}

"""A sender asks what of its images is held, and is answered over an association to it."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
pynetdicom = pytest.importorskip("pynetdicom", reason="the node extra is not installed")

from pynetdicom.sop_class import (  # noqa: E402
    CTImageStorage,
    MRImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from support.dicom_series import make_series  # noqa: E402
from support.makers import certificates  # noqa: E402

from leuda_deploy.errors import InputError  # noqa: E402
from leuda_deploy.inference.segmenter import Segmenter  # noqa: E402
from leuda_deploy.jobs.node import commit  # noqa: E402
from leuda_deploy.jobs.node.node import Node, NodeSettings  # noqa: E402
from leuda_deploy.jobs.node.peers import Sender, Tls, parse_sender  # noqa: E402
from leuda_deploy.jobs.node.queue import Queue  # noqa: E402
from leuda_deploy.jobs.node.receive import Door  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Scanner:
    """It sends, asks, and takes answers; statuses: what it says to the first ones."""

    def __init__(self, port: int = 0, *, ssl_context: Any = None) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.statuses: list[int] = []
        self._entity = pynetdicom.AE(ae_title="CT1")
        self._entity.add_supported_context(
            StorageCommitmentPushModel, scu_role=False, scp_role=True
        )
        self._server = self._entity.start_server(
            ("127.0.0.1", port),
            block=False,
            ssl_context=ssl_context,
            evt_handlers=[(pynetdicom.evt.EVT_N_EVENT_REPORT, self._take)],
        )
        self.port = self._server.server_address[1]

    def _take(self, event: Any) -> tuple[int, None]:
        if self.statuses:
            return self.statuses.pop(0), None
        self.answers.append((event.event_type, event.event_information))
        return 0, None

    def stop(self) -> None:
        self._entity.shutdown()


def calling(port: int, title: str = "CT1", tls: Tls | None = None) -> Any:
    entity = pynetdicom.AE(ae_title=title)
    entity.add_requested_context(CTImageStorage)
    entity.add_requested_context(StorageCommitmentPushModel)
    how = None if tls is None else (tls.calling(), "127.0.0.1")
    association = entity.associate("127.0.0.1", port, ae_title="LEUDA", tls_args=how)
    assert association.is_established
    return association


def ask(association: Any, images: list[tuple[str, str]], transaction: str = "1.2.3") -> int:
    """The status of N-ACTION."""
    asked = pydicom.Dataset()
    asked.TransactionUID = transaction
    asked.ReferencedSOPSequence = []
    for kind, uid in images:
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, uid
        asked.ReferencedSOPSequence.append(item)
    status, _ = association.send_n_action(
        asked, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    return int(status.Status)


@contextmanager
def node(folder: Path, senders: list[Sender], tls: Tls | None = None) -> Iterator[int]:
    """A node that takes images and answers, and labels nothing; yields its port."""
    queue, nothing = Queue(folder), cast(Segmenter, None)
    made = Node(queue, nothing, NodeSettings(door=Door(port=0, senders=senders, tls=tls)))
    with made.open():
        yield made.receiver.port
    queue.close()


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return value


def waiting(folder: Path) -> list[Path]:
    return list((folder / commit.FOLDER).glob("*.json"))


@pytest.fixture
def scanner() -> Iterator[Scanner]:
    made = Scanner()
    yield made
    made.stop()


def test_what_is_held_is_said_and_what_is_not_with_its_reason(
    tmp_path: Path, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "FIRST_DELAY_S", 0.05)
    images = make_series()
    senders = [parse_sender(f"CT1@127.0.0.1:{scanner.port}")]
    with node(tmp_path / "queue", senders) as port:
        association = calling(port)
        for image in images:
            assert association.send_c_store(image).Status == 0
        uids = [str(image.SOPInstanceUID) for image in images]
        assert ask(association, [(CTImageStorage, uid) for uid in uids]) == 0
        association.release()  # before the answer
        ((event, answer),) = until(lambda: scanner.answers)
        assert (event, answer.TransactionUID) == (1, "1.2.3")
        assert [each.ReferencedSOPInstanceUID for each in answer.ReferencedSOPSequence] == uids
        assert "FailedSOPSequence" not in answer
        scanner.answers.clear()
        scanner.statuses = [0x0110]  # not now
        association = calling(port)
        asked = [(CTImageStorage, uids[0]), (MRImageStorage, uids[1]), (CTImageStorage, "1.9.9")]
        assert ask(association, asked, "1.2.4") == 0
        ((event, answer),) = until(lambda: scanner.answers)
        assert (event, answer.TransactionUID) == (2, "1.2.4")
        assert [each.ReferencedSOPInstanceUID for each in answer.ReferencedSOPSequence] == uids[:1]
        reasons = {
            str(each.ReferencedSOPInstanceUID): each.FailureReason
            for each in answer.FailedSOPSequence
        }
        assert reasons == {uids[1]: 0x0119, "1.9.9": 0x0112}
        assert association.send_c_store(images[0]).Status == 0  # it goes on as it was
        association.release()
        until(lambda: not waiting(tmp_path / "queue"))


def test_a_question_outlives_the_process_and_a_scanner_that_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as taken:  # a port where nobody is
        taken.bind(("127.0.0.1", 0))
        away = taken.getsockname()[1]
    senders = [Sender(title="CT1", host="127.0.0.1", port=away)]
    with node(tmp_path / "queue", senders) as port:
        association = calling(port)
        assert ask(association, [(CTImageStorage, "1.9.9")]) == 0
        association.release()
        until(lambda: "cannot be reached" in caplog.text)
    assert len(waiting(tmp_path / "queue")) == 1
    back = Scanner(away)
    with node(tmp_path / "queue", senders):
        ((event, answer),) = until(lambda: back.answers)
        until(lambda: not waiting(tmp_path / "queue"))
    back.stop()
    assert (event, answer.TransactionUID) == (2, "1.2.3")


def test_a_scanner_that_says_nothing_keeps_the_others_waiting_for_a_moment(
    tmp_path: Path, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"CT1": scanner.port, "CT2": silent.getsockname()[1]}
        senders = [Sender(title=t, host="127.0.0.1", port=p) for t, p in ports.items()]
        with node(tmp_path / "queue", senders) as port:
            association = calling(port, "CT2")
            assert ask(association, [(CTImageStorage, "1.9.9")]) == 0
            association.release()
            called, _ = silent.accept()  # it is being answered, and says nothing
            association = calling(port)
            assert ask(association, [(CTImageStorage, "1.9.9")]) == 0
            association.release()
            until(lambda: scanner.answers, seconds=20)  # pynetdicom waits for 30
            called.close()


def test_with_tls_the_answer_is_secret_and_for_none_but_whom_the_authority_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(commit, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(commit, "ANSWER_S", 1.0)
    tls, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    known = Scanner(ssl_context=tls.accepting())
    unknown = Scanner(ssl_context=others.accepting())  # its certificate is of another authority
    in_the_clear = Scanner()
    scanners = {"CT1": known, "CT2": unknown, "CT3": in_the_clear}
    senders = [Sender(title=t, host="127.0.0.1", port=s.port) for t, s in scanners.items()]
    with node(tmp_path / "queue", senders, tls) as port:
        for title in ("CT3", "CT2", "CT1"):
            association = calling(port, title, tls)
            assert ask(association, [(CTImageStorage, "1.9.9")]) == 0
            association.release()
        ((event, answer),) = until(lambda: known.answers)
        assert (event, answer.TransactionUID) == (2, "1.2.3")
        for title in ("CT2", "CT3"):
            until(lambda title=title: f"{title}@127.0.0.1" in caplog.text)
        until(lambda: len(waiting(tmp_path / "queue")) == 2)  # theirs are kept
    for scanner in scanners.values():
        scanner.stop()
    assert unknown.answers == in_the_clear.answers == []


def test_who_cannot_be_answered_is_refused(tmp_path: Path) -> None:
    senders = [Sender(title="CT1", host="127.0.0.1"), Sender(title="CT2", host="127.0.0.1", port=1)]
    with node(tmp_path / "queue", senders) as port:
        association = calling(port)
        assert ask(association, [(CTImageStorage, "1.9.9")]) == 0x0124
        association.release()
        association = calling(port, "CT2")
        assert ask(association, []) == 0x0115
        association.release()
    with node(tmp_path / "other", senders[:1]) as port:  # nobody can: it is not offered
        association = calling(port)
        kinds = [context.abstract_syntax for context in association.rejected_contexts]
        association.release()
        assert kinds == [StorageCommitmentPushModel]
    assert waiting(tmp_path / "queue") == waiting(tmp_path / "other") == []


def test_a_file_that_is_no_question_stops_no_other(
    tmp_path: Path, scanner: Scanner, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "queue" / commit.FOLDER
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{")
    (folder / "b.json").write_text("[]")
    (folder / "c.json").write_text(json.dumps({"to": "CT9@h", "transaction": "1", "images": []}))
    sound = {"to": "CT1@127.0.0.1", "transaction": "1.2", "images": [[CTImageStorage, "1.9"]]}
    (folder / "d.json").write_text(json.dumps(sound))
    senders = [Sender(title="CT1", host="127.0.0.1", port=scanner.port)]
    with node(tmp_path / "queue", senders):
        until(lambda: scanner.answers)
    assert caplog.text.count("a commitment") >= 3
    assert {path.name for path in waiting(tmp_path / "queue")} == {"a.json", "b.json", "c.json"}


def test_an_answer_nobody_takes_is_given_up_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "GIVE_UP_S", 0.0)
    senders = [Sender(title="CT1", host="127.0.0.1", port=1)]
    with node(tmp_path / "queue", senders) as port:
        association = calling(port)
        assert ask(association, [(CTImageStorage, "1.9.9")]) == 0
        association.release()
        until(lambda: not waiting(tmp_path / "queue"))


@pytest.mark.slow
def test_orthanc_sends_asks_and_is_answered(tmp_path: Path) -> None:
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not Path(program).is_file():
        pytest.skip("Orthanc is not installed (Debian: orthanc)")
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        web, dicom = taken.getsockname()[1], other.getsockname()[1]

    def orthanc(path: str, body: Any = None) -> Any:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/{path}", content, timeout=60) as told:
            return json.loads(told.read())

    def answered(number: str) -> Any:
        until(lambda: orthanc(f"storage-commitment/{number}")["Status"] != "Pending")
        return orthanc(f"storage-commitment/{number}")

    senders = [Sender(title="ORTHANC", host="127.0.0.1", port=dicom)]
    with node(tmp_path / "queue", senders) as port:
        config = {
            "StorageDirectory": str(tmp_path / "storage"),
            "IndexDirectory": str(tmp_path / "storage"),
            "HttpPort": web,
            "DicomPort": dicom,
            "RemoteAccessAllowed": False,
            "DicomModalities": {"leuda": ["LEUDA", "127.0.0.1", port]},
        }
        (tmp_path / "orthanc.json").write_text(json.dumps(config))
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([program, tmp_path / "orthanc.json"], stdout=log, stderr=log)
        try:
            until(lambda: "Orthanc has started" in (tmp_path / "log").read_text())
            images = make_series()
            for image in images:
                image.save_as(tmp_path / "image.dcm", enforce_file_format=True)
                made = orthanc("instances", (tmp_path / "image.dcm").read_bytes())
            asked = {"Resources": [made["ParentSeries"]], "StorageCommitment": True}
            sent = orthanc("modalities/leuda/store", {**asked, "Synchronous": True})
            number = sent["StorageCommitmentTransactionUID"]
            said = answered(number)
            assert said["Status"] == "Success"
            assert len(said["Success"]) == len(images)
            absent = {"SOPClassUID": CTImageStorage, "SOPInstanceUID": "1.9.9"}
            number = orthanc("modalities/leuda/storage-commitment", {"DicomInstances": [absent]})
            said = answered(number["ID"])
            assert said["Status"] == "Failure"
            assert [each["FailureReason"] for each in said["Failures"]] == [0x0112]
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_a_senders_port_is_read() -> None:
    assert parse_sender("CT1@10.0.0.5:104") == Sender(title="CT1", host="10.0.0.5", port=104)
    assert parse_sender("CT1@::1") == Sender(title="CT1", host="::1")
    for wrong in ("CT1@10.0.0.5:0", "CT1@10.0.0.5:99999", "CT1@:104"):
        with pytest.raises(InputError):
            parse_sender(wrong)

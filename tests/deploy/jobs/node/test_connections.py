"""Who connects and says nothing, or half of it, keeps no honest sender waiting."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pynetdicom = pytest.importorskip("pynetdicom", reason="the node extra is not installed")

from pynetdicom.sop_class import Verification  # noqa: E402

from leuda_deploy.jobs.node import connections  # noqa: E402
from leuda_deploy.jobs.node.peers import Sender  # noqa: E402
from leuda_deploy.jobs.node.queue import Queue  # noqa: E402
from leuda_deploy.jobs.node.receive import Door, Receiver  # noqa: E402
from leuda_deploy.jobs.node.waiting import Waiting  # noqa: E402

HALF_REQUEST = b"\x01\x00\x00\x00\x01\x00" + b"\x00" * 50  # of 256 bytes
HALF_MESSAGE = b"\x04\x00\x00\x00\x01\x00" + b"\x00" * 50
SENDER = Sender(title="CT1", host="127.0.0.1")
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def listening(folder: Path, senders: Sequence[Sender] = (SENDER,)) -> Iterator[int]:
    receiver = Receiver(Queue(folder), Door(port=0, senders=senders), lambda *_: None)
    with receiver.listening():
        yield receiver.port


def silent(port: int, count: int, said: bytes = b"") -> ExitStack:
    """So many connections that say this and no more, for as long as the block lasts."""
    every = ExitStack()
    for _ in range(count):
        peer = every.enter_context(socket.create_connection(("127.0.0.1", port)))
        peer.settimeout(30)
        peer.sendall(said)
    return every


def echo(port: int, title: str = "CT1") -> float | None:
    """Seconds that a C-ECHO takes, with its association; None if it is refused."""
    entity = pynetdicom.AE(ae_title=title)
    entity.add_requested_context(Verification)
    began = time.monotonic()
    association = entity.associate("127.0.0.1", port, ae_title="LEUDA")
    if not association.is_established:
        return None
    assert association.send_c_echo().Status == 0
    association.release()
    return time.monotonic() - began


@pytest.mark.parametrize("said", [b"", HALF_REQUEST[:3], HALF_REQUEST], ids=["", "three", "half"])
@pytest.mark.parametrize("count", [20, 150])
def test_an_honest_sender_is_served_beside_many_that_say_nothing(
    tmp_path: Path, count: int, said: bytes
) -> None:
    with listening(tmp_path / "queue") as port, silent(port, count, said):
        assert echo(port) is not None


def test_dcmtk_is_served_beside_them(tmp_path: Path) -> None:
    if shutil.which("echoscu") is None:
        pytest.skip("echoscu is not installed (Debian: dcmtk)")
    with listening(tmp_path / "queue") as port, silent(port, 20), silent(port, 20, HALF_REQUEST):
        subprocess.run(
            ["echoscu", "-aet", "CT1", "-aec", "LEUDA", "127.0.0.1", str(port)],
            check=True,
            timeout=connections.BEGINNING_S,
        )


@pytest.mark.parametrize("said", [b"", HALF_REQUEST], ids=["", "half"])
def test_they_are_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(connections, "BEGINNING_S", 0.5)
    with listening(tmp_path / "queue") as port:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(30)
            for byte in said:  # each byte in time, and the whole too late
                peer.sendall(bytes([byte]))
            assert peer.recv(1) == b""
        until_only_these(0)


def test_those_who_are_refused_are_not_counted(tmp_path: Path) -> None:
    with listening(tmp_path / "queue") as port:
        request = request_of("OTHER")
        with silent(port, connections.MOST_ASSOCIATIONS + 2, request):
            assert echo(port, "OTHER") is None
            assert echo(port) is not None


def associate(port: int, host: str, title: str = "CT1") -> pynetdicom.association.Association:
    """Asked for from one of this computer's addresses."""
    entity = pynetdicom.AE(ae_title=title)
    entity.add_requested_context(Verification)
    return entity.associate("127.0.0.1", port, ae_title="LEUDA", bind_address=(host, 0))


def test_no_peer_gets_more_associations_than_it_leaves_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an allowed peer that say nothing keep no other out, however many it asks for."""
    monkeypatch.setattr(connections, "MOST_ASSOCIATIONS", 4)
    senders = [SENDER, Sender(title="CT2")]
    greedy, honest, third = "127.0.0.1", "127.0.0.2", "127.0.0.3"
    with listening(tmp_path / "queue", senders) as port:
        idle = [associate(port, greedy) for _ in range(5)]
        assert [each.is_established for each in idle] == [True] * 2 + [False] * 3
        assert all(each.is_rejected for each in idle[2:])
        other = associate(port, honest, "CT2")
        assert other.is_established
        assert other.send_c_echo().Status == 0
        last = associate(port, third, "CT2")
        assert last.is_established
        assert associate(port, "127.0.0.4", "CT2").is_rejected  # all places are taken
        for each in (other, last):
            each.release()
        until_only_these(2)
        assert associate(port, greedy).is_rejected
        idle[0].release()
        until_only_these(1)
        again = associate(port, greedy)
        assert again.is_established
        for each in (idle[1], again):
            each.release()


def test_many_who_ask_at_once_get_no_more_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_ASSOCIATIONS", 4)
    with listening(tmp_path / "queue") as port, ThreadPoolExecutor(8) as callers:
        found = [*callers.map(lambda _: associate(port, "127.0.0.1"), range(8))]
        assert sum(each.is_established for each in found) == 2
        for each in found:
            each.abort()


def test_half_a_message_keeps_its_place_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom alone would wait for the other half for ever."""
    monkeypatch.setattr(connections, "MESSAGE_S", 0.5)
    with listening(tmp_path / "queue") as port, half_a_message(port) as peer:
        assert peer.recv(1) == b""
        until_only_these(0)


def test_the_end_waits_for_nobody(tmp_path: Path) -> None:
    with ExitStack() as peers:
        with listening(tmp_path / "queue") as port:
            for said in (b"", HALF_REQUEST):
                peers.enter_context(silent(port, 3, said))
            peers.enter_context(half_a_message(port))
            began = time.monotonic()
        # far less than is given to any of them
        assert time.monotonic() - began < min(connections.BEGINNING_S, connections.MESSAGE_S)


def test_of_too_many_the_oldest_goes() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    waiting = Waiting(2, 60)
    for ours, _ in pairs:
        waiting.add(ours)
    waiting.add(pairs[0][0])  # it said something, and waits again: the youngest
    assert waiting.hang_up() == 2
    for (_, theirs), gone in zip(pairs, [False, True, True, False], strict=True):
        theirs.setblocking(False)
        if gone:
            assert theirs.recv(1) == b""
        else:
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
    assert waiting.end(pairs[3][0])
    assert not waiting.end(pairs[1][0])
    assert waiting.hang_up(on_all=True) == 1
    for pair in pairs:
        for end in pair:
            end.close()


def request_of(title: str) -> bytes:
    """What a sender of this title says first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        entity = pynetdicom.AE(ae_title=title)
        entity.add_requested_context(Verification)
        port = server.getsockname()[1]
        caller = threading.Thread(
            target=lambda: entity.associate("127.0.0.1", port, ae_title="LEUDA")
        )
        caller.start()
        peer, _ = server.accept()
        with peer:
            said = peer.recv(10_000)
        caller.join()
    return said


@contextmanager
def half_a_message(port: int) -> Iterator[socket.socket]:
    """An association over which half a message came."""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(30)
        peer.sendall(request_of("CT1"))
        assert peer.recv(10_000)[0] == 2  # accepted
        peer.sendall(HALF_MESSAGE)
        yield peer


def until_only_these(count: int) -> None:
    """Threads of pynetdicom that serve somebody."""
    end = time.monotonic() + 30
    while len([each for each in threading.enumerate() if "AcceptorThread" in each.name]) > count:
        assert time.monotonic() < end
        time.sleep(0.02)

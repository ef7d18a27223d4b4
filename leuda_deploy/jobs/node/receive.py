"""associations of scanners and archives (C-ECHO, C-STORE, N-ACTION) -> images in the queue."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import TCPServer
from typing import Any

from leuda_deploy.errors import InputError, one_line, printable
from leuda_deploy.jobs.node import connections
from leuda_deploy.jobs.node.commit import Commitments
from leuda_deploy.jobs.node.peers import LOCAL, Sender, Tls
from leuda_deploy.jobs.node.queue import Queue

_log = logging.getLogger(__name__)

# statuses of C-STORE, PS3.4 B.2.3
SUCCESS, NOT_AUTHORISED, NO_ROOM, NOT_UNDERSTOOD = 0x0000, 0x0124, 0xA700, 0xC000
# what can be labelled: CT and MR, one image or many a file
IMAGES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
)


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where and from whom images are taken.

    title    our AE title; who calls another is refused
    senders  who may send; empty: anybody on this computer
    """

    title: str = "LEUDA"
    host: str = "127.0.0.1"
    port: int = 11112
    senders: Sequence[Sender] = ()
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if self.host not in LOCAL and not self.senders:
            raise InputError(
                f"--host {self.host} can be reached from elsewhere: say who may send, with "
                "--from AET@HOST"
            )


class Receiver:
    """Takes images for as long as `listening` lasts.

    on_image     called with the series' UID when the first image of it comes over an association
    commitments  takes what senders ask us to have stored
    """

    def __init__(
        self,
        queue: Queue,
        door: Door,
        on_image: Callable[[str, str], None],
        commitments: Commitments | None = None,
    ) -> None:
        self._queue, self._door, self._on_image = queue, door, on_image
        self._commitments = commitments
        self._open: dict[Any, set[str]] = {}  # association -> series that came over it
        self._lock = threading.Lock()
        self.port = door.port

    @property
    def busy(self) -> set[str]:
        """UIDs of the series that somebody may be sending now."""
        with self._lock:
            self._open = {each: uids for each, uids in self._open.items() if each.is_alive()}
            return {uid for uids in self._open.values() for uid in uids}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Raises InputError if the port cannot be had."""
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
        from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

        door = self._door
        node = AE(ae_title=door.title)
        node.require_called_aet = True
        node.require_calling_aet = sorted({each.title for each in door.senders})
        node.maximum_associations = connections.MOST_CONNECTIONS  # the server counts them better
        node.acse_timeout = connections.BEGINNING_S
        node.add_supported_context(Verification)
        for uid in IMAGES:
            node.add_supported_context(uid, ALL_TRANSFER_SYNTAXES)
        if self._commitments is not None and self._commitments.offered:
            node.add_supported_context(StorageCommitmentPushModel)
        closed = (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE)
        try:
            server = node.make_server(
                (door.host, door.port),
                ssl_context=None if door.tls is None else door.tls.accepting(),
                evt_handlers=[
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_N_ACTION, self._commit),
                    *((each, self._close) for each in closed),
                ],
                server_class=connections.server_class({each.host for each in door.senders}),
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {door.host}:{door.port}: {one_line(error)}; choose another "
                "--port"
            ) from error
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, name="leuda-receive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            TCPServer.shutdown(server)  # pynetdicom's own looks for it in a list of its own
            server.server_close()
            node.shutdown()  # the associations

    def _store(self, event: Any) -> int:
        """Keep an image. What is answered is true: success, if it is on the disk."""
        title = str(event.assoc.requestor.ae_title).strip()
        host = str(event.assoc.requestor.address)
        if not self._may_send(title, host):
            _log.warning("refused an image of %s@%s: it is not in --from", title, host)
            return NOT_AUTHORISED
        try:
            dataset = event.dataset
            series, image = str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)
            if not (series.strip() and image.strip()):  # two such would be taken for one
                raise ValueError("an empty SeriesInstanceUID or SOPInstanceUID")
            modality = printable(str(dataset.get("Modality", "")), 16)
        except Exception as error:  # noqa: BLE001  (of a damaged data set, pydicom raises anything)
            _log.warning("refused an image of %s@%s: %s", title, host, one_line(error))
            return NOT_UNDERSTOOD
        with self._lock:
            series_of = self._open.setdefault(event.assoc, set())
            first = series not in series_of
            series_of.add(series)
        sender = printable(f"{title}@{host}", 80)
        try:
            content = event.encoded_dataset()
            self._queue.take(series, image, content, sender=sender, modality=modality)
        except (OSError, sqlite3.Error) as error:
            _log.warning("cannot keep an image of %s: %s", sender, one_line(error))
            return NO_ROOM
        if first:
            self._on_image(series, sender)
        return SUCCESS

    def _commit(self, event: Any) -> tuple[int, None]:
        """Keep what a sender asks us to have stored; it is answered later."""
        title = str(event.assoc.requestor.ae_title).strip()
        host = str(event.assoc.requestor.address)
        if self._commitments is None or not self._may_send(title, host):
            _log.warning("refused a commitment to %s@%s: it is not in --from", title, host)
            return NOT_AUTHORISED, None
        asked = event.action_information
        return self._commitments.ask(f"{title}@{host}", event.action_type, asked), None

    def _close(self, event: Any) -> None:
        with self._lock:
            self._open.pop(event.assoc, None)

    def _may_send(self, title: str, host: str) -> bool:
        return not self._door.senders or any(
            each.title == title and each.host in (None, host) for each in self._door.senders
        )

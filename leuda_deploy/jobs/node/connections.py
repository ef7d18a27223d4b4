"""a connection -> an association, or hung up on.

pynetdicom takes whoever connects for an association, with two threads that look every millisecond
whether something came; it waits for the end of a message for ever, and keeps in memory whatever
length one states. Here a connection is one sleeping thread until it says something, and has
`BEGINNING_S` to ask for an association; only those that got one count as such. None may have more
of them than it leaves to the others, so one that opens many and says nothing keeps nobody out.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

from leuda_deploy.jobs.node.waiting import Waiting

_log = logging.getLogger(__name__)

MOST_ASSOCIATIONS = 20  # of all peers; one alone gets half of them
MOST_WAITING = 100  # connections that have not asked for an association yet
MOST_CONNECTIONS = 500  # that have said something, and may be refused for it
MOST_MESSAGE_BYTES = 1 << 20  # of one PDU; we ask for less than 17 KB in each
BEGINNING_S = 5.0  # for TLS and the whole request of an association
MESSAGE_S = 60.0  # for the rest of a message that has begun
POLL_S = 0.5
LIMIT_EXCEEDED = (0x02, 0x03, 0x02)  # A-ASSOCIATE-RJ: for now, by the provider; PS3.8 9.3.4


def server_class(hosts: set[str | None]) -> Any:
    """A server for `AE.make_server` that only lets these hosts in; empty or None: any host."""
    from pynetdicom import evt
    from pynetdicom.transport import ThreadedAssociationServer

    class OurServer(ThreadedAssociationServer):  # type: ignore[misc]
        daemon_threads = True  # the end waits for nobody who says nothing
        request_queue_size = 128

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._waiting = Waiting(MOST_WAITING, BEGINNING_S)
            self._closing = threading.Event()
            self._placed: list[Any] = []  # associations that were let in
            self._lock = threading.Lock()
            super().__init__(*args, **kwargs)
            self.bind(evt.EVT_CONN_OPEN, self._opened)
            self.bind(evt.EVT_REQUESTED, self._requested)
            self.bind(evt.EVT_CONN_CLOSE, _closed)

        def verify_request(self, request: Any, client_address: Any) -> bool:
            if hosts and None not in hosts and client_address[0] not in hosts:
                _log.warning("refused a connection of %s: it is not in --from", client_address[0])
                return False
            if len(self.active_associations) >= MOST_CONNECTIONS:
                _log.warning("refused a connection of %s: too many are open", client_address[0])
                return False
            return True

        def get_request(self) -> tuple[Any, Any]:
            request, address = self.socket.accept()
            if self.ssl_context is not None:  # the handshake follows in a thread of its own
                request = self.ssl_context.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
            return request, address

        def process_request(self, request: Any, client_address: Any) -> None:
            self._waiting.add(request)
            super().process_request(request, client_address)

        def service_actions(self) -> None:  # after each connection, and every half second
            super().service_actions()
            if count := self._waiting.hang_up():
                _log.warning("hung up on %d that asked for no association", count)

        def finish_request(self, request: Any, client_address: Any) -> None:
            if self.ssl_context is not None:
                request.do_handshake()
            if _says_something(request):
                super().finish_request(request, client_address)
            else:
                self.shutdown_request(request)

        def shutdown_request(self, request: Any) -> None:
            self._waiting.end(request)
            super().shutdown_request(request)

        def handle_error(self, request: Any, client_address: Any) -> None:
            _log.warning("a connection of %s broke off", client_address[0])

        def server_close(self) -> None:
            self._closing.set()
            super().server_close()
            self._waiting.hang_up(on_all=True)

        def _opened(self, event: Any) -> None:
            """Read its messages by our own rules."""
            connection = event.assoc.dul.socket
            connection.socket.settimeout(POLL_S)
            connection.recv = lambda count: self._receive(connection.socket, count, event.address)

        def _receive(self, connection: Any, count: int, address: Any) -> bytearray:
            """So many bytes, or all before the end. Raises OSError to hang up."""
            if count > MOST_MESSAGE_BYTES:
                _log.warning("hung up on %s: a message of %d bytes", address[0], count)
                raise OSError("too large a message")
            found, end = bytearray(), time.monotonic() + MESSAGE_S
            while len(found) < count:
                if self._closing.is_set() or time.monotonic() > end:
                    raise TimeoutError("the rest of a message does not come")
                try:
                    part = connection.recv(min(count - len(found), 1 << 16))
                except TimeoutError:
                    continue
                if not part:
                    break
                found += part
            return found

        def _requested(self, event: Any) -> None:
            """An association is asked for: it is refused here if there are too many."""
            association = event.assoc
            self._waiting.end(association.dul.socket.socket)
            if (own := self._too_many(association)) is not None:
                address = association.requestor.address
                _log.warning("refused an association of %s: it has %d open", address, own)
                association.acse.send_reject(*LIMIT_EXCEEDED)
                association.kill()

        def _too_many(self, association: Any) -> int | None:
            """How many its peer has, if that is as much as is free; None: it got a place."""
            with self._lock:
                self._placed = [each for each in self._placed if _lasts(each)]
                address = association.requestor.address
                own: int = sum(each.requestor.address == address for each in self._placed)
                if own >= MOST_ASSOCIATIONS - len(self._placed):
                    return own
                self._placed.append(association)
                return None

    return OurServer


def _says_something(request: Any) -> bool:
    """Sleep until a first byte comes; False if the peer is gone, or was hung up on.

    Under TLS it is a byte of a record, or one that came with the handshake.
    """
    if getattr(request, "pending", int)():
        return True
    try:
        return bool(socket.socket.recv(request, 1, socket.MSG_PEEK))
    except OSError:
        return False


def _lasts(association: Any) -> bool:
    """Whether it is open, or about to be."""
    over = association.is_rejected or association.is_aborted or association.is_released
    return association.is_alive() and not over


def _closed(event: Any) -> None:
    """Wake the thread that still waits for the request of an association."""
    if event.assoc.dul.state_machine.current_state == "Sta2":  # PS3.8 9.2: none has come
        event.assoc.dul.to_user_queue.put(None)

"""connections that say nothing -> hung up on, so that they keep nobody else waiting."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Waiting:
    """Connections that have not said yet what they want: at most so many, each for so long.

    Who speaks at once is served, however many say nothing: of too many, the oldest goes.

    most     connections
    seconds  for all that a connection has to say first
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._since: dict[socket.socket, float] = {}  # the oldest first
        self._lock = threading.Lock()

    def add(self, connection: socket.socket) -> None:
        """It has to say something from now on."""
        with self._lock:
            self._since.pop(connection, None)
            self._since[connection] = time.monotonic()

    def end(self, connection: socket.socket) -> bool:
        """It has said it, or is gone; False if it was hung up on before."""
        with self._lock:
            return self._since.pop(connection, None) is not None

    def hang_up(self, *, on_all: bool = False) -> int:
        """Hang up on those that are too many or take too long; how many."""
        with self._lock:
            late = time.monotonic() - self._seconds
            extra = len(self._since) - self._most
            found = [
                connection
                for place, (connection, since) in enumerate(self._since.items())
                if on_all or place < extra or since <= late
            ]
            for connection in found:
                del self._since[connection]
        for connection in found:
            with suppress(OSError):  # it is gone; TLS would want to say goodbye
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        return len(found)

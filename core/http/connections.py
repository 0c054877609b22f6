"""The connections of a service: how many there may be, which are idle, and how they end.

Where there is no room for a new one, the one that has idled longest is closed, as nginx does it. Its client sees a
kept-alive connection that timed out a little early.
"""

import socket
import threading
from typing import Dict, Optional

from core.http.sockets import Wire, cut, stop_reading

_CLOSING_SECONDS = 1.0  # until a connection that was told to end has ended


class Connections:
    """All open connections by their sockets. Any thread may use it."""

    def __init__(self, most: int):
        self.most = most
        self._changed = threading.Condition()  # guards all below; notified when a request or a connection ends
        self._open: Dict[socket.socket, Optional[Wire]] = {}  # None until the connection's thread has begun
        self._idle: Dict[socket.socket, bool] = {}  # waiting for a request, the longest first: had it an answer before?
        self._active = 0

    def __len__(self) -> int:
        return len(self._open)

    def active(self) -> int:
        """Return how many requests are being answered."""
        return self._active

    def opened(self, sock: socket.socket, wire: Optional[Wire] = None) -> None:
        """Count a connection in: when it is accepted, and again when its thread has begun."""
        with self._changed:
            self._open[sock] = wire
            self._idle[sock] = False

    def closed(self, sock: socket.socket) -> None:
        """Count a connection out."""
        with self._changed:
            self._open.pop(sock, None)
            self._idle.pop(sock, None)
            self._changed.notify_all()

    def begins(self, sock: socket.socket) -> None:
        """Count a request as running; a drain waits until it ends."""
        with self._changed:
            self._active += 1
            self._idle.pop(sock, None)

    def ends(self, sock: socket.socket) -> None:
        """Count a request as ended; the connection waits for the next one."""
        with self._changed:
            self._active -= 1
            self._idle[sock] = True
            self._changed.notify_all()

    def has_room(self) -> bool:
        """Whether one more may be opened; an idle one is closed for it."""
        return len(self._open) < self.most or self.make_room()

    def make_room(self) -> bool:
        """Close the connection that has idled longest, and wait until it is closed; False where none is idle."""
        with self._changed:
            before = len(self._open)
            if not any(self._end(sock) for sock in list(self._idle)):
                return False
            return self._changed.wait_for(lambda: len(self._open) < before, _CLOSING_SECONDS)

    def end_idle(self, newcomers: bool = False) -> None:
        """Close the connections that wait for a next request; with `newcomers`, those that wait for their first, too.

        New clients count on an answer. Connections without a Wire have just been accepted, and are not closed here.
        """
        with self._changed:
            for sock, answered in list(self._idle.items()):
                if self._open[sock] and (answered or newcomers):
                    self._end(sock)

    def wait_until_closed(self, timeout: float) -> None:
        """Wait until none is open, for `timeout` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout)

    def cut(self) -> int:
        """Break the connections that are left; return how many running requests are cut off."""
        with self._changed:
            left, active = [(sock, wire) for sock, wire in self._open.items() if wire], self._active
        for sock, wire in left:
            wire.ended = True
            cut(sock)
        return active

    def _end(self, sock: socket.socket) -> bool:
        """End a connection that waits for a request; False where one has just arrived, which is answered first."""
        wire = self._open[sock]
        if (wire and wire.has_bytes()) or not stop_reading(sock):
            return False
        del self._idle[sock]
        return True

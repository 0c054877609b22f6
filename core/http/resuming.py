"""Answers that another process has begun: it was killed, and left its clients' connections to this one.

    Resumer(service).resume(sock, peer, Unfinished)    a thread that goes on with one answer, then closes the connection

What is left of a keep-alive connection's next requests, if a client sends them before it has its answer, died with the
other process. So the connection ends with its answer, in an orderly way: the client asks again on a new one.
"""

import logging
import socket
import threading
import time
from typing import Any, Protocol

from core.errors import HangUp
from core.http.connection import Connection
from core.http.messages import Request, Stream
from core.http.server import Service
from core.http.sockets import Wire

log = logging.getLogger("comeapi.http")


class Unfinished(Protocol):
    """An answer of another process."""

    written: int  # bytes that its connection has carried
    rest: bytes  # of what the other process was sending; it comes first
    begun: bool  # the head was sent, or is in the rest: the answer is a Stream of what follows

    def request(self, wire: Wire) -> Request:
        """Return its request."""

    def record(self, request: Request) -> Any:
        """Return what is kept of it: a core.http.sockets.Record."""

    def answer(self, request: Request, record: Any) -> Any:
        """Return the Reply or Stream that follows; None where nothing does. Raises APIError, HangUp."""


class Resumer:
    """Goes on with a service's unfinished answers."""

    def __init__(self, service: Service):
        self.service = service  # a Connection asks its server for it

    def resume(self, sock: socket.socket, peer: Any, unfinished: Unfinished) -> None:
        """Go on with an answer in a thread of its own, which closes the socket. Raises RuntimeError."""
        self.service.connections.opened(sock)
        threading.Thread(target=self._run, args=(sock, peer, unfinished), name="resumed", daemon=True).start()

    def _run(self, sock: socket.socket, peer: Any, unfinished: Unfinished) -> None:
        try:
            _Resumed(sock, peer, self, unfinished)
        except Exception:
            log.exception("an answer that another process has begun could not be finished")
        finally:
            sock.close()
            self.service.connections.closed(sock)


class _Resumed(Connection):
    """A connection with one answer, whose beginning is another process'."""

    def __init__(self, sock: socket.socket, peer: Any, server: Any, unfinished: Unfinished):
        self._unfinished = unfinished
        super().__init__(sock, peer, server)

    def handle(self) -> None:
        """Send what is left of the answer."""
        self.service.connections.begins(self.request)
        try:
            self._finish_answer()
        except HangUp:
            pass  # the client has left
        finally:
            self.wire.end_record()
            self.wire.linger()
            self.service.connections.ends(self.request)

    def _finish_answer(self) -> None:
        left, started = self._unfinished, time.monotonic()
        request = left.request(self.wire)
        record = left.record(request)
        self.wire.written = left.written
        try:
            self.wire.write(left.rest)  # it is noted already
        finally:
            self.wire.record = record
        if request.key:
            self.service.limits.enter_again(request.key)
        self._body_pending, self.close_connection = False, True
        try:
            reply = self.service.shielded(request, lambda: left.answer(request, record))
        except HangUp:
            return self.service.finished(request, 499, 0, time.monotonic() - started)
        if reply is None:
            return self.service.finished(request, 200, 0, time.monotonic() - started)
        self._answer(request, reply, started)

    def _send_stream(self, request: Request, reply: Stream) -> int:
        if not self._unfinished.begun:
            return super()._send_stream(request, reply)
        self.begin_stream(request, reply)
        request.begin_silence()
        return self.send_pieces(request, reply, b"", self.next_piece_or_error(reply))

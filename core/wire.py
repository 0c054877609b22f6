"""Sockets that do not block: a client's, read with deadlines, and what the client of other servers needs, too.

    readable, writable, would_block, send_all    one step on a socket, or several
    Wire                                         one client's socket; knows whether its peer has gone
"""

import contextlib
import re
import select
import socket
import time
from typing import Any, List, Optional, Sequence

from core.errors import APIError, HangUp, TimedOut

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_RECV = 65536
_READ_AHEAD = 65536  # what may wait in memory while a request is being answered: a pipelined next one
_LINGER_SECONDS = 2.0


def readable(sockets: Sequence[Any], timeout: float) -> List[Any]:
    """Return those of `sockets` that have bytes, an end or an error to read, waiting up to `timeout` seconds."""
    decrypted = [each for each in sockets if hasattr(each, "pending") and each.pending()]
    if decrypted:  # a TLS socket's own buffer, which the system knows nothing of
        return decrypted
    return _ready(sockets, timeout, "POLLIN")


def writable(sockets: Sequence[Any], timeout: float) -> List[Any]:
    """Return those of `sockets` that take bytes, or have an error to tell, waiting up to `timeout` seconds."""
    return _ready(sockets, timeout, "POLLOUT")


def _ready(sockets: Sequence[Any], timeout: float, what: str) -> List[Any]:
    """Return those of `sockets` that are ready to be read (POLLIN) or written (POLLOUT)."""
    if not hasattr(select, "poll"):  # Windows
        wanted = (sockets, [], []) if what == "POLLIN" else ([], sockets, [])
        return [each for ready in select.select(*wanted, timeout) for each in ready]
    poll = select.poll()  # unlike select.select, good for file descriptors over 1,023
    by_number = {each.fileno(): each for each in sockets}
    for number in by_number:
        if number < 0:
            return [by_number[number]]  # closed under us: using it will say so
        poll.register(number, getattr(select, what))
    return [by_number[number] for number, _ in poll.poll(timeout * 1000)]


def send_all(sock: Any, data: bytes, timeout: float) -> None:
    """Send everything on a socket that does not block, at once where it fits.

    Raises socket.timeout where the peer takes nothing for `timeout` seconds, OSError where it has gone.
    """
    left = memoryview(data)
    while True:
        try:
            left = left[sock.send(left) :]
        except OSError as error:
            if not would_block(error):
                raise
            if not _ready([sock], timeout, "POLLOUT"):
                raise socket.timeout("nothing was taken for %g s" % timeout)
        if not left:
            return


def would_block(error: OSError) -> bool:
    """Whether an error only says that nothing can be read or written now; TLS has its own for that."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


class Wire:
    """One client's socket: reads have deadlines (`time.monotonic` seconds), and an end is noticed while answering."""

    def __init__(self, sock: socket.socket, write_timeout: float):
        sock.setblocking(False)
        self.sock = sock
        self.ended = False  # the peer has closed its side, or the connection broke
        self._write_timeout = write_timeout
        self._buffer = bytearray()

    def wait(self, deadline: float) -> bool:
        """Wait for a first byte; False if the peer closed or nothing came in time."""
        try:
            return bool(self._buffer) or self._receive(deadline)
        except TimedOut:
            return False

    def read_head(self, limit: int, deadline: float) -> bytes:
        """Return everything up to the next empty line. Raises HangUp, TimedOut, APIError 431."""
        searched = 0
        while True:
            match = _HEAD_END.search(self._buffer, max(0, searched - 3))
            if match and match.end() <= limit:
                if match.group() != b"\r\n\r\n":
                    raise APIError(400, "Lines must end in CRLF.", "bad_http")
                return self._take(match.start(), match.end())
            if match or len(self._buffer) > limit:
                raise APIError(431, "The request's headers are larger than %d bytes." % limit, "headers_too_large")
            searched = len(self._buffer)
            self._need(deadline)

    def read_line(self, limit: int, deadline: float) -> bytes:
        """Return the next line without its CRLF. Raises HangUp, TimedOut, APIError 400 beyond `limit` bytes."""
        while True:
            end = self._buffer.find(b"\r\n")
            if 0 <= end <= limit:
                return self._take(end, end + 2)
            if len(self._buffer) > limit:
                raise APIError(400, "A line of the chunked body is too long.", "bad_chunk")
            self._need(deadline)

    def read_exactly(self, count: int, deadline: float) -> bytes:
        """Return the next `count` bytes. Raises HangUp, TimedOut."""
        while len(self._buffer) < count:
            self._need(deadline)
        return self._take(count, count)

    def write(self, data: bytes) -> None:
        """Send all of `data`, at once where it fits. Raises HangUp where the client goes or takes nothing for long."""
        try:
            send_all(self.sock, data, self._write_timeout)
        except (OSError, ValueError) as error:
            self.ended = True
            raise HangUp(str(error))

    def hung_up(self) -> bool:
        """Tell at once whether the client has gone. Bytes of a next request are kept for later."""
        while not self.ended and len(self._buffer) < _READ_AHEAD and readable([self.sock], 0):
            data = self._recv()
            if data is None:
                break
            self._buffer += data
            self.ended = not data
        return self.ended

    def wait_for(self, other: socket.socket, timeout: float) -> bool:
        """Wait up to `timeout` seconds until `other` can be read. Raises HangUp the moment the client leaves."""
        deadline = time.monotonic() + timeout
        while True:
            # With its next request read ahead to the limit, a client can't be watched without reading on.
            watched = [other] if len(self._buffer) >= _READ_AHEAD else [other, self.sock]
            ready = readable(watched, max(0.0, deadline - time.monotonic()))
            if other in ready:
                return True
            if self.sock in ready and self.hung_up():
                raise HangUp("the client closed the connection")
            if time.monotonic() >= deadline:
                return False

    def linger(self) -> None:
        """Close our side, then read and drop what the client still sends for a moment, so that no reset eats our
        last reply before the client has read it (RFC 9112, section 9.6)."""
        deadline = time.monotonic() + _LINGER_SECONDS
        with contextlib.suppress(OSError, TimedOut):
            self.sock.shutdown(socket.SHUT_WR)
            self._buffer.clear()
            while self._receive(deadline):
                self._buffer.clear()

    def _take(self, count: int, drop: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:drop]
        return taken

    def _need(self, deadline: float) -> None:
        if not self._receive(deadline):
            raise HangUp("the client closed the connection")

    def _receive(self, deadline: float) -> bool:
        """Read once into the buffer; False at the end. Raises TimedOut."""
        data: Optional[bytes] = None
        while data is None:
            left = deadline - time.monotonic()
            if left <= 0 or not readable([self.sock], left):
                raise TimedOut()
            data = self._recv()
        self._buffer += data
        self.ended = not data
        return bool(data)

    def _recv(self) -> Optional[bytes]:
        """Return what is here: nothing at the end, or when the connection broke; None where half a record is here."""
        try:
            return self.sock.recv(_RECV)
        except (OSError, ValueError) as error:
            return None if isinstance(error, OSError) and would_block(error) else b""

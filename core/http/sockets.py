"""Sockets that do not block, for the server and the client.

    readable, would_block, send_all, wait_as_wanted, …    one step on a socket, or several
    Wire                                               one client's socket; knows whether its peer has gone

A client may leave, or only close its sending side (`printf … | nc -N`). Both look the same: the socket reads as ended.
They differ when bytes reach them: a client that has left answers with a reset. So the server sends a few bytes as a
probe: an interim 100 Continue before the answer, a ping within a stream of events. If the end came while the client was
waiting, which is typical of clients that leave, the probe is sent at once. If the end came with the request, which is
typical of a half-close, the probe is sent a little later. Where no probe can be sent, the first kind counts as gone,
and the second does not.

Bytes that a slow client has not taken wait in the kernel. Only those that do not fit there are seen to wait, and are
timed. On Linux, TCP_NOTSENT_LOWAT keeps that buffer small: measured, 0.1 to 0.3 MB of a stream in place of 3 to 4 MB.
"""

import contextlib
import re
import select
import socket
import time
from typing import Iterator, List, Optional, Protocol, Sequence

from core.errors import APIError, HangUp, TimedOut
from core.http.chunks import Dechunker, decoded

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_RECV = 65536
_READ_AHEAD = 65536  # bytes of the next, pipelined request that may wait in memory while one is being answered
_UNSENT = 128 << 10  # bytes that may wait in the kernel before they are sent
_LINGER_SECONDS = 2.0
_LOOK_SECONDS = 0.25  # between two looks whether a half-closed client is still there
_ASK_SECONDS = 0.2  # until the probe, where the end came with the request: most clients have their answer by then
_TOGETHER_SECONDS = 0.05  # an end that is found so soon came with the request
_RESET_SECONDS = 0.01  # for a near client to answer the probe with a reset
SLOWEST = 16 << 10  # bytes a second that a client must take in the long run
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def readable(sockets: Sequence[socket.socket], timeout: float) -> List[socket.socket]:
    """Return those of `sockets` that have bytes, an end or an error to read, waiting up to `timeout` seconds."""
    decrypted = [each for each in sockets if hasattr(each, "pending") and each.pending()]
    if decrypted:  # in a TLS socket's own buffer, which the system does not see
        return decrypted
    return _ready(sockets, timeout, "POLLIN")


def writable(sockets: Sequence[socket.socket], timeout: float) -> List[socket.socket]:
    """Return those of `sockets` that take bytes, or have an error to tell, waiting up to `timeout` seconds."""
    return _ready(sockets, timeout, "POLLOUT")


def _ready(sockets: Sequence[socket.socket], timeout: float, what: str) -> List[socket.socket]:
    """Return those of `sockets` that can be read (POLLIN) or written (POLLOUT), or are broken (POLLERR)."""
    if not hasattr(select, "poll"):  # Windows
        wanted = {"POLLIN": (sockets, [], []), "POLLOUT": ([], sockets, []), "POLLERR": ([], [], sockets)}[what]
        return [each for ready in select.select(*wanted, timeout) for each in ready]
    poll = select.poll()  # unlike select.select, good for file descriptors over 1,023
    by_number = {each.fileno(): each for each in sockets}
    for number in by_number:
        if number < 0:
            return [by_number[number]]  # another thread has closed it: using it raises
        poll.register(number, getattr(select, what))
    return [by_number[number] for number, _ in poll.poll(timeout * 1000)]


def send_all(sock: socket.socket, data: bytes, timeout: float) -> float:
    """Send everything on a socket that does not block, at once where it fits; return the seconds that it had to wait.

    The peer has `timeout` seconds, and one more for each SLOWEST bytes of the data. Raises socket.timeout where it is
    slower, OSError where it has gone.
    """
    left, waited = memoryview(data), 0.0
    allowed = timeout + len(data) / SLOWEST
    while True:
        try:
            left = left[sock.send(left) :]
        except OSError as error:
            if not would_block(error):
                raise
            began = time.monotonic()
            if waited >= allowed or not _ready([sock], allowed - waited, _wanted(error)):
                raise socket.timeout("%d bytes were not taken in %g s" % (len(left), allowed))
            waited += time.monotonic() - began
        if not left:
            return waited


def _wanted(error: OSError) -> str:
    return "POLLIN" if type(error).__name__ == "SSLWantReadError" else "POLLOUT"


def _prepare(sock: socket.socket) -> None:
    """Send small packets at once (Nagle's algorithm and delayed ACKs cost 40 ms a reply), and let few bytes wait."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


def stop_reading(sock: socket.socket) -> bool:
    """Wake the thread that waits for bytes, as if its client had closed its side; False where some have come."""
    if readable([sock], 0):
        return False
    _shut(sock, socket.SHUT_RD)
    return True


def cut(sock: socket.socket) -> None:
    """Break a connection, whatever its thread does."""
    _shut(sock, socket.SHUT_RDWR)


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, how)  # SSLSocket.shutdown drops its keys, which its thread may be using


def wait_as_wanted(sock: socket.socket, error: OSError, deadline: float) -> None:
    """Wait until a socket can do what `error` (see would_block) says that it could not. Raises TimedOut."""
    if not _ready([sock], max(0.0, deadline - time.monotonic()), _wanted(error)):
        raise TimedOut()


def would_block(error: OSError) -> bool:
    """Whether an error only says that nothing can be read or written now; TLS has its own for that."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


class Record(Protocol):
    """What is kept of a request outside of this process, in case that it is killed."""

    def begins(self) -> None:
        """The first bytes of a streamed answer are sent next."""

    def writes(self, data: bytes, end: int, last: bool) -> None:
        """Bytes are sent next; the connection will have carried `end` bytes then. They may be the `last` ones."""

    def fails(self) -> None:
        """The bytes that are sent next tell the client that its answer broke off."""

    def ends(self) -> None:
        """The request is over."""


class Wire:
    """One client's socket: reads have deadlines (`time.monotonic` seconds), and an end is noticed while answering.

    `written` is how many bytes it has carried to the client, `record` what is kept of the present request, if anything.

    A client may keep us waiting with its answer for `write_timeout` seconds in all. Each SLOWEST bytes that it takes
    give it a second back.
    """

    def __init__(self, sock: socket.socket, write_timeout: float):
        sock.setblocking(False)
        _prepare(sock)
        self.sock = sock
        self.ended = False  # the client has gone, or the connection broke
        self._silent = False  # the client has closed its sending side, or left
        self._probe: Optional[bytes] = None  # the bytes to probe it with; None: it counts as gone; b"": they were sent
        self._begun = self._ask_at = 0.0
        self._write_timeout = self._patience = write_timeout
        self._buffer = bytearray()
        self.written = 0
        self.record: Optional[Record] = None

    def has_bytes(self) -> bool:
        """Whether something has been read that is not used yet."""
        return bool(self._buffer)

    def wait(self, deadline: float) -> bool:
        """Wait for a first byte; False if the peer closed or nothing came in time."""
        try:
            return bool(self._buffer) or self._receive(deadline)
        except TimedOut:
            return False

    def read_head(self, limit: int, deadline: float) -> bytes:
        """Return everything up to the next empty line. Raises HangUp, TimedOut, APIError 431."""
        searched = 0
        self._patience = self._write_timeout
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

    def pieces(self, count: int, deadline: float) -> Iterator[bytes]:
        """Yield the next `count` bytes as they come. Raises HangUp, TimedOut."""
        while count:
            if not self._buffer:
                self._need(deadline)
            piece = self._take(min(count, len(self._buffer)), min(count, len(self._buffer)))
            count -= len(piece)
            yield piece

    def decoded(self, chunks: Dechunker, deadline: float) -> Iterator[bytes]:
        """Yield a chunked body's bytes as they come. Raises BadChunk, HangUp, TimedOut."""
        return decoded(self._buffer, chunks, lambda: self._need(deadline))

    def write(self, data: bytes, last: bool = False) -> None:
        """Send all of `data`, at once where it fits; `last` says that it ends an answer.

        Raises HangUp where the client goes, or lags too far behind.
        """
        if self.record:
            self.record.writes(data, self.written + len(data), last)
        try:
            waited = send_all(self.sock, data, self._patience)
        except (OSError, ValueError) as error:
            self.ended = True
            raise HangUp(str(error))
        self.written += len(data)
        self._patience = min(self._write_timeout, max(0.0, self._patience + len(data) / SLOWEST - waited))

    def end_record(self) -> None:
        """Nothing more is to be kept of the present request."""
        record, self.record = self.record, None
        if record:
            record.ends()

    def begin_request(self, version: str) -> None:
        """Take note that the whole request is here. If its end came with it, the client has only half-closed."""
        self.begin_answer(CONTINUE if version == "HTTP/1.1" else None)

    def begin_answer(self, probe: Optional[bytes]) -> None:
        """Take note that a client that closes its sending side may be sent `probe`, to see whether it has left."""
        self._probe, self._begun = probe, time.monotonic()
        if not probe:  # then only an end that is here by now is a half-close; otherwise this look, a slow one, can wait
            self._read_ahead()
            self._probe = b"" if self._silent else None
        self._ask_at = self._begun + _ASK_SECONDS

    def hung_up(self) -> bool:
        """Tell at once whether the client has gone. Bytes of a next request are kept for later."""
        self._read_ahead()
        if self._silent and not self.ended and self._has_left():
            self.ended = True  # and never False again: another thread may have cut the connection meanwhile
        return self.ended

    def _read_ahead(self) -> None:
        while not self._silent and len(self._buffer) < _READ_AHEAD and readable([self.sock], 0):
            data = self._recv()
            if data is None:
                break
            self._buffer += data
            self._silent = not data
            if self._silent and time.monotonic() >= self._begun + _TOGETHER_SECONDS:
                self._ask_at = 0.0

    def _has_left(self) -> bool:
        """Tell a client that has left from one that has closed its sending side only; see the module's docstring."""
        if self._probe is None or self._reset():
            return True
        if self._probe and time.monotonic() >= self._ask_at:
            probe, self._probe = self._probe, b""
            try:
                self.write(probe)
            except HangUp:
                return True
            _ready([self.sock], _RESET_SECONDS, "POLLERR")
            return self._reset()
        return False

    def _reset(self) -> bool:
        try:
            return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except (OSError, ValueError):
            return True

    def wait_for(self, other: socket.socket, timeout: float) -> bool:
        """Wait up to `timeout` seconds until `other` can be read. Raises HangUp the moment the client leaves."""
        deadline = time.monotonic() + timeout
        while True:
            # Where the buffer is full of its next request, the socket stays readable and tells nothing new.
            alone = self._silent or len(self._buffer) >= _READ_AHEAD
            left = max(0.0, deadline - time.monotonic())
            ready = readable([other] if alone else [other, self.sock], min(left, _LOOK_SECONDS) if alone else left)
            if other in ready:
                return True
            if (self._silent or self.sock in ready) and self.hung_up():
                raise HangUp("the client closed the connection")
            if time.monotonic() >= deadline:
                return False

    def linger(self) -> None:
        """Close our sending side, then read and drop for a moment what the client still sends.

        Otherwise a reset could reach the client before it has read our last reply (RFC 9112, section 9.6).
        """
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
        self._silent = not data
        return bool(data)

    def _recv(self) -> Optional[bytes]:
        """Return the bytes that are here: none at the end or a broken connection; None where half a TLS record is."""
        try:
            return self.sock.recv(_RECV)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and would_block(error):
                return None
            self.ended = True
            return b""

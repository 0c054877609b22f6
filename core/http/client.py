"""Calling other HTTP servers: urllib, with connections that are kept alive.

As it comes, urllib closes every connection, follows redirects and obeys proxy variables. An OpenerDirector with just
one handler, whose http_open takes connections from a pool, does none of that and is still urllib. http.client, which
urllib would use below that, takes three times as long for a request as everything else that a balancer does with it, so
the few lines of HTTP/1.1 that a client needs (RFC 9112) are here.

    Client.open(request) ── OpenerDirector ── _KeepAlive.http_open ── Answer
                                                    │ idle connections, by scheme, host and port
What can go wrong has three names, because callers must act differently. Nothing else is raised, whatever a server does:

    Unreachable   no connection: the server has seen nothing of the request
    Broken        the connection ended early, or what came is no answer; TooLarge is one that was larger than wanted
    Slow          no byte came in time, or not all of them

A server is not trusted. Each part of an answer has its bounds, which stand below: heads in bytes, headers and seconds,
interim heads in number, lines of chunks in bytes, trailers in number. A body has those that its reader gives.
"""

import re
import socket
import threading
import time
import urllib.request
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Tuple
from urllib.parse import urlsplit

from core.http.heads import remembered
from core.http.sockets import readable, would_block, writable

MAX_IDLE_SECONDS = 5.0  # below every server's own limit, so that a connection is rarely closed under a request
_FRESH_SECONDS = 0.05  # an idle connection used so lately is not looked at: the look costs more than the rare surprise
_STALE_SECONDS = 1.0  # a server that had closed an idle connection says so at once; later, it has taken the request
_LOOK_SECONDS = 0.25  # between two looks, while a request is being sent, whether its answer is here already
_RECV = 65536
_MAX_HEAD = 65536  # bytes
_MAX_HEADERS = 100  # as many as Python's own client takes
_MAX_INTERIM = 8  # heads of status 1xx before the answer's
_HEAD_SECONDS = 10.0  # from a head's first byte to its last
_MAX_LINE = 4096  # bytes of a chunk's size and extensions, or of a trailer
_MAX_TRAILERS = 100
_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")

Wait = Callable[..., bool]  # as plain_wait


class Unreachable(Exception):
    """No connection could be made; the request was not sent."""


class Broken(Exception):
    """The connection ended before the whole answer came, or what came is no answer."""


class TooLarge(Broken):
    """The answer's body is larger than its reader wants."""


class _Stale(Broken):
    """A kept connection that its server had closed before it saw the request. Nobody outside this file gets it."""


class Slow(Exception):
    """The server did not answer in time."""


def plain_wait(sock: Any, timeout: float, sending: bool = False) -> bool:
    """Wait until a socket can be read, or written where something is being sent; False after `timeout` seconds."""
    return room_to_send(sock, timeout) if sending else bool(readable([sock], timeout))


def room_to_send(sock: Any, timeout: float) -> bool:
    """Wait until a socket takes more bytes, or has some to read; False after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        if writable([sock], max(0.0, min(_LOOK_SECONDS, left))) or readable([sock], 0):
            return True
        if left <= 0:
            return False


# ----------------------------------------------------------------------------------------------- connections


class _Connection:
    """A connection to a server, with what was read from it and is not used yet. Its socket never blocks."""

    def __init__(self, sock: Any):
        self.sock = sock
        self.buffer = bytearray()
        self.used_at = 0.0  # when its last answer ended; 0 where it is new
        self._begun = 0.0
        self._heard = False  # a byte has come since begin()
        self._ended = False  # the server has closed it, or it broke

    def begin(self) -> None:
        """A request begins on it."""
        self._begun = time.monotonic()
        self._heard = False

    def send(self, data: memoryview) -> Optional[int]:
        """Send what fits, which may be nothing; return how many bytes, or None where the connection has ended."""
        try:
            return self.sock.send(data)
        except OSError as error:
            if would_block(error):
                return 0
            self._ended = True
            return None

    def receive(self, wait: Wait, timeout: float, late: str) -> bool:
        """Wait for bytes and read them into the buffer; False at the end. Raises Broken, Slow, and what `wait` does."""
        while True:
            if not wait(self.sock, timeout):
                raise Slow(late)
            more = self._recv()
            if more is not None:
                return more

    def has_early(self) -> bool:
        """Whether, without waiting, there is something of an answer to look at, its end included. Raises Broken."""
        return bool(self.buffer) or (bool(readable([self.sock], 0)) and self._recv() is not None)

    def _recv(self) -> Optional[bool]:
        """Read once into the buffer; False at the end; None where half a record of TLS is here. Raises Broken."""
        try:
            data = self.sock.recv(_RECV)
        except OSError as error:
            if would_block(error):
                return None
            self._ended = True
            raise Broken("the answer broke off: %r" % error)
        self.buffer += data
        self._heard = self._heard or bool(data)
        self._ended = not data
        return bool(data)

    def was_stale(self) -> bool:
        """Whether this was a kept connection that its server had closed before the request came."""
        soon = time.monotonic() - self._begun < _STALE_SECONDS
        return self.used_at > 0 and self._ended and not self._heard and soon

    def take(self, count: int) -> bytes:
        """Return the buffer's first bytes, `count` at most."""
        if count >= len(self.buffer):
            taken, self.buffer = bytes(self.buffer), bytearray()
        else:
            taken = bytes(self.buffer[:count])
            del self.buffer[:count]
        return taken

    def is_stale(self, now: float) -> bool:
        """Whether an idle connection is too old, or its server has closed it, or said what nobody asked for."""
        idle = now - self.used_at
        return idle >= MAX_IDLE_SECONDS or (idle >= _FRESH_SECONDS and bool(readable([self.sock], 0)))

    def close(self) -> None:
        """Close it; the server sees that at once."""
        self.sock.close()


# --------------------------------------------------------------------------------------------------- answers


class Answer:
    """A server's answer: its head, then its body, whole or as it comes. close() it where it is not read to its end."""

    def __init__(self, connection: _Connection, request: "_Request", keep: Callable[[_Connection], None]):
        self.status = 0
        self.headers: List[Tuple[str, str]] = []
        self._named: Dict[str, str] = {}  # the headers by name, in lower case
        self.length: Optional[int] = None  # None where the end is known only when it comes
        self._connection = connection
        self._wait = request.wait
        self._timeout = request.timeout
        self._deadline = request.deadline
        self._keep = keep
        self._open = True  # the connection is still this answer's
        self._reusable = True
        self._interim = 0
        self._minor = b""  # the minor version of its HTTP/1
        self._chunks: Optional[_Dechunker] = None

    def header(self, name: str) -> str:
        """Return a header's value, several joined by ', ', or an empty text. The name is in lower case."""
        return self._named.get(name, "")

    def read_and_close(self, most: Optional[int] = None, within: Optional[float] = None) -> bytes:
        """Return the whole body: `most` bytes, and `within` seconds from now, where these are given.

        Raises Broken, TooLarge, Slow, and what `wait` raises.
        """
        if within is not None:
            self._deadline = min(self._deadline, time.monotonic() + within)
        try:
            return b"".join(self.pieces() if most is None else self._pieces_up_to(most))
        finally:
            self.close()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body's bytes as they come. Raises Broken, Slow, and what `wait` raises."""
        if self._chunks:
            yield from self._chunked_pieces(self._chunks)
        elif self.length is None:
            yield from self._pieces_to_the_end()
        else:
            yield from self._counted_pieces(self.length)
        self._release()

    def close(self) -> None:
        """Give up on the rest, if there is one; the server sees its connection close."""
        if self._open:
            self._open = False
            self._connection.close()

    # ---- the request, and the head

    def send(self, data: bytes) -> None:
        """Send the request; where the answer comes before its end, the rest stays here.

        A server may answer 413 and close while it is being sent a large body: that is the answer (RFC 9112, section
        9.5). Where the connection ends, what the server has said before is still to be read. Raises Broken, Slow, and
        what `wait` raises.
        """
        left = memoryview(data)
        while True:
            sent = self._connection.send(left)
            left = left[sent or 0 :]
            if not left:
                return
            if sent is None or (not sent and self._comes_early()):
                self._reusable = False
                return

    def _comes_early(self) -> bool:
        """Wait until there is room to send more; return whether the answer begins instead."""
        patience = max(0.0, min(self._timeout, self._deadline - time.monotonic()))
        if not self._wait(self._connection.sock, patience, sending=True):
            raise Slow("it takes nothing of the request for %g s" % patience)
        while self.status < 200 and self._connection.has_early():
            self._read_head_once()
        return self.status >= 200

    def read_head(self, method: str) -> None:
        """Read status and headers. Raises Broken, Slow, and what `wait` raises."""
        while self.status < 200:  # 100 Continue and its like come before the answer
            self._read_head_once()
        self._frame(method)

    def _read_head_once(self) -> None:
        """Read one head, which may be an interim one."""
        lines = self._head_bytes().split(b"\r\n")
        status = _STATUS_LINE.fullmatch(lines[0])
        if not status:
            raise Broken("no answer: %r is not HTTP/1.1" % lines[0][:80])
        if len(lines) > 1 + _MAX_HEADERS:
            raise Broken("the answer has more than %d headers" % _MAX_HEADERS)
        self._minor, self.status = status.group(1), int(status.group(2))
        self._interim += self.status < 200
        if self.status == 101 or self._interim > _MAX_INTERIM:
            raise Broken("no answer: status %d, which nobody asked for" % self.status)
        self.headers = [_header(line) for line in lines[1:]]
        self._named = {}
        for name, value in self.headers:
            name = name.lower()
            self._named[name] = self._named[name] + ", " + value if name in self._named else value

    def _head_bytes(self) -> bytes:
        """Return a head without its empty line, as soon as it is here; from its first byte on, it must not tarry."""
        buffer, searched, patience = self._connection.buffer, 0, self._deadline
        while True:
            end = buffer.find(b"\r\n\r\n", max(0, searched - 3))
            size = len(buffer) if end < 0 else end
            if size > _MAX_HEAD or not buffer.startswith(_BEGINNING[: len(buffer)]):
                raise Broken("no answer: %r" % bytes(buffer[:80]))
            if end >= 0:
                return self._connection.take(end + 4)[:-4]
            if buffer and not searched:
                patience = min(patience, time.monotonic() + _HEAD_SECONDS)
            searched = len(buffer)
            if not self._receive(patience):
                raise Broken("no answer: %r" % bytes(buffer[:80]) if buffer else "no answer: closed")

    def _frame(self, method: str) -> None:
        """Find out how the body ends (RFC 9112, section 6.3), and whether the connection may be used again."""
        options = tokens(self.header("connection"))
        lasting = self._minor == b"1" or "keep-alive" in options
        self._reusable = self._reusable and lasting and "close" not in options
        coding, length = self._named.get("transfer-encoding"), self._named.get("content-length")
        if method == "HEAD" or self.status in (204, 304):
            self.length = 0
        elif coding is not None:
            if coding.lower() != "chunked" or self._minor == b"0":
                raise Broken("the answer is in %r, which nobody asked for" % coding[:80])
            self._chunks = _Dechunker()
            self._reusable = self._reusable and length is None  # two ways to find its end: somebody may be lying
        elif length is not None:
            self.length = _length(length)
        else:
            self._reusable = False

    # ---- the body

    def _pieces_up_to(self, most: int) -> Iterator[bytes]:
        size = 0
        for piece in self.pieces():
            size += len(piece)
            if size > most:
                raise TooLarge("the answer is larger than %d bytes" % most)
            yield piece

    def _counted_pieces(self, left: int) -> Iterator[bytes]:
        while left:
            if not self._connection.buffer:
                self._need("%d bytes of the answer are missing" % left)
            piece = self._connection.take(left)
            left -= len(piece)
            yield piece

    def _chunked_pieces(self, chunks: "_Dechunker") -> Iterator[bytes]:
        while not chunks.done:
            piece = chunks.decode(self._connection.buffer)
            if piece:
                yield piece
            elif not chunks.done:
                self._need("the answer ended in the middle of its chunks")

    def _pieces_to_the_end(self) -> Iterator[bytes]:
        while True:
            if self._connection.buffer:
                yield self._connection.take(_RECV)
            elif not self._receive(self._deadline):
                return

    def _need(self, missing: str) -> None:
        if not self._receive(self._deadline):
            raise Broken(missing)

    def _receive(self, deadline: float) -> bool:
        """Wait for bytes until a moment of time.monotonic(), and no longer than the timeout; False at the end.

        Raises Broken, Slow, and what `wait` raises.
        """
        left = deadline - time.monotonic()
        late = "no byte for %g s" % self._timeout if self._timeout <= left else "the answer does not end in time"
        if left <= 0:
            raise Slow(late)
        return self._connection.receive(self._wait, min(self._timeout, left), late)

    def _release(self) -> None:
        """Let go of the connection, which may be good for another request."""
        if self._reusable and not self._connection.buffer:
            self._open = False
            self._keep(self._connection)
        else:
            self.close()


@remembered
def _header(line: bytes) -> Tuple[str, str]:
    """Return a header line's name and value. Raises Broken for one that could not be sent on as it is."""
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Broken("malformed headers: %r" % line[:80])
    return name.decode("latin-1"), value.decode("latin-1")


def _length(text: str) -> int:
    """Return what Content-Length says; the same several times counts as once (RFC 9110, section 8.6). Raises Broken."""
    said = {part.strip(" \t") for part in text.split(",")}
    number = said.pop()
    if said or not _LENGTH.fullmatch(number):
        raise Broken("Content-Length is %r" % text[:80])
    return int(number)


@remembered
def tokens(value: str) -> FrozenSet[str]:
    """Return what a header's list holds, in lower case."""
    return frozenset(token.strip().lower() for token in value.split(","))


class _Dechunker:
    """Takes the chunked coding off a body (RFC 9112, section 7.1); trailers are dropped."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # bytes of the present chunk that are yet to come, its line end among them
        self._in_trailers = False
        self._trailers = 0

    def decode(self, data: bytearray) -> bytes:
        """Take everything that can be decoded out of `data`, and return it. Raises Broken."""
        at, decoded = 0, []
        while not self.done:
            if self._left > 2:
                piece = bytes(data[at : at + self._left - 2])
                decoded.append(piece)
                at += len(piece)
                self._left -= len(piece)
            end = data.find(b"\r\n", at)
            if self._left > 2 or end < 0:
                break
            self._line(bytes(data[at:end]))
            at = end + 2
        if self._left <= 2 and len(data) - at > _MAX_LINE and not self.done:
            raise Broken("a line of the answer's chunks has no end")
        del data[:at]
        return b"".join(decoded)

    def _line(self, line: bytes) -> None:
        """Take a line in: the empty one that ends a chunk's data, a chunk's size, or a trailer."""
        if len(line) > _MAX_LINE:
            raise Broken("a line of the answer's chunks is too long")
        if self._left:
            if line:
                raise Broken("a chunk of the answer is longer than its size says")
            self._left = 0
        elif self._in_trailers:
            self.done = not line
            self._trailers += 1
            if self._trailers > _MAX_TRAILERS:
                raise Broken("the answer has too many trailers")
        else:
            size = line.partition(b";")[0].strip(b" \t")
            if not _CHUNK_SIZE.fullmatch(size) or not _VALUE.fullmatch(line):
                raise Broken("a chunk's size is %r" % line[:20])
            self._left = int(size, 16) + 2 if int(size, 16) else 0
            self._in_trailers = not self._left


# ---------------------------------------------------------------------------------------------------- client


class _Request(urllib.request.Request):
    """A request whose parts are known: urllib's own takes a while to take apart a URL that was just put together."""

    data: Optional[bytes] = None  # plain attributes in place of urllib's properties
    full_url = ""

    timeout = 0.0  # seconds without a byte; the opener sets it

    def __init__(
        self, url: str, method: str, headers: Dict[str, str], body: Optional[bytes], wait: Wait, within: float
    ):
        self.deadline = time.monotonic() + within
        self.full_url = url
        self.type, _, rest = url.partition("://")
        self.host, _, path = rest.partition("/")
        self.selector = "/" + path
        self.method = method
        self.headers = headers
        self.data = body
        self.wait = wait

    def as_bytes(self) -> bytes:
        """Return the request as it goes over the wire, in one piece."""
        lines = ["%s %s HTTP/1.1" % (self.method, self.selector), "Host: " + self.host]
        lines += ["%s: %s" % pair for pair in self.headers.items()]
        if self.data is not None:
            lines.append("Content-Length: %d" % len(self.data))
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (self.data or b"")


class Client:
    """Opens requests, and keeps connections for the next ones. Any thread may use it.

    `ca_file` holds the certificates that https servers are checked by; without it, the system's do.
    """

    def __init__(self, connect_timeout: float = 3.0, ca_file: str = ""):
        self._handler = _KeepAlive(connect_timeout, ca_file)
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self._handler)

    def open(
        self,
        url: str,
        method: str = "GET",
        headers: Optional[Dict[str, str]] = None,
        body: Optional[bytes] = None,
        timeout: float = 10.0,
        wait: Wait = plain_wait,
        within: float = float("inf"),
    ) -> Answer:
        """Send a request and return the answer, of which only the head has been read.

        `timeout` is the seconds without a byte, `within` those for everything, the body included. `wait` is called as
        plain_wait is; it may raise to give up. Raises Unreachable, Broken, Slow, and what `wait` raises. An answer of
        any status is an answer, redirects too.
        """
        return self._opener.open(_Request(url, method, headers or {}, body, wait, within), timeout=timeout)

    def close(self) -> None:
        """Close the idle connections, and those that are still in use once they are not."""
        self._handler.close_idle()


class _KeepAlive(urllib.request.BaseHandler):
    """urllib's handler for http and https, with a pool of idle connections."""

    def __init__(self, connect_timeout: float, ca_file: str):
        self._connect_timeout = connect_timeout
        self._ca_file = ca_file
        self._tls: Any = None  # the context, once an https server is called
        self._idle: Dict[Tuple[str, str], List[_Connection]] = {}  # by scheme and host:port; oldest first
        self._swept_at = 0.0
        self._closed = False
        self._lock = threading.Lock()  # guards the three above

    def http_open(self, request: Any) -> Answer:
        """Send a request on an idle connection, or, where that has gone stale, on a new one."""
        connection = self._take((request.type, request.host))
        stale = ""
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except _Stale as error:  # closed by the server between two requests, as servers may
                stale = str(error)
        try:
            connection = self._connect(request)
        except Unreachable:
            if stale:  # it took connections a moment ago: this request may be what has ended it
                raise Broken(stale)
            raise
        return self._exchange(connection, request)

    https_open = http_open

    def close_idle(self) -> None:
        """Close all idle connections; from now on, none is kept."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _connect(self, request: Any) -> _Connection:
        patience = min(self._connect_timeout, request.deadline - time.monotonic())
        sock: Any = None
        try:
            parts = urlsplit("//" + request.host)
            port = parts.port or (443 if request.type == "https" else 80)
            sock = socket.create_connection((parts.hostname or "", port), max(0.001, patience))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if request.type == "https":
                sock = self._tls_context().wrap_socket(sock, server_hostname=parts.hostname)
            sock.setblocking(False)
        except (OSError, ValueError) as error:  # ValueError: a port or a name that can't be
            if sock is not None:
                sock.close()
            raise Unreachable(getattr(error, "strerror", None) or str(error))
        return _Connection(sock)

    def _tls_context(self) -> Any:
        import ssl  # here, so that a Python without it can still speak HTTP

        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._ca_file or None)
        return self._tls

    def _exchange(self, connection: _Connection, request: Any) -> Answer:
        """Send the request and read the answer's head. Raises Unreachable, Broken, Slow, and what `wait` raises."""
        keep_key = (request.type, request.host)
        answer = Answer(connection, request, lambda used: self._keep(keep_key, used))
        connection.begin()
        try:
            answer.send(request.as_bytes())
            answer.read_head(request.method)
        except Broken as error:
            answer.close()
            if connection.was_stale():
                raise _Stale(str(error))
            raise
        except UnicodeError as error:
            answer.close()
            raise Unreachable("the request can't be written: %s" % error)
        except BaseException:  # the caller gave up while waiting, or the server is slow
            answer.close()
            raise
        return answer

    def _take(self, key: Tuple[str, str]) -> Optional[_Connection]:
        """Return the idle connection used last that is still good, or None."""
        while True:
            with self._lock:
                connections = self._idle.get(key)
                connection = connections.pop() if connections else None
            if connection is None or not connection.is_stale(time.monotonic()):
                return connection
            connection.close()

    def _keep(self, key: Tuple[str, str], connection: _Connection) -> None:
        now = connection.used_at = time.monotonic()
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._idle.setdefault(key, []).append(connection)
            if now - self._swept_at >= MAX_IDLE_SECONDS:
                self._swept_at = now
                self._sweep(now - MAX_IDLE_SECONDS)

    def _sweep(self, limit: float) -> None:
        """Close the connections that nobody has used since `limit`; their servers may have gone for good."""
        for key, connections in list(self._idle.items()):
            for connection in connections:
                if connection.used_at < limit:
                    connection.close()
            self._idle[key] = [each for each in connections if each.used_at >= limit]
            if not self._idle[key]:
                del self._idle[key]

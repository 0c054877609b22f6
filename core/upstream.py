"""Calling other HTTP servers: urllib, with connections that are kept alive.

As it comes, urllib closes every connection, follows redirects and obeys proxy variables. An OpenerDirector with just
one handler, whose http_open takes connections from a pool, does none of that and is still urllib. http.client, which
urllib would use below that, takes three times as long for a request as everything else that a balancer does with it, so
the few lines of HTTP/1.1 that a client needs (RFC 9112) are here.

    Client.open(request) ── OpenerDirector ── _KeepAlive.http_open ── Answer
                                                    │ idle connections, by scheme, host and port
What can go wrong has three names, because callers must act differently:

    Unreachable   no connection: the server has seen nothing of the request
    Broken        the connection ended early: the request may have run, but no whole answer came
    Slow          no byte came in time
"""

import re
import socket
import threading
import time
import urllib.request
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import urlsplit

from core.wire import readable, send_all, would_block

MAX_IDLE_SECONDS = 5.0  # below every server's own limit, so that a connection is rarely closed under a request
_FRESH_SECONDS = 0.05  # an idle connection used so lately is not looked at: the look costs more than the rare surprise
_RECV = 65536
_MAX_HEAD = 65536
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")

Wait = Callable[[Any, float], bool]


class Unreachable(Exception):
    """No connection could be made; the request was not sent."""


class Broken(Exception):
    """The connection ended before the whole answer came."""


class Slow(Exception):
    """The server did not answer in time."""


def plain_wait(sock: Any, timeout: float) -> bool:
    """Wait until a socket can be read; False after `timeout` seconds."""
    return bool(readable([sock], timeout))


# ----------------------------------------------------------------------------------------------- connections


class _Connection:
    """A connection to a server, with what was read from it and is not used yet. Its socket never blocks."""

    def __init__(self, sock: Any):
        self.sock = sock
        self.buffer = bytearray()
        self.used_at = 0.0

    def receive(self, wait: Wait, timeout: float) -> bool:
        """Wait for bytes and read them into the buffer; False at the end. Raises Broken, Slow, and what `wait` does."""
        while True:
            if not wait(self.sock, timeout):
                raise Slow("no byte for %g s" % timeout)
            try:
                data = self.sock.recv(_RECV)
            except OSError as error:
                if would_block(error):  # half a record of TLS is here
                    continue
                raise Broken("the answer broke off: %r" % error)
            self.buffer += data
            return bool(data)

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

    def __init__(self, connection: _Connection, wait: Wait, timeout: float, keep: Callable[[_Connection], None]):
        self.status = 0
        self.headers: List[Tuple[str, str]] = []
        self._named: Dict[str, str] = {}  # the headers by name, in lower case
        self.length: Optional[int] = None  # None where the end is known only when it comes
        self._connection = connection
        self._wait = wait
        self._timeout = timeout
        self._keep = keep
        self._open = True  # the connection is still this answer's
        self._reusable = True
        self._chunks: Optional[_Dechunker] = None

    def header(self, name: str) -> str:
        """Return a header's value, several joined by ', ', or an empty text. The name is in lower case."""
        return self._named.get(name, "")

    def read_and_close(self) -> bytes:
        """Return the whole body. Raises Broken, Slow, and what `wait` raises."""
        try:
            return b"".join(self.pieces())
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

    def read_head(self, method: str) -> None:
        """Read status and headers. Raises Broken, Slow, and what `wait` raises."""
        while self.status < 200:  # 100 Continue and its like come before the answer
            minor = self._read_head_once()
        self._frame(method, minor)

    def _read_head_once(self) -> bytes:
        """Read one head; return the minor version of its HTTP/1."""
        buffer = self._connection.buffer
        while b"\r\n\r\n" not in buffer:
            nonsense = len(buffer) > _MAX_HEAD or bytes(buffer[:7]) != b"HTTP/1."[: len(buffer)]
            if nonsense or not self._connection.receive(self._wait, self._timeout):
                raise Broken("no answer: %r" % bytes(buffer[:80]) if buffer else "no answer: closed")
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        buffer[:] = rest
        lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(lines[0])
        if not status:
            raise Broken("no answer: %r is not HTTP/1.1" % lines[0][:80])
        self.status = int(status.group(2))
        self.headers = [_header(line) for line in lines[1:]]
        self._named = {}
        for name, value in self.headers:
            name = name.lower()
            self._named[name] = self._named[name] + ", " + value if name in self._named else value
        return status.group(1)

    def _frame(self, method: str, minor: bytes) -> None:
        """Find out how the body ends (RFC 9112, section 6.3), and whether the connection may be used again."""
        options = self.header("connection").lower()
        self._reusable = "close" not in options and (minor == b"1" or "keep-alive" in options)
        coding, length = self.header("transfer-encoding").lower(), self.header("content-length")
        if method == "HEAD" or self.status in (204, 304):
            self.length = 0
        elif coding:
            if coding != "chunked":
                raise Broken("the answer is in %r, which nobody asked for" % coding)
            self._chunks = _Dechunker()
        elif length:
            if len(set(length.split(", "))) > 1 or not length.partition(",")[0].isdigit():
                raise Broken("Content-Length is %r" % length)
            self.length = int(length.partition(",")[0])
        else:
            self._reusable = False

    def _counted_pieces(self, left: int) -> Iterator[bytes]:
        while left:
            if not self._connection.buffer:
                self._receive("%d bytes of the answer are missing" % left)
            piece = self._connection.take(left)
            left -= len(piece)
            yield piece

    def _chunked_pieces(self, chunks: "_Dechunker") -> Iterator[bytes]:
        while not chunks.done:
            piece = chunks.decode(self._connection.buffer)
            if piece:
                yield piece
            elif not chunks.done:
                self._receive("the answer ended in the middle of its chunks")

    def _pieces_to_the_end(self) -> Iterator[bytes]:
        while True:
            if self._connection.buffer:
                yield self._connection.take(_RECV)
            elif not self._connection.receive(self._wait, self._timeout):
                return

    def _receive(self, missing: str) -> None:
        if not self._connection.receive(self._wait, self._timeout):
            raise Broken(missing)

    def _release(self) -> None:
        """Let go of the connection, which may be good for another request."""
        if self._reusable and not self._connection.buffer:
            self._open = False
            self._keep(self._connection)
        else:
            self.close()


def _header(line: bytes) -> Tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not name or name[:1] in b" \t" or name != name.strip():
        raise Broken("malformed headers: %r" % line[:80])
    return name.decode("latin-1"), value.strip(b" \t").decode("latin-1")


class _Dechunker:
    """Takes the chunked coding off a body (RFC 9112, section 7.1); trailers are dropped."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # bytes of the present chunk that are yet to come, its line end among them
        self._in_trailers = False

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
        if len(data) - at > _RECV:
            raise Broken("a line of the answer's chunks has no end")
        del data[:at]
        return b"".join(decoded)

    def _line(self, line: bytes) -> None:
        """Take a line in: the empty one that ends a chunk's data, a chunk's size, or a trailer."""
        if self._left:
            if line:
                raise Broken("a chunk of the answer is longer than its size says")
            self._left = 0
        elif self._in_trailers:
            self.done = not line
        else:
            size = line.partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(size):
                raise Broken("a chunk's size is %r" % size[:20])
            self._left = int(size, 16) + 2 if int(size, 16) else 0
            self._in_trailers = not self._left


# ---------------------------------------------------------------------------------------------------- client


class _Request(urllib.request.Request):
    """A request whose parts are known: urllib's own takes a while to take apart a URL that was just put together."""

    data: Optional[bytes] = None  # plain attributes in place of urllib's properties
    full_url = ""

    def __init__(self, url: str, method: str, headers: Dict[str, str], body: Optional[bytes], wait: Wait):
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
    ) -> Answer:
        """Send a request and return the answer, of which only the head has been read.

        `timeout` is the seconds without a byte; `wait(sock, timeout)` waits for bytes and may raise to give up.
        Raises Unreachable, Broken, Slow. An answer of any status is an answer, redirects too.
        """
        return self._opener.open(_Request(url, method, headers or {}, body, wait), timeout=timeout)

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
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except Broken:
                pass  # closed by the server between two requests, as servers may
        return self._exchange(self._connect(request), request)

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
        parts = urlsplit("//" + request.host)
        port = parts.port or (443 if request.type == "https" else 80)
        sock: Any = None
        try:
            sock = socket.create_connection((parts.hostname or "", port), self._connect_timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if request.type == "https":
                sock = self._tls_context().wrap_socket(sock, server_hostname=parts.hostname)
            sock.setblocking(False)
        except (OSError, UnicodeError) as error:
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
        """Send the request and read the answer's head. Raises Broken, Slow, and what the request's wait raises."""
        keep_key = (request.type, request.host)
        answer = Answer(connection, request.wait, request.timeout, lambda used: self._keep(keep_key, used))
        try:
            send_all(connection.sock, request.as_bytes(), request.timeout)
            answer.read_head(request.method)
        except socket.timeout:
            answer.close()
            raise Slow("it does not take the request")
        except OSError as error:
            answer.close()
            raise Broken("no answer: %r" % error)
        except BaseException:  # the caller gave up while waiting, or the answer is none
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

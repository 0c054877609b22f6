"""Calling other HTTP servers: urllib, with connections that are kept alive.

As it comes, urllib closes every connection, follows redirects and obeys proxy variables. An OpenerDirector with just
one handler, whose http_open takes connections from a pool, does none of that and is still urllib.

    Client.open(request) ── OpenerDirector ── _KeepAlive.http_open ── Answer
                                                    │ idle connections, by host and port
What can go wrong has three names, because callers must act differently:

    Unreachable   no connection: the server has seen nothing of the request
    Broken        the connection ended early: the request may have run, but no whole answer came
    Slow          no byte came in time
"""

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from core.service import readable

MAX_IDLE_SECONDS = 5.0  # below every server's own limit, so that a connection is rarely closed under a request
_PIECE = 65536

Wait = Callable[[socket.socket, float], bool]


class Unreachable(Exception):
    """No connection could be made; the request was not sent."""


class Broken(Exception):
    """The connection ended before the whole answer came."""


class Slow(Exception):
    """The server did not answer in time."""


def plain_wait(sock: socket.socket, timeout: float) -> bool:
    """Wait until a socket can be read; False after `timeout` seconds."""
    return bool(readable([sock], timeout))


class Answer:
    """A server's answer: its head, then its body, whole or as it comes. close() it where it is not read to its end."""

    def __init__(self, response: Any, sock: socket.socket, wait: Wait, timeout: float, give_back: Callable[[], None]):
        self.status: int = response.status
        self.headers: List[Tuple[str, str]] = response.getheaders()
        self.length: Optional[int] = response.length  # None where the end is known only when it comes
        self._response = response
        self._sock = sock
        self._wait = wait
        self._timeout = timeout
        self._give_back = give_back
        self._open = True  # the connection is still this answer's

    def header(self, name: str) -> str:
        """Return a header's value, or an empty text."""
        return self._response.getheader(name) or ""

    def read_and_close(self) -> bytes:
        """Return the whole body. Raises Broken, Slow, and what `wait` raises."""
        try:
            return b"".join(self.pieces())
        finally:
            self.close()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body's bytes as they come. Raises Broken, Slow, and what `wait` raises."""
        left, empty = self.length, True
        while left != 0:
            if left is None:
                piece = self._next_piece()
                if not piece:
                    break
                empty = False
            else:
                piece = self._read(lambda: self._response.read(min(_PIECE, left)))
                if not piece:
                    raise Broken("%d bytes of the answer are missing" % left)
                left -= len(piece)
            yield piece
        if left is None and empty and self._head_was_cut():
            raise Broken("the answer ended where its body should begin")
        self._release()

    def close(self) -> None:
        """Give up on the rest, if there is one; the server sees its connection close."""
        if self._open:
            self._open = False
            self._response.close()
            self._sock.close()

    def _head_was_cut(self) -> bool:
        """Whether the head lacks what HTTP/1.1 asks of it: http.client takes one that is cut off for a whole one."""
        framed = self._response.chunked or "close" in self.header("connection").lower()
        return self._response.version == 11 and not framed

    def _next_piece(self) -> bytes:
        if not self._buffered() and not self._wait(self._sock, self._timeout):
            raise Slow("nothing more for %g s" % self._timeout)
        return self._read(lambda: self._response.read1(_PIECE))

    def _buffered(self) -> bool:
        """Whether bytes of the body lie in the response's buffer, where waiting for the socket would miss them."""
        if self._response.isclosed():
            return True
        try:
            self._sock.settimeout(0)
            waiting = self._read(lambda: self._response.fp.peek(1))
        finally:
            self._sock.settimeout(self._timeout)
        if not self._response.chunk_left:  # between two chunks, the line end of the last one may still lie there
            waiting = waiting.lstrip(b"\r\n")
        return bool(waiting)

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except socket.timeout:
            raise Slow("nothing more for %g s" % self._timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken("the answer broke off: %r" % error)

    def _release(self) -> None:
        """Let go of the connection, which is good for another request."""
        self._open = False
        self._response.close()
        self._give_back()


class Client:
    """Opens requests, and keeps connections for the next ones. Any thread may use it."""

    def __init__(self, connect_timeout: float = 3.0):
        self._handler = _KeepAlive(connect_timeout)
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self._handler)
        self._opener.addheaders = []

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
        request = urllib.request.Request(url, data=body, headers=headers or {}, method=method)
        request.comeapi_wait = wait
        return self._opener.open(request, timeout=timeout)

    def close(self) -> None:
        """Close the idle connections."""
        self._handler.close_idle()


class _KeepAlive(urllib.request.HTTPHandler):
    """urllib's HTTP handler, with a pool of idle connections."""

    def __init__(self, connect_timeout: float):
        super().__init__()
        self._connect_timeout = connect_timeout
        self._idle: Dict[str, List[Tuple[Any, float]]] = {}  # host:port -> connections, oldest first
        self._lock = threading.Lock()  # guards _idle

    def http_open(self, request: Any) -> Answer:
        """Send a request on an idle connection, or, where that has gone stale, on a new one."""
        connection = self._take(request.host)
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except Broken:
                pass  # closed by the server between two requests, as servers may
        return self._exchange(self._connect(request.host), request)

    def close_idle(self) -> None:
        """Close all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection, _ in connections:
                connection.close()

    def _connect(self, host: str) -> Any:
        connection = http.client.HTTPConnection(host, timeout=self._connect_timeout)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            connection.close()
            raise Unreachable(getattr(error, "strerror", None) or str(error))
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return connection

    def _exchange(self, connection: Any, request: Any) -> Answer:
        """Send the request and read the answer's head. Raises Broken, Slow, and what the request's wait raises."""
        sock = connection.sock
        sock.settimeout(request.timeout)
        headers = dict(request.unredirected_hdrs)
        headers.update(request.headers)
        try:
            connection.request(request.get_method(), request.selector, request.data, headers)
            if not request.comeapi_wait(sock, request.timeout):
                raise socket.timeout()
            response = connection.getresponse()
            if response.headers.defects:
                raise http.client.HTTPException("malformed headers")
        except socket.timeout:
            connection.close()
            raise Slow("no answer for %g s" % request.timeout)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Broken("no answer: %r" % error)
        except BaseException:  # the caller gave up while waiting
            connection.close()
            raise
        give_back = (lambda: None) if response.will_close else (lambda: self._keep(request.host, connection))
        return Answer(response, sock, request.comeapi_wait, request.timeout, give_back)

    def _take(self, host: str) -> Any:
        """Return the idle connection used last that is still good, or None."""
        with self._lock:
            connections = self._idle.get(host, [])
            while connections:
                connection, since = connections.pop()
                if time.monotonic() - since < MAX_IDLE_SECONDS and not readable([connection.sock], 0):
                    return connection
                connection.close()
        return None

    def _keep(self, host: str, connection: Any) -> None:
        with self._lock:
            self._idle.setdefault(host, []).append((connection, time.monotonic()))

"""Calling other HTTP servers: urllib, with connections that are kept alive.

As it comes, urllib closes every connection, follows redirects and obeys proxy variables. An OpenerDirector with just
one handler, whose http_open takes connections from a pool, does none of that and is still urllib. http.client, which
urllib would use below that, takes three times as long for a request as everything else that a balancer does with it, so
the few lines of HTTP/1.1 that a client needs (RFC 9112) are here and in these files:

    Client.open(request) ── OpenerDirector ── _KeepAlive.http_open ── Answer
                                                    │                   answers.py: head, framing, body
                                              ConnectionPool            heads.py, chunks.py: as the server reads them
                                                outgoing.py

Nothing else is raised than the three failures of failures.py, whatever a server does, and what `wait` raises.
"""

import time
import urllib.request
from typing import Dict, Optional

from core.http.answers import Answer
from core.http.failures import Broken, Unreachable
from core.http.outgoing import Address, ConnectionPool, OutgoingConnection, Wait, plain_wait
from core.http.tls import ClientTLS


class _Stale(Broken):
    """A kept connection that its server had closed before it saw the request. Nobody outside of this file gets it."""


class Client:
    """Opens requests, and keeps connections for the next ones. Any thread may use it.

    `tls` says what https servers are checked by, and shown; without it, the system's certificates, and nothing.
    """

    def __init__(self, connect_timeout: float = 3.0, tls: Optional[ClientTLS] = None):
        self._pool = ConnectionPool(connect_timeout, tls or ClientTLS())
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(_KeepAlive(self._pool))

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
        return self._opener.open(_OutgoingRequest(url, method, headers or {}, body, wait, within), timeout=timeout)

    def close(self) -> None:
        """Close the idle connections, and those that are still in use once they are not."""
        self._pool.close()


class _OutgoingRequest(urllib.request.Request):
    """A request whose parts are known: urllib's own takes a while to take apart a URL that was just put together."""

    data: Optional[bytes] = None  # plain attributes in place of urllib's properties
    full_url = ""
    method: str
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

    @property
    def address(self) -> Address:
        """The server's scheme, host and port, by which its connections are kept."""
        return self.type, self.host

    def as_bytes(self) -> bytes:
        """Return the request as it goes over the wire, in one piece. Raises UnicodeError."""
        lines = ["%s %s HTTP/1.1" % (self.method, self.selector), "Host: " + self.host]
        lines += ["%s: %s" % pair for pair in self.headers.items()]
        if self.data is not None:
            lines.append("Content-Length: %d" % len(self.data))
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (self.data or b"")


class _KeepAlive(urllib.request.BaseHandler):
    """urllib's handler for http and https, on top of a pool of connections."""

    def __init__(self, pool: ConnectionPool):
        self._pool = pool

    def http_open(self, request: _OutgoingRequest) -> Answer:
        """Send a request on an idle connection, or, where that has gone stale, on a new one."""
        connection = self._pool.take(request.address)
        stale = ""
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except _Stale as error:  # closed by the server between two requests, as servers may
                stale = str(error)
        try:
            connection = self._pool.connect(request.address, request.deadline)
        except Unreachable:
            if stale:  # it took connections a moment ago: this request may be what has ended it
                raise Broken(stale)
            raise
        return self._exchange(connection, request)

    https_open = http_open

    def _exchange(self, connection: OutgoingConnection, request: _OutgoingRequest) -> Answer:
        """Send the request and read the answer's head. Raises Unreachable, Broken, Slow, and what `wait` raises."""
        address = request.address
        answer = Answer(
            connection, request.wait, request.timeout, request.deadline, lambda used: self._pool.keep(address, used)
        )
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

"""Connections to other servers: made, waited for, and kept for the next request.

    OutgoingConnection    a connection, with what was read from it
    ConnectionPool        makes connections, and keeps the idle ones

    plain_wait            how a request waits for its connection, unless its caller has a reason to wake up earlier
    room_to_send          the half of it that waits while a request is being sent
"""

import socket
import threading
import time
from typing import Callable, Dict, List, Optional, Tuple
from urllib.parse import urlsplit

from core.errors import TimedOut
from core.http.failures import Broken, Slow, Unreachable, Untrusted
from core.http.sockets import readable, would_block, writable
from core.http.tls import ClientTLS, refusal, shake_hands

IDLE_SECONDS = 5.0  # that a connection is kept, where its server does not say for how long it keeps it itself
_MOST_IDLE_SECONDS = 60.0
_SHARE = 0.8  # of the time for which its server says so: then it is rarely closed under a request
RECV = 65536  # bytes that are read at once
_FRESH_SECONDS = 0.05  # an idle connection used so lately is not looked at: the look costs more than the rare surprise
_STALE_SECONDS = 1.0  # a server that had closed an idle connection says so at once; later, it has taken the request
_LOOK_SECONDS = 0.25  # between two looks, while a request is being sent, whether its answer is here already

Wait = Callable[..., bool]  # as plain_wait
Address = Tuple[str, str]  # a scheme, and HOST[:PORT]


def plain_wait(sock: socket.socket, timeout: float, sending: bool = False) -> bool:
    """Wait until a socket can be read, or written where something is being sent; False after `timeout` seconds."""
    return room_to_send(sock, timeout) if sending else bool(readable([sock], timeout))


def room_to_send(sock: socket.socket, timeout: float) -> bool:
    """Wait until a socket takes more bytes, or has some to read; False after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        if writable([sock], max(0.0, min(_LOOK_SECONDS, left))) or readable([sock], 0):
            return True
        if left <= 0:
            return False


class OutgoingConnection:
    """A connection to a server, with what was read from it and is not used yet. Its socket never blocks.

    One thread uses it at a time: the one that sends a request, until its answer has ended.
    """

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.buffer = bytearray()
        self.used_at = 0.0  # when its last answer ended (time.monotonic); 0 where there was none
        self._keeps = IDLE_SECONDS  # how long it may idle
        self._begun = 0.0  # when its present request began
        self._heard = False  # a byte has come since then
        self._ended = False  # the server has closed it, or it broke

    def may_idle(self, seconds: float) -> None:
        """Take note for how long its server keeps it when it idles."""
        self._keeps = min(_SHARE * seconds, _MOST_IDLE_SECONDS)

    def is_old(self, now: float) -> bool:
        """Whether it has idled so long that its server may close it."""
        return now - self.used_at >= self._keeps

    def begin(self) -> None:
        """Take note that a request begins."""
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
        """Wait for bytes and read them into the buffer; False at the end.

        Raises Broken, Untrusted, Slow with the message `late` after `timeout` seconds, and what `wait` raises.
        """
        while True:
            if not wait(self.sock, timeout):
                raise Slow(late)
            more = self._recv()
            if more is not None:
                return more

    def has_early(self) -> bool:
        """Whether something of an answer is here, its end included; does not wait. Raises Broken, Untrusted."""
        return bool(self.buffer) or (bool(readable([self.sock], 0)) and self._recv() is not None)

    def _recv(self) -> Optional[bool]:
        """Read once into the buffer; False at the end; None where only half a TLS record is here.

        Raises Broken, Untrusted.
        """
        try:
            data = self.sock.recv(RECV)
        except OSError as error:
            if would_block(error):
                return None
            self._ended = True
            if refusal(error) and not (self.used_at or self._heard):  # see tls.py: it comes after the handshake
                raise Untrusted(refusal(error))
            raise Broken("the answer broke off: %r" % error)
        self.buffer += data
        self._heard = self._heard or bool(data)
        self._ended = not data
        return bool(data)

    def take(self, count: int) -> bytes:
        """Take the buffer's first bytes out of it, `count` at most."""
        if count >= len(self.buffer):
            taken, self.buffer = bytes(self.buffer), bytearray()
        else:
            taken = bytes(self.buffer[:count])
            del self.buffer[:count]
        return taken

    def was_stale(self) -> bool:
        """Whether this was a kept connection that its server had closed before the request came."""
        soon = time.monotonic() - self._begun < _STALE_SECONDS
        return self.used_at > 0 and self._ended and not self._heard and soon

    def is_stale(self, now: float) -> bool:
        """Whether an idle connection is too old, or its server has closed it or sent what nobody asked for."""
        return self.is_old(now) or (now - self.used_at >= _FRESH_SECONDS and bool(readable([self.sock], 0)))

    def close(self) -> None:
        """Close it; the server sees that at once."""
        self.sock.close()


class ConnectionPool:
    """Makes connections, and keeps the idle ones by their servers' addresses. Any thread may use it.

    `tls` says what https servers are checked by, and shown.
    """

    def __init__(self, connect_timeout: float, tls: ClientTLS):
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._idle: Dict[Address, List[OutgoingConnection]] = {}  # those used longest ago come first
        self._swept_at = 0.0
        self._closed = False
        self._lock = threading.Lock()  # guards the three above

    def connect(self, address: Address, deadline: float) -> OutgoingConnection:
        """Return a new connection. Raises Unreachable, also where it takes too long, and Untrusted."""
        scheme, host = address
        patience = min(self._connect_timeout, deadline - time.monotonic())
        began = time.monotonic()
        sock: Optional[socket.socket] = None
        try:
            parts = urlsplit("//" + host)
            port = parts.port or (443 if scheme == "https" else 80)
            sock = socket.create_connection((parts.hostname or "", port), max(0.001, patience))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if scheme == "https":
                sock.setblocking(False)
                sock = secured = self._tls.wrap(sock, parts.hostname)
                shake_hands(secured, began + patience - time.monotonic())
            sock.setblocking(False)
        except (OSError, ValueError, TimedOut) as error:  # ValueError: a port or a name that can't be
            if sock is not None:
                sock.close()
            raise _failure(error)
        return OutgoingConnection(sock)

    def take(self, address: Address) -> Optional[OutgoingConnection]:
        """Return the idle connection that was used last, if it is still good; else the one before it; or None."""
        while True:
            with self._lock:
                connections = self._idle.get(address)
                connection = connections.pop() if connections else None
            if connection is None or not connection.is_stale(time.monotonic()):
                return connection
            connection.close()

    def keep(self, address: Address, connection: OutgoingConnection) -> None:
        """Keep a connection, whose answer has been read to its end, for another request."""
        now = connection.used_at = time.monotonic()
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._idle.setdefault(address, []).append(connection)
            if now - self._swept_at >= IDLE_SECONDS:
                self._swept_at = now
                self._sweep(now)

    def close(self) -> None:
        """Close all idle connections; from now on, none is kept."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _sweep(self, now: float) -> None:
        """Close the connections that nobody has used for long; their servers may have gone for good."""
        for address, connections in list(self._idle.items()):
            for connection in connections:
                if connection.is_old(now):
                    connection.close()
            self._idle[address] = [connection for connection in connections if not connection.is_old(now)]
            if not self._idle[address]:
                del self._idle[address]


def _failure(error: Exception) -> Unreachable:
    """Return why there is no connection, in words."""
    if isinstance(error, TimedOut):
        return Unreachable("the TLS handshake timed out")
    why = refusal(error)
    return Untrusted(why) if why else Unreachable(getattr(error, "strerror", None) or str(error))

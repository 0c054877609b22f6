"""What a handler gets and gives back: a Request, and a Reply or a Stream.

    Request       what a client asks
    Reply         a whole answer;  json_reply() and error_reply() make one
    Stream        an answer in pieces;  sse.py makes one of server-sent events
"""

import collections
import json
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Callable, Deque, Dict, Iterator, Optional, Protocol, Sequence, Tuple, TypeVar
from urllib.parse import parse_qs

from core.errors import APIError, HangUp
from core.http.sockets import Wire


def _nothing() -> None:
    pass


LOOK_SECONDS = 0.2  # between two looks whether a client that waits is still there
Waited = TypeVar("Waited")


class Request:
    """What a handler gets. Header names are lower-case; repeated headers are joined by ', ' as RFC 9110 5.2 says."""

    def __init__(self, method: str, target: str, version: str, headers: Dict[str, str], wire: Wire, peer: str):
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.wire = wire
        self.peer = peer  # the client's address
        self.path, _, self.query_string = target.partition("?")
        self.params: Dict[str, str] = {}  # the values of the {names} in the route's path
        self.route = "other"  # the route's pattern, for metrics
        self.key = ""  # the API key that was checked; empty where none was asked for
        self.body = b""
        self.held = 0  # bytes of the service's budget that the body takes
        self._look_at = time.monotonic() + LOOK_SECONDS  # when wait() looks whether the client is still there
        self.ping: Callable[[], None] = _nothing  # sends its client a piece that says nothing, in a stream that has one
        self.ping_interval = 0.0  # seconds
        self._ping_at = 0.0
        given = headers.get("x-request-id")
        self.id = given if given and _ID.fullmatch(given) else _new_id()

    @property
    def query(self) -> Dict[str, str]:
        """The query's fields; of a repeated one, the last."""
        return {key: values[-1] for key, values in parse_qs(self.query_string, keep_blank_values=True).items()}

    @property
    def scheme(self) -> str:
        """The scheme of the connection, http or https."""
        return "https" if hasattr(self.wire.sock, "cipher") else "http"

    def hung_up(self) -> bool:
        """Tell at once whether the client has gone."""
        return self.wire.hung_up()

    def begin_silence(self) -> None:
        """From now on, nothing comes for its client until somebody goes on with the answer."""
        self._ping_at = time.monotonic() + self.ping_interval

    def say_alive(self) -> None:
        """Send a ping, where it is time for one. Raises HangUp."""
        now = time.monotonic()
        if self.ping is not _nothing and now >= self._ping_at:
            self._ping_at = now + self.ping_interval
            self.ping()

    def wait(self, ready: Callable[[float], Waited], timeout: float) -> Waited:
        """Wait for something that is no socket: until `ready(seconds)`, which waits so long at most, returns it.

        Returns what `ready` returned last, once it is true or `timeout` seconds are over. Raises HangUp when the client
        leaves, which is looked at every LOOK_SECONDS; also of those who never wait long.
        """
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                if self.hung_up():
                    raise HangUp("the client closed the connection")
            found = ready(max(0.0, min(LOOK_SECONDS, deadline - now)))
            if found or time.monotonic() >= deadline:
                return found


_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ids: Deque[str] = collections.deque()  # drawn many at once: each system call releases the GIL


def _new_id() -> str:
    """Return an id that nobody can guess."""
    while True:
        try:
            return "req-" + _ids.popleft()
        except IndexError:
            drawn = secrets.token_hex(16 * _DRAWN)
            _ids.extend(drawn[at : at + 32] for at in range(0, len(drawn), 32))


_DRAWN = 256
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.clear)  # or both processes would use the same ids


@dataclass
class Reply:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Sequence[Tuple[str, str]] = ()


def json_reply(value: Any, status: int = 200, headers: Sequence[Tuple[str, str]] = ()) -> Reply:
    """Return `value` as a JSON reply."""
    return Reply(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), status, headers=headers)


class Pieces(Protocol):
    """Bytes as they come, from something that can be told to stop: a generator, say."""

    def __iter__(self) -> Iterator[bytes]:
        """Return itself."""

    def __next__(self) -> bytes:
        """Return the next bytes."""

    def close(self) -> object:
        """Stop."""


@dataclass
class Stream:
    """An answer in pieces: `chunks` yields bytes as they come.

    The head is held back until the first piece, so that an APIError before it still gets its own status. Who makes the
    pieces notices a client that leaves while none come: by Request.wait, say, which raises HangUp. `chunks` is closed
    (generator.close) when the client has gone. `ping` is a piece that says nothing; a client that has closed its
    sending side may be sent one, to see whether it still reads. `error_chunk` renders an APIError raised after the
    first piece; without one, the connection is cut, so that nobody takes half an answer for a whole one. Who makes the
    pieces may send `alive` while he waits, by Request.say_alive.
    """

    chunks: Pieces
    status: int = 200
    content_type: str = "application/octet-stream"
    headers: Sequence[Tuple[str, str]] = ()
    ping: bytes = b""
    error_chunk: Optional[Callable[[APIError], bytes]] = None
    alive: bytes = b""


def internal_error() -> APIError:
    """Return the error that a client gets where this program has a defect; the log has the details."""
    return APIError(500, "The server failed on this request; its log says why.", "internal_error")


def error_body(error: APIError) -> bytes:
    """Return an error's envelope as bytes."""
    return json.dumps(error.envelope(), ensure_ascii=False).encode("utf-8", "replace")


def error_reply(error: APIError) -> Reply:
    """Return an error as a reply."""
    return Reply(error_body(error), error.status, headers=error.headers)


def local_host(host: str) -> str:
    """Return the host by which a client on this machine reaches a server that listens on `host`, or on several."""
    host = host.split(",")[0].strip()
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def http_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a host, which may be an IPv6 address, and a port."""
    return "%s://%s:%d" % (scheme, "[%s]" % host if ":" in host else host, port)

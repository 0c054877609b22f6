"""The HTTP ground floor: everything a program needs to be a well-behaved HTTP/1.1 server, on ThreadingHTTPServer.

    socket ── Wire ── Connection ── Service.respond ── route's handler ── Reply | Stream
              bytes,    HTTP/1.1      key, route,         the program
              deadlines framing       body, errors

From the bottom up, which is also the order of this file:

    Metrics       counters, gauges and histograms in Prometheus' text format
    Wire          one socket, read with deadlines; knows whether its peer has gone
    Request       what a handler gets
    Reply         a whole answer;  json_reply() makes one
    Stream        an answer in pieces;  event_stream() makes one of server-sent events
    Route         a method, a path and a handler
    Config        the settings, with their defaults and their reasons
    Service       listens, routes, counts, drains
    Connection    one client: request after request until either side closes

A handler is a function from Request to Reply or Stream. It may raise APIError at any time, also while streaming.
It runs in its connection's own thread. Errors are core/errors.py's; nothing else of the project is imported.

Sources: RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1 framing), the WHATWG standard for server-sent events,
the OpenAI API reference for the error envelope, Prometheus' text exposition format 0.0.4.
"""

import bisect
import collections
import contextlib
import hmac
import http
import itertools
import json
import logging
import math
import os
import random
import re
import select
import socket
import socketserver
import threading
import time
import traceback
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

from core.errors import APIError, HangUp, TimedOut, json_type

log = logging.getLogger("comeapi.http")
access_log = logging.getLogger("comeapi.access")

# ----------------------------------------------------------------------------------------------- metrics


def _sample(name: str, labels: Sequence[Tuple[str, str]], value: float) -> str:
    if labels:
        name += "{%s}" % ",".join('%s="%s"' % (key, _escape_label(text)) for key, text in labels)
    return "%s %s" % (name, "%d" % value if float(value).is_integer() else repr(float(value)))


def _escape_label(text: str) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class _Metric:
    """One metric family: samples keyed by their label values."""

    def __init__(self, kind: str, name: str, help: str, labels: Tuple[str, ...]):
        self.kind, self.name, self.help, self.labels = kind, name, help, labels
        self._samples: Dict[Tuple[str, ...], float] = collections.defaultdict(float)
        self._lock = threading.Lock()  # guards _samples

    def inc(self, *labels: str, by: float = 1) -> None:
        """Add `by` to the sample with these label values."""
        with self._lock:
            self._samples[labels] += by

    def set(self, value: float, *labels: str) -> None:
        """Set the sample with these label values."""
        with self._lock:
            self._samples[labels] = value

    def clear(self) -> None:
        """Forget all samples: what they were of may be gone."""
        with self._lock:
            self._samples.clear()

    def lines(self) -> Iterator[str]:
        """Yield the family in Prometheus' text format."""
        with self._lock:
            samples = sorted(self._samples.items())
        yield "# HELP %s %s" % (self.name, self.help)
        yield "# TYPE %s %s" % (self.name, self.kind)
        for values, value in samples or ([] if self.labels else [((), 0)]):
            yield _sample(self.name, list(zip(self.labels, values)), value)


class _Histogram(_Metric):
    """A metric family of observations in cumulative buckets."""

    def __init__(self, name: str, help: str, labels: Tuple[str, ...], buckets: Sequence[float]):
        super().__init__("histogram", name, help, labels)
        self._bounds = tuple(buckets)
        self._series: Dict[Tuple[str, ...], List[float]] = {}  # how many in each bucket, and their sum

    def observe(self, value: float, *labels: str) -> None:
        """Count one observation."""
        with self._lock:
            series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = [0.0] * (len(self._bounds) + 2)
            series[bisect.bisect_left(self._bounds, value)] += 1
            series[-1] += value

    def lines(self) -> Iterator[str]:
        """Yield the family in Prometheus' text format."""
        with self._lock:
            every = sorted((values, list(series)) for values, series in self._series.items())
        yield "# HELP %s %s" % (self.name, self.help)
        yield "# TYPE %s histogram" % self.name
        for values, series in every:
            labels = list(zip(self.labels, values))
            for bound, count in zip(self._bounds + (float("inf"),), itertools.accumulate(series[:-1])):
                le = "+Inf" if bound == float("inf") else "%g" % bound
                yield _sample(self.name + "_bucket", labels + [("le", le)], count)
            yield _sample(self.name + "_sum", labels, series[-1])
            yield _sample(self.name + "_count", labels, sum(series[:-1]))


SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """A program's metrics. `collect` hooks run before each rendering, to set gauges from live state."""

    def __init__(self) -> None:
        self._families: List[_Metric] = []
        self._hooks: List[Callable[[], None]] = []

    def counter(self, name: str, help: str, *labels: str) -> _Metric:
        """Add a counter; its name should end in _total."""
        return self._add(_Metric("counter", name, help, labels))

    def gauge(self, name: str, help: str, *labels: str) -> _Metric:
        """Add a gauge."""
        return self._add(_Metric("gauge", name, help, labels))

    def histogram(self, name: str, help: str, *labels: str, buckets: Sequence[float] = SECONDS) -> _Histogram:
        """Add a histogram; its name should end in its unit."""
        return self._add(_Histogram(name, help, labels, buckets))

    def collect(self, hook: Callable[[], None]) -> None:
        """Call `hook` before each rendering."""
        self._hooks.append(hook)

    def render(self) -> str:
        """Return everything in Prometheus' text format."""
        for hook in self._hooks:
            hook()
        return "\n".join(line for family in self._families for line in family.lines()) + "\n"

    def _add(self, family):
        self._families.append(family)
        return family


# ---------------------------------------------------------------------------------------------- the wire

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
                    raise _bad_request("Lines must end in CRLF.")
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


# ------------------------------------------------------------------------------------ requests and replies


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
        self.params: Dict[str, str] = {}  # what {names} in the route's path stood for
        self.route = "other"  # the route's pattern, for metrics
        self.key = ""  # the API key that it was let in by
        self.body = b""
        given = headers.get("x-request-id")
        self.id = given if given and _ID.fullmatch(given) else "req-%032x" % random.getrandbits(128)

    @property
    def query(self) -> Dict[str, str]:
        """The query's fields; of repeated ones the last."""
        return {key: values[-1] for key, values in parse_qs(self.query_string, keep_blank_values=True).items()}

    def json(self) -> Dict[str, Any]:
        """Return the body as a JSON object. Raises APIError 400 for anything else, NaN and Infinity included."""
        try:
            value = json.loads(self.body.decode("utf-8"), parse_constant=_refuse_constant)
            if b"\\u" in self.body:
                json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates such as "\ud800"
        except UnicodeEncodeError:
            raise APIError(400, "The body holds half of a surrogate pair, which is no character.", "invalid_json")
        except (ValueError, RecursionError) as error:
            raise APIError(400, "The body is not valid JSON: %s" % error, "invalid_json")
        if not isinstance(value, dict):
            raise APIError(400, "The body must be a JSON object, not %s." % json_type(value), "invalid_json")
        return value

    @property
    def scheme(self) -> str:
        """What it came by, http or https."""
        return "https" if hasattr(self.wire.sock, "cipher") else "http"

    def hung_up(self) -> bool:
        """Tell at once whether the client has gone."""
        return self.wire.hung_up()


def _refuse_constant(name: str) -> None:
    raise ValueError("%s is not allowed" % name)


_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass
class Reply:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Sequence[Tuple[str, str]] = ()


def json_reply(value: Any, status: int = 200, headers: Sequence[Tuple[str, str]] = ()) -> Reply:
    """Return `value` as a JSON reply."""
    return Reply(json.dumps(value, ensure_ascii=False).encode("utf-8"), status, headers=headers)


IDLE = object()  # what a stream's iterator yields when nothing has come for a moment, so that hang-ups are noticed
PING = b": ping\n\n"  # a comment: every client of server-sent events skips it


@dataclass
class Stream:
    """An answer in pieces: `chunks` yields bytes as they come, or IDLE at least a few times a second while none do.

    The head is held back until the first piece, so that an APIError before it still gets its own status. `chunks` is
    closed (generator.close) when the client goes. `error_chunk` renders an APIError raised after the first piece;
    without one, the connection is cut, so that nobody takes half an answer for a whole one.
    """

    chunks: Iterator[Any]
    status: int = 200
    content_type: str = "application/octet-stream"
    headers: Sequence[Tuple[str, str]] = ()
    ping: bytes = b""
    error_chunk: Optional[Callable[[APIError], bytes]] = None


def event(value: Any, name: str = "") -> bytes:
    """Return one server-sent event whose data is `value` as JSON."""
    head = b"event: %s\n" % name.encode("ascii") if name else b""
    return head + b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n\n"


DONE = b"data: [DONE]\n\n"


def error_event(error: APIError) -> bytes:
    """Return the server-sent event that ends a stream which failed."""
    return event(error.envelope())


EVENT_STREAM = "text/event-stream"


def event_stream(
    values: Iterator[Any],
    done: bytes = DONE,
    render: Callable[[Any], bytes] = event,
    error: Callable[[APIError], bytes] = error_event,
) -> Stream:
    """Return a Stream of server-sent events: each value as `render` has it, then `done`; IDLE passes through."""
    headers = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
    return Stream(_events(values, done, render), 200, EVENT_STREAM, headers, PING, error)


def _events(values: Iterator[Any], done: bytes, render: Callable[[Any], bytes]) -> Iterator[Any]:
    with contextlib.closing(values):
        for value in values:
            yield value if value is IDLE else render(value)
        if done:
            yield done


# ----------------------------------------------------------------------------------------------- routing

Handler = Callable[[Request], Any]


@dataclass(frozen=True)
class Route:
    """A method, a path and its handler. `{name}` in the path stands for one segment. GET answers HEAD too.

    A public route needs no API key.
    """

    method: str
    path: str
    handler: Handler
    public: bool = False


class Router:
    """The routing table. Exact paths are one dictionary look-up; patterns are tried in their order."""

    def __init__(self, routes: Iterable[Route], fallback: Optional[Handler] = None):
        self._exact: Dict[str, Dict[str, Route]] = {}
        self._patterns: List[Tuple[Any, Dict[str, Route]]] = []
        self._fallback = fallback and Route("*", "other", fallback)
        for route in routes:
            self._methods(route.path)[route.method] = route

    def find(self, method: str, path: str) -> Tuple[Route, Dict[str, str]]:
        """Return the route and what its {names} stood for. Raises APIError 404, or 405 with Allow."""
        methods, params = self._match(path)
        route = methods.get("GET" if method == "HEAD" else method) or (not methods and self._fallback)
        if route:
            return route, params
        if methods:
            allow = ", ".join(sorted(methods))
            message = "%s does not take %s; it takes %s." % (path, method, allow)
            raise APIError(405, message, "method_not_allowed", headers=[("Allow", allow)])
        raise APIError(404, "There is nothing at %s." % path, "unknown_path")

    def _methods(self, path: str) -> Dict[str, Route]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        pattern = re.compile(re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(path)))
        for known, methods in self._patterns:
            if known == pattern:
                return methods
        self._patterns.append((pattern, {}))
        return self._patterns[-1][1]

    def _match(self, path: str) -> Tuple[Dict[str, Route], Dict[str, str]]:
        if path in self._exact:
            return self._exact[path], {}
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(path)
            if match:
                return methods, {name: unquote(text) for name, text in match.groupdict().items()}
        return {}, {}


# ---------------------------------------------------------------------------------------------- settings


def setting(default: Any, help: str, group: str, **how: Any) -> Any:
    """Return a dataclass field that a command line can show: its default, its help text and its group of options.

    `how` may hold `flags` (further names), `check` (text → value, raising ValueError), `secret`, `many`, `metavar`.
    """
    return field(default=default, metadata=dict(how, help=help, group=group))


def between(low: float, high: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """Return a check that a text is a number of `kind` from `low` to `high`. The check raises ValueError."""

    def check(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:  # NaN is not between anything
            what = "a whole number" if kind is int else "a number"
            raise ValueError("%r is not %s from %g to %g" % (text, what, low, high))
        return value

    return check


def check_key(text: str) -> str:
    """Check an API key, or the @FILE that holds some: it must survive a header and a list."""
    if not re.fullmatch(r"@.+|[^\s,]+", text):
        raise ValueError("an API key may hold no spaces and no commas")
    return text


def _file(text: str) -> str:
    if text and not os.path.isfile(text):
        raise ValueError("there is no file %s" % text)
    return text


_seconds = between(0.05, 86400, float)


@dataclass(frozen=True)
class Config:
    """A service's settings: each is a name, a default and a reason."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 for every interface", "network")
    port: int = setting(0, "port to listen on; 0 picks a free one", "network", check=between(0, 65535))
    tls_cert: str = setting("", "certificate chain to serve https with, in PEM", "network", check=_file, metavar="FILE")
    tls_key: str = setting("", "its private key, where that is in another file", "network", check=_file, metavar="FILE")
    api_key: Tuple[str, ...] = setting(
        (), "a key that clients must send, or @FILE with one a line; repeatable", "access", many=True, secret=True,
        check=check_key, metavar="KEY",
    )  # fmt: skip
    key_requests: int = setting(
        0, "requests that each API key may have at once; more get 429; 0 for any number", "access",
        check=between(0, 1 << 20),
    )  # fmt: skip
    key_rate: int = setting(
        0, "requests that each API key may make in a minute; more get 429; 0 for any number", "access",
        check=between(0, 1 << 20),
    )  # fmt: skip
    cors_origin: str = setting("*", "the origin whose web pages may call; empty for none", "access")
    access_log: bool = setting(False, "log one line a request to stderr", "access")
    max_body: int = setting(16 << 20, "largest request body, in bytes", "limits", check=between(1, 1 << 40))
    max_connections: int = setting(4096, "connections at once; more get 503", "limits", check=between(1, 1 << 20))
    header_timeout: float = setting(10.0, "seconds a client may take to send its headers", "limits", check=_seconds)
    body_timeout: float = setting(60.0, "seconds a client may take to send its body", "limits", check=_seconds)
    idle_timeout: float = setting(75.0, "seconds a kept-alive connection may idle", "limits", check=_seconds)
    write_timeout: float = setting(60.0, "seconds a client may take nothing of its answer", "limits", check=_seconds)
    ping_interval: float = setting(15.0, "seconds of silence before a ping in a stream", "limits", check=_seconds)
    drain_timeout: float = setting(
        30.0, "seconds that running requests get to finish when stopping", "limits", check=between(0, 86400, float)
    )


# ----------------------------------------------------------------------------------------------- service


class _NoHandshake(Exception):
    """A client of an https service does not speak TLS, or not in time."""


class _Server(ThreadingHTTPServer):
    """The accept loop: a thread for each connection, up to a bound."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # the default of 5 refuses bursts
    allow_reuse_address = os.name == "posix"  # on Windows it would let two programs share a port

    def __init__(self, service: "Service"):
        self.service = service
        self.tls = _tls_context(service.config)
        host, port = service.config.host, service.config.port
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Connection)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can hang where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, or turn it away where there are too many."""
        if self.service.connections_open() >= self.service.config.max_connections:
            self._turn_away(request)
            return
        self.service.opened(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.service.closed(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and count it out."""
        try:
            if self.tls:
                plain, request = request, self._secure(request)
                self.service.closed(plain)
                self.service.opened(request)
            super().process_request_thread(request, client_address)
        except _NoHandshake:
            self.shutdown_request(request)
        finally:
            self.service.closed(request)

    def _secure(self, sock: Any) -> Any:
        """Return a TLS socket in place of a plain one; its handshake is done, in time. Raises _NoHandshake."""
        try:
            sock.settimeout(self.service.config.header_timeout)
            return self.tls.wrap_socket(sock, server_side=True)
        except (OSError, ValueError) as error:
            log.debug("no TLS handshake: %s", error)
            raise _NoHandshake()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; over TLS, say first that this is the end."""
        if hasattr(request, "unwrap"):
            with contextlib.suppress(OSError, ValueError):
                request.unwrap()
        super().shutdown_request(request)

    def accept_the_rest(self) -> None:
        """Take the connections that the kernel has already taken for us: their clients count on an answer."""
        for _ in range(self.request_queue_size):
            if self.socket.fileno() < 0 or not readable([self.socket], 0):
                return
            self._handle_request_noblock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what escaped a connection's thread: a defect, never the client's doing."""
        log.error("connection from %s failed:\n%s", client_address, traceback.format_exc())

    def _turn_away(self, sock: socket.socket) -> None:
        error = APIError(503, "Too many connections.", "too_many_connections", headers=[("Retry-After", "1")])
        with contextlib.suppress(OSError):
            sock.settimeout(1)
            sock.sendall(_head(503, "application/json", error.headers, close=True) + _framed(error_body(error)))
        self.shutdown_request(sock)


def _tls_context(config: Config) -> Any:
    """Return what TLS needs, or None where it is off. Raises OSError where certificate and key are no good."""
    if not config.tls_cert:
        return None
    import ssl  # here, so that a Python without it can still serve HTTP

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except ssl.SSLError as error:
        raise OSError("the certificate in %s can't be used: %s" % (config.tls_cert, error))
    return context


class _KeyLimits:
    """How many requests each API key may have at once, and make in a minute; 0 for any number.

    A key that was quiet may make a minute's requests at once; then they come back one by one.
    """

    def __init__(self, at_once: int, a_minute: int):
        self._at_once = at_once
        self._a_minute = a_minute
        self._running: Dict[str, int] = collections.defaultdict(int)
        self._left: Dict[str, Tuple[float, float]] = {}  # key -> requests it may still make, and since when
        self._lock = threading.Lock()  # guards the two above

    def enter(self, key: str, now: float) -> None:
        """Count a request in. Raises APIError 429 where the key has, or makes, too many."""
        with self._lock:
            if self._at_once and self._running[key] >= self._at_once:
                raise _over_limit("%d requests of this API key are running; it may have no more." % self._at_once, 1)
            if self._a_minute:
                left, since = self._left.get(key, (float(self._a_minute), now))
                left = min(float(self._a_minute), left + (now - since) * self._a_minute / 60)
                if left < 1:
                    after = math.ceil((1 - left) * 60 / self._a_minute)
                    raise _over_limit("This API key may make %d requests a minute." % self._a_minute, after)
                self._left[key] = (left - 1, now)
            self._running[key] += 1

    def leave(self, key: str) -> None:
        """Count a request out."""
        with self._lock:
            self._running[key] -= 1


def _over_limit(message: str, after: int) -> APIError:
    return APIError(429, message, "key_limit", headers=[("Retry-After", str(after))])


class Service:
    """An HTTP server: routes requests to handlers, counts them, and stops without losing one.

        service = Service(Config(port=9000), [Route("GET", "/health", handler, public=True)])
        service.start()     # raises OSError where the port is taken
        …
        service.drain(30)   # no new connections; running requests finish; then everything is closed

    `fallback` answers every path that no route names. `name` is the metrics' prefix.
    """

    def __init__(
        self, config: Config, routes: Iterable[Route], fallback: Optional[Handler] = None, name: str = "comeapi"
    ):
        self.config = config
        self.metrics = Metrics()
        self._router = Router(routes, fallback)
        self._keys = [key.encode("utf-8") for key in config.api_key]
        self._limits = _KeyLimits(config.key_requests, config.key_rate)
        self._server: Optional[_Server] = None
        self._changed = threading.Condition()  # guards the three below; notified when a request ends
        self._draining = False
        self._connections: Dict[socket.socket, Optional["Connection"]] = {}
        self._active = 0
        self._count = _HTTPMetrics(self.metrics, name, self)

    # ---- life

    def start(self) -> "Service":
        """Bind and serve in a background thread. Raises OSError where the address can't be had."""
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="accept", daemon=True).start()
        return self

    @property
    def port(self) -> int:
        """The port really bound."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The address a client on this machine calls."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.config.host, self.config.host)
        return http_url(host, self.port, "https" if self.config.tls_cert else "http")

    def metrics_page(self, request: Request) -> Reply:
        """Answer GET /metrics in Prometheus' text format."""
        return Reply(self.metrics.render().encode("utf-8"), content_type="text/plain; version=0.0.4")

    @property
    def draining(self) -> bool:
        """Whether the service is on its way out."""
        return self._draining

    def drain(self, timeout: float) -> int:
        """Take no new connections, let running requests finish for up to `timeout` seconds, close everything.

        Returns how many requests had to be cut off.
        """
        with self._changed:
            self._draining = True
        if self._server:
            self._server.shutdown()
            self._server.accept_the_rest()
            self._server.server_close()
        with self._changed:
            for connection in self._connections.values():
                if connection:
                    connection.end_if_idle()
            self._changed.wait_for(lambda: not self._connections, timeout)
            cut, rest = self._active, [each for each in self._connections.values() if each]
        for connection in rest:
            connection.cut()
        return cut

    # ---- counting, called by connections

    def connections_open(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def requests_active(self) -> int:
        """How many requests are being answered."""
        return self._active

    def opened(self, sock: socket.socket, connection: Optional["Connection"] = None) -> None:
        """Count a connection in: when it is accepted, and again when its thread has begun."""
        with self._changed:
            self._connections[sock] = connection

    def closed(self, sock: socket.socket) -> None:
        """Count a connection out."""
        with self._changed:
            self._connections.pop(sock, None)
            self._changed.notify_all()

    @contextlib.contextmanager
    def busy(self, connection: "Connection") -> Iterator[None]:
        """Count a request as running; a drain waits for it."""
        with self._changed:
            self._active += 1
            connection.idle = False
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                connection.idle = True
                self._changed.notify_all()

    # ---- answering

    def respond(self, request: Request, read_body: Callable[[], bytes]) -> Any:
        """Return the Reply or Stream for a request: route, key, body, handler; every error as its envelope."""
        try:
            if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
                return Reply(status=204, headers=self._preflight())
            route = self._authorized_route(request)
            request.body = read_body()
            return route.handler(request)
        except APIError as error:
            return error_reply(error)
        except (HangUp, TimedOut):
            raise
        except Exception:
            log.error("%s %s (%s) failed:\n%s", request.method, request.path, request.id, traceback.format_exc())
            return error_reply(internal_error())

    def finished(self, request: Request, status: int, size: int, seconds: float) -> None:
        """Count and log one request."""
        if request.key:
            self._limits.leave(request.key)
        self._count.finished(request, status, seconds)
        if self.config.access_log:
            line = '%s %s "%s %s" %d %dB %.1fms'
            access_log.info(line, request.peer, request.id, request.method, request.target, status, size, seconds * 1e3)

    def cors(self) -> Sequence[Tuple[str, str]]:
        """Return the headers that let web pages read a reply."""
        if not self.config.cors_origin:
            return ()
        vary = () if self.config.cors_origin == "*" else (("Vary", "Origin"),)
        return (
            ("Access-Control-Allow-Origin", self.config.cors_origin),
            ("Access-Control-Expose-Headers", "X-Request-Id"),
        ) + vary

    def _authorized_route(self, request: Request) -> Route:
        try:
            route, request.params = self._router.find(request.method, request.path)
            request.route = route.path
        except APIError:
            self._check_key(request)  # without a key, nobody learns which paths there are
            raise
        if not route.public:
            self._check_key(request)
        return route

    def _check_key(self, request: Request) -> None:
        """Raise APIError 401 unless the request carries one of the keys, 429 where that has reached its limit."""
        if not self._keys:
            return
        given = presented_key(request.headers)
        if not key_is_one_of(given, self._keys):
            raise key_error(given)
        self._limits.enter(given, time.monotonic())
        request.key = given

    def _preflight(self) -> Sequence[Tuple[str, str]]:
        return (
            ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
            ("Access-Control-Allow-Headers", "*, Authorization"),
            ("Access-Control-Max-Age", "86400"),
        )


class _HTTPMetrics:
    """What every service counts about its own HTTP."""

    def __init__(self, metrics: Metrics, name: str, service: Service):
        labels = ("method", "route", "status")
        self._requests = metrics.counter(name + "_http_requests_total", "HTTP requests answered.", *labels)
        self._seconds = metrics.histogram(
            name + "_http_request_duration_seconds", "From a request's first byte to its answer's last.", "route"
        )
        self._open = metrics.gauge(name + "_http_connections", "Client connections open.")
        self._active = metrics.gauge(name + "_http_requests_active", "Requests being answered.")
        self._service = service
        metrics.collect(self._collect)

    def finished(self, request: Request, status: int, seconds: float) -> None:
        method = request.method if request.method in _KNOWN_METHODS else "other"  # a bounded number of series
        self._requests.inc(method, request.route, str(status))
        self._seconds.observe(seconds, request.route)

    def _collect(self) -> None:
        self._open.set(self._service.connections_open())
        self._active.set(self._service.requests_active())


_KNOWN_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


def http_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a host, which may be an IPv6 address, and a port."""
    return "%s://%s:%d" % (scheme, "[%s]" % host if ":" in host else host, port)


def presented_key(headers: Mapping[str, str]) -> str:
    """Return the API key that a request carries, or an empty text."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def key_is_one_of(given: str, keys: Iterable[bytes]) -> bool:
    """Whether a key that a request carries is one of these. Compares with all of them, in constant time."""
    presented = given.encode("latin-1", "replace")
    return bool(sum(hmac.compare_digest(presented, key) for key in keys))


def key_error(given: str, what: str = "API key") -> APIError:
    """Return the error of a request that carries a wrong key, or none."""
    wrong = "is not one of this server's" if given else "is missing"
    message = "The %s %s. Send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'." % (what, wrong)
    return APIError(401, message, "invalid_api_key", headers=[("WWW-Authenticate", "Bearer")])


def internal_error() -> APIError:
    """Return what a client is told of a defect; the log has the rest."""
    return APIError(500, "The server failed on this request; its log says why.", "internal_error")


def error_body(error: APIError) -> bytes:
    """Return an error's envelope as bytes."""
    return json.dumps(error.envelope(), ensure_ascii=False).encode("utf-8", "replace")


def error_reply(error: APIError) -> Reply:
    """Return an error as a reply."""
    return Reply(error_body(error), error.status, headers=error.headers)


# -------------------------------------------------------------------------------------------- connection

_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_PHRASES.update({413: "Content Too Large", 499: "Client Closed Request"})
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MAX_HEAD = 32 << 10
_MAX_HEADERS = 100
_now = (0, "")  # the current second and its Date header: formatting it for every reply would cost more than the rest


def _date() -> str:
    global _now
    second = int(time.time())
    if _now[0] != second:
        _now = (second, formatdate(second, usegmt=True))
    return _now[1]


def _head(status: int, content_type: str, headers: Iterable[Tuple[str, str]], close: bool) -> bytes:
    """Return a reply's head up to its framing header, which the caller adds with the empty line."""
    lines = ["HTTP/1.1 %d %s" % (status, _PHRASES.get(status, "")), "Server: ComeAPI", "Date: " + _date()]
    if content_type:
        lines.append("Content-Type: " + content_type)
    lines += ["%s: %s" % pair for pair in headers]
    lines.append("Connection: close" if close else "Connection: keep-alive")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")


def _framed(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


class Connection(BaseHTTPRequestHandler):
    """One client: request after request until either side closes.

    The framing is strict where leniency lets two servers disagree about where a request ends (RFC 9112, section 11.2).
    It replaces http.server's own, whose reads have no overall deadline, and which costs more than all the rest here.
    """

    server: _Server
    idle = True  # between requests; guarded by the service's lock

    def setup(self) -> None:
        """Send small packets at once: Nagle's algorithm against delayed ACKs costs 40 ms a reply."""
        self.service = self.server.service
        self.wire = Wire(self.request, self.service.config.write_timeout)
        with contextlib.suppress(OSError):
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.service.opened(self.request, self)

    def finish(self) -> None:
        """Leave the closing and the counting out to the server."""

    def handle(self) -> None:
        """Answer requests until the client or an error ends the connection."""
        self.close_connection = False
        while not self.close_connection:
            patience = 0.1 if self.service.draining else self.service.config.idle_timeout
            if not self.wire.wait(time.monotonic() + patience):
                return
            with self.service.busy(self):
                self.handle_one_request()

    def end_if_idle(self) -> None:
        """Wake a connection that waits for its next request; one that has just arrived is still answered."""
        if self.idle and not readable([self.request], 0):
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """Break the connection."""
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)

    # ---- one request

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        started = time.monotonic()
        request = Request("GET", "", "HTTP/1.1", {}, self.wire, self.client_address[0])  # until a better one is read
        self._body_pending = True
        try:
            request = self.parse_request()
            reply = self.service.respond(request, lambda: self._read_body(request))
        except APIError as error:
            reply = error_reply(error)
        except TimedOut:
            reply = error_reply(APIError(408, "The request took too long to arrive.", "request_timeout"))
        except HangUp:
            self.close_connection = True
            if request.target:  # it had arrived
                self.service.finished(request, 499, 0, time.monotonic() - started)
            return
        self._answer(request, reply, started)

    def _answer(self, request: Request, reply: Any, started: float) -> None:
        # The rest of a request that was refused before its body was read can't be told from a next request.
        unread = self._body_pending
        self.close_connection = self.close_connection or unread or self.service.draining
        size = 0
        status = reply.status
        try:
            size = self._send(request, reply)
        except HangUp:
            self.close_connection = True
            status = 499
        finally:
            self.service.finished(request, status, size, time.monotonic() - started)
        if unread and status != 499:
            self.wire.linger()

    # ---- reading

    def parse_request(self) -> Request:
        """Read a request's head. Raises APIError for a bad one, HangUp, TimedOut."""
        self.close_connection = True  # until the head is known to be sound
        deadline = time.monotonic() + self.service.config.header_timeout
        head = self.wire.read_head(_MAX_HEAD, deadline).decode("latin-1").lstrip("\r\n")
        lines = head.split("\r\n")
        if head.count("\n") != len(lines) - 1:
            raise _bad_request("Lines must end in CRLF.")
        method, target, version = _request_line(lines[0])
        headers = _parse_headers(lines[1:])
        request = Request(method, _origin_form(target), version, headers, self.wire, self.client_address[0])
        _check_framing(request)
        self._body_pending = _has_body(headers)
        self.close_connection = _wants_close(request)
        return request

    def _read_body(self, request: Request) -> bytes:
        """Read the body. Raises APIError 411 or 413, HangUp, TimedOut."""
        limit = self.service.config.max_body
        deadline = time.monotonic() + self.service.config.body_timeout
        length = int(request.headers.get("content-length", 0))
        if length > limit:
            raise _too_large(limit)
        if not _has_body(request.headers):
            if request.method in ("POST", "PUT", "PATCH") and "content-length" not in request.headers:
                raise APIError(411, "Send a Content-Length, or the body in chunks.", "length_required")
            return b""
        if request.headers.get("expect", "").lower() == "100-continue" and request.version == "HTTP/1.1":
            self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "transfer-encoding" in request.headers:
            body = self._read_chunks(limit, deadline)
        else:
            body = self.wire.read_exactly(length, deadline)
        self._body_pending = False
        return body

    def _read_chunks(self, limit: int, deadline: float) -> bytes:
        """Read a chunked body (RFC 9112, section 7.1); its trailers are dropped."""
        body = bytearray()
        while True:
            line = self.wire.read_line(256, deadline)
            size_text = line.partition(b";")[0].strip(b" \t")
            if b"\n" in line or b"\r" in line or not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", size_text):
                raise APIError(400, "A chunk's size is not a hexadecimal number.", "bad_chunk")
            size = int(size_text, 16)
            if size == 0:
                break
            if len(body) + size > limit:
                raise _too_large(limit)
            body += self.wire.read_exactly(size, deadline)
            if self.wire.read_exactly(2, deadline) != b"\r\n":
                raise APIError(400, "A chunk is longer than its size says.", "bad_chunk")
        for _ in range(_MAX_HEADERS):
            if not self.wire.read_line(_MAX_HEAD, deadline):
                return bytes(body)
        raise APIError(400, "Too many trailers.", "bad_chunk")

    # ---- writing

    def _send(self, request: Request, reply: Any) -> int:
        """Send a reply and return its body's size. Raises HangUp."""
        if isinstance(reply, Stream):
            with contextlib.closing(reply.chunks):
                if request.method != "HEAD":
                    return self._send_stream(request, reply)
            reply = Reply(b"", reply.status, reply.content_type, reply.headers)
        body = b"" if request.method == "HEAD" else reply.body
        framing = b"\r\n" if reply.status == 204 else b"Content-Length: %d\r\n\r\n" % len(reply.body)
        self.wire.write(self._reply_head(request, reply) + framing + body)
        return len(body)

    def _send_stream(self, request: Request, reply: Stream) -> int:
        """Send a stream piece by piece, its head with the first one."""
        try:
            first = self._next_piece(reply)
        except APIError as error:
            return self._send(request, error_reply(error))
        chunked = request.version == "HTTP/1.1"
        self.close_connection = self.close_connection or not chunked
        head = self._reply_head(request, reply) + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        size, piece = 0, first
        while piece is not None:
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
            self.wire.write(head + framed)
            head = b""
            size += len(piece)
            piece = self._next_piece_or_error(reply)
        self.wire.write(head + (b"0\r\n\r\n" if chunked else b""))
        return size

    def _next_piece(self, reply: Stream) -> Optional[bytes]:
        """Return the next bytes, or a ping where none come, or None at the end. Raises HangUp, APIError."""
        ping_at = time.monotonic() + self.service.config.ping_interval
        try:
            for piece in reply.chunks:
                if piece is not IDLE:
                    if piece:
                        return piece
                elif self.wire.hung_up():
                    raise HangUp("the client closed the connection")
                elif reply.ping and time.monotonic() >= ping_at:
                    return reply.ping
            return None
        except (APIError, HangUp):
            raise
        except Exception:
            log.error("a stream failed:\n%s", traceback.format_exc())
            raise internal_error()

    def _next_piece_or_error(self, reply: Stream) -> Optional[bytes]:
        try:
            return self._next_piece(reply)
        except APIError as error:
            if reply.error_chunk is None:
                raise HangUp("cut, because the answer could not be finished: %s" % error)
            self.close_connection = True
            return reply.error_chunk(error)

    def _reply_head(self, request: Request, reply: Any) -> bytes:
        headers = [("X-Request-Id", request.id)]
        headers += self.service.cors()
        headers += reply.headers
        return _head(reply.status, reply.content_type if reply.status != 204 else "", headers, self.close_connection)


def _bad_request(message: str) -> APIError:
    return APIError(400, message, "bad_http")


def _too_large(limit: int) -> APIError:
    return APIError(413, "The body is larger than %d bytes." % limit, "body_too_large")


def _request_line(line: str) -> Tuple[str, str, str]:
    """Return method, target and version (RFC 9112, section 3). Raises APIError 400, 505."""
    words = line.split(" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not re.fullmatch(r"HTTP/\d\.\d", words[2]):
        raise _bad_request("The request line is not 'METHOD TARGET HTTP/1.1'.")
    if words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise APIError(505, "This server speaks HTTP/1.1, not %s." % words[2], "http_version")
    if not re.fullmatch(r"[\x21-\x7e]+", words[1]):
        raise _bad_request("The request's target holds characters that must be percent-encoded.")
    return words[0], words[1], words[2]


def _origin_form(target: str) -> str:
    """Return a target as path and query. Raises APIError 400."""
    if target[:8].lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(target)
        except ValueError as error:  # "http://[::1/"
            raise _bad_request("The request's target is not a URL: %s." % error)
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    if not target.startswith("/") and target != "*":
        raise _bad_request("The request's target must start with a slash.")
    return target


def _parse_headers(lines: List[str]) -> Dict[str, str]:
    """Return the headers, names in lower case. Raises APIError 400, 431."""
    if len(lines) > _MAX_HEADERS:
        raise APIError(431, "More than %d headers." % _MAX_HEADERS, "headers_too_large")
    headers: Dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not _TOKEN.fullmatch(name) or "\x00" in value or "\r" in value:
            raise _bad_request("A header line is not 'Name: value'.")
        if name in headers and name in _SINGLE:
            raise _bad_request("The header %s may be sent only once." % name)
        headers[name] = headers[name] + ", " + value if name in headers else value
    return headers


_SINGLE = frozenset(["content-length", "transfer-encoding", "host", "authorization", "content-type"])


def _check_framing(request: Request) -> None:
    """Refuse what two servers could read differently. Raises APIError 400, 501."""
    headers = request.headers
    if "host" not in headers and request.version == "HTTP/1.1":
        raise _bad_request("The Host header is missing.")
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
        raise _bad_request("Content-Length is not a whole number.")
    if coding is not None and (length is not None or request.version == "HTTP/1.0"):
        raise _bad_request("Transfer-Encoding can't be used here.")
    if coding is not None and coding.lower() != "chunked":
        raise APIError(501, "Transfer-Encoding %s is not supported; chunked is." % coding, "transfer_encoding")


def _has_body(headers: Mapping[str, str]) -> bool:
    return "transfer-encoding" in headers or int(headers.get("content-length", 0)) > 0


def _wants_close(request: Request) -> bool:
    options = {option.strip().lower() for option in request.headers.get("connection", "").split(",")}
    return "close" in options or (request.version == "HTTP/1.0" and "keep-alive" not in options)

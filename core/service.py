"""The HTTP ground floor: everything a program needs to be a well-behaved HTTP/1.1 server, on ThreadingHTTPServer.

    socket ── Wire ── Connection ── Service.respond ── route's handler ── Reply | Stream
              bytes,    HTTP/1.1      key, route,         the program
              deadlines framing       body, errors

From the bottom up, which is also the order of this file:

    Request       what a handler gets
    Reply         a whole answer;  json_reply() makes one
    Stream        an answer in pieces;  event_stream() makes one of server-sent events
    Route         a method, a path and a handler
    Config        the settings, with their defaults and their reasons
    Service       listens, routes, counts, drains
    Connection    one client: request after request until either side closes

A handler is a function from Request to Reply or Stream. It may raise APIError at any time, also while streaming.
It runs in its connection's own thread.

The rooms below: core/wire.py (one socket), core/heads.py (a request's head, taken apart), core/access.py (who may
call), core/metrics.py; core/errors.py is below them all.

Sources: RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1 framing), the WHATWG standard for server-sent events,
the OpenAI API reference for the error envelope.
"""

import contextlib
import http
import json
import logging
import os
import random
import re
import socket
import socketserver
import threading
import time
import traceback
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import parse_qs, unquote

from core.access import KeyLimits, check_key, key_error, key_is_one_of, presented_key
from core.errors import APIError, HangUp, TimedOut
from core.heads import (
    MAX_HEADERS,
    bad_request,
    check_framing,
    has_body,
    origin_form,
    parse_headers,
    request_line,
    wants_close,
)  # fmt: skip
from core.jsonbody import read_json
from core.metrics import Metrics
from core.wire import Wire, readable

log = logging.getLogger("comeapi.http")
access_log = logging.getLogger("comeapi.access")

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
        """Return the body as a JSON object. Raises APIError 400 for anything else (core/jsonbody.py)."""
        return read_json(self.body)

    @property
    def scheme(self) -> str:
        """What it came by, http or https."""
        return "https" if hasattr(self.wire.sock, "cipher") else "http"

    def hung_up(self) -> bool:
        """Tell at once whether the client has gone."""
        return self.wire.hung_up()


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
        self._limits = KeyLimits(config.key_requests, config.key_rate)
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
        return http_url(local_host(self.config.host), self.port, "https" if self.config.tls_cert else "http")

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


def local_host(host: str) -> str:
    """Return the host by which a client on this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def http_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a host, which may be an IPv6 address, and a port."""
    return "%s://%s:%d" % (scheme, "[%s]" % host if ":" in host else host, port)


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
_MAX_HEAD = 32 << 10
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
            raise bad_request("Lines must end in CRLF.")
        method, target, version = request_line(lines[0])
        headers = parse_headers(lines[1:])
        request = Request(method, origin_form(target), version, headers, self.wire, self.client_address[0])
        check_framing(version, headers)
        self._body_pending = has_body(headers)
        self.close_connection = wants_close(version, headers)
        return request

    def _read_body(self, request: Request) -> bytes:
        """Read the body. Raises APIError 411 or 413, HangUp, TimedOut."""
        limit = self.service.config.max_body
        deadline = time.monotonic() + self.service.config.body_timeout
        length = int(request.headers.get("content-length", 0))
        if length > limit:
            raise _too_large(limit)
        if not has_body(request.headers):
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
        for _ in range(MAX_HEADERS):
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


def _too_large(limit: int) -> APIError:
    return APIError(413, "The body is larger than %d bytes." % limit, "body_too_large")

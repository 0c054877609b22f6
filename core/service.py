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

The rooms below: core/wire.py (one socket), core/connections.py (all of them), core/descriptors.py (how many fit),
core/heads.py (a request's head, taken apart), core/bodies.py, core/access.py (API keys), core/origins.py (what web
pages may do), core/metrics.py; core/errors.py is below them all.

Sources: RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1 framing), the WHATWG standard for server-sent events,
the OpenAI API reference for the error envelope.
"""

import collections
import contextlib
import http
import json
import logging
import os
import re
import secrets
import socket
import socketserver
import threading
import time
import traceback
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import parse_qs, unquote

from core.access import KeyLimits, check_key, key_error, key_is_one_of, presented_key
from core.bodies import BodyBudget, read_body
from core.connections import Connections
from core.descriptors import is_short, room
from core.errors import APIError, HangUp, TimedOut, shown
from core.heads import (
    bad_request,
    check_framing,
    check_host,
    has_body,
    parse_headers,
    request_line,
    split_target,
    wants_close,
)  # fmt: skip
from core.jsonbody import read_json
from core.metrics import Metrics
from core.origins import Hosts, Origins, check_name, check_origin, host_error
from core.wire import Wire, readable, shake_hands

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
        self.held = 0  # bytes that the body takes from the service's budget
        given = headers.get("x-request-id")
        self.id = given if given and _ID.fullmatch(given) else _new_id()

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
_ids: Deque[str] = collections.deque()  # drawn many at once: each call of the system hands the GIL over


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
    os.register_at_fork(after_in_child=_ids.clear)  # or both processes would give the same ones


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
    return head + b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


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

    def methods(self) -> str:
        """Return the methods that any path takes, for an Allow header."""
        tables = list(self._exact.values()) + [methods for _, methods in self._patterns]
        return ", ".join(sorted({"OPTIONS"}.union(*tables)))

    def find(self, method: str, path: str) -> Tuple[Route, Dict[str, str]]:
        """Return the route and what its {names} stood for. Raises APIError 404, or 405 with Allow."""
        methods, params = self._match(path)
        route = methods.get("GET" if method == "HEAD" else method) or (not methods and self._fallback)
        if route:
            return route, params
        if methods:
            allow = ", ".join(sorted(methods))
            message = "%s does not take %s; it takes %s." % (shown(path), shown(method, 20), allow)
            raise APIError(405, message, "method_not_allowed", headers=[("Allow", allow)])
        raise APIError(404, "There is nothing at %s." % shown(path), "unknown_path")

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
    allowed_host: Tuple[str, ...] = setting(
        (), "a further name that clients may call this server by, .DOMAIN for all below, * for any; repeatable",
        "access", many=True, check=check_name, metavar="NAME",
    )  # fmt: skip
    cors_origin: Tuple[str, ...] = setting(
        (), "an origin whose web pages may call, such as https://chat.example.com, or * for any; repeatable", "access",
        many=True, check=check_origin,
    )  # fmt: skip
    access_log: bool = setting(False, "log one line a request to stderr", "access")
    max_body: int = setting(4 << 20, "largest request body, in bytes", "limits", check=between(1, 1 << 40))
    max_bodies: int = setting(
        256 << 20, "bytes that all request bodies may take at once; more get 503", "limits", check=between(1, 1 << 50)
    )
    max_connections: int = setting(
        4096, "connections at once; for more, idle ones are closed; where none idles, they get 503", "limits",
        check=between(1, 1 << 20),
    )  # fmt: skip
    header_timeout: float = setting(10.0, "seconds a client may take to send its headers", "limits", check=_seconds)
    body_timeout: float = setting(60.0, "seconds a client may take to send its body", "limits", check=_seconds)
    idle_timeout: float = setting(75.0, "seconds a kept-alive connection may idle", "limits", check=_seconds)
    write_timeout: float = setting(60.0, "seconds a client may lag behind its answer", "limits", check=_seconds)
    ping_interval: float = setting(15.0, "seconds of silence before a ping in a stream", "limits", check=_seconds)
    drain_timeout: float = setting(
        30.0, "seconds that running requests get to finish when stopping", "limits", check=between(0, 86400, float)
    )


# ----------------------------------------------------------------------------------------------- service


_PAUSE_SECONDS = 0.1


class _Server(ThreadingHTTPServer):
    """The accept loop: a thread for each connection, up to a bound."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # the default of 5 refuses bursts
    allow_reuse_address = os.name == "posix"  # on Windows it would let two programs share a port

    def __init__(self, service: "Service"):
        self.service = service
        self.short = False  # no descriptor was left for a connection
        self._complained = float("-inf")
        self.tls = _tls_context(service.config)
        host, port = service.config.host, service.config.port
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._woken, self._wake = socket.socketpair()
        self._ended = threading.Event()
        super().__init__((host, port), Connection)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can hang where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def serve_forever(self, poll_interval: float = 3600.0) -> None:
        """Accept connections until shutdown(), which wakes it at once; socketserver's own loop looks now and then."""
        try:
            while True:
                ready = readable([self.socket, self._woken], poll_interval)
                if self._woken in ready:
                    return
                if ready:
                    self._handle_request_noblock()
        finally:
            self._ended.set()

    def shutdown(self) -> None:
        """Stop serve_forever() and wait for its end; harmless the second time."""
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        self._ended.wait()

    def server_close(self) -> None:
        """Close all sockets of the accept loop."""
        super().server_close()
        self._woken.close()
        self._wake.close()

    def get_request(self) -> Any:
        """Accept a connection. Where no descriptor is left, make room or pause: it would fail again at once."""
        try:
            sock, address = super().get_request()
        except OSError as error:
            if is_short(error):
                self._run_short(error)
            raise
        return self._secured(sock), address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, or turn it away where there are too many."""
        connections = self.service.connections
        if not connections.has_room():
            self._turn_away(request)
            return
        connections.opened(request)
        try:
            super().process_request(request, client_address)
        except BaseException as error:
            connections.closed(request)
            if not is_short(error):
                raise
            self._complain(error)
            self._turn_away(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and count it out."""
        try:
            if self.tls:
                shake_hands(request, self.service.config.header_timeout)
            super().process_request_thread(request, client_address)
        except (OSError, ValueError, TimedOut) as error:
            log.debug("no TLS handshake: %s", error)
            self.shutdown_request(request)
        finally:
            self.service.connections.closed(request)

    def _secured(self, sock: Any) -> Any:
        """Return a TLS socket in place of a plain one, where TLS is on; its thread shakes hands. Raises OSError."""
        if not self.tls:
            return sock
        sock.setblocking(False)
        try:
            return self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:
            sock.close()
            raise OSError(str(error))

    def _run_short(self, error: OSError) -> None:
        self.short = True
        self._complain(error)
        if not self.service.connections.make_room():
            time.sleep(_PAUSE_SECONDS)

    def _complain(self, error: BaseException) -> None:
        """Say what this process is short of, once a minute."""
        now = time.monotonic()
        if now - self._complained > 60:
            self._complained = now
            log.warning("a new connection has to wait: %s (%d are open)", error, len(self.service.connections))

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; over TLS, say first that this is the end."""
        if hasattr(request, "unwrap"):
            with contextlib.suppress(OSError, ValueError):
                request.unwrap()
        super().shutdown_request(request)

    def accept_the_rest(self) -> None:
        """Take the connections that the kernel has already taken for us: their clients count on an answer."""
        self.short = False
        for _ in range(self.request_queue_size):
            if self.short or self.socket.fileno() < 0 or not readable([self.socket], 0):
                return
            self._handle_request_noblock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what escaped a connection's thread: a defect, never the client's doing."""
        log.error("connection from %s failed:\n%s", client_address, traceback.format_exc())

    def _turn_away(self, sock: Any) -> None:
        """Say 503 and close. It never waits, so over TLS, where there was no handshake yet, it says nothing."""
        error = APIError(503, "Too many connections.", "too_many_connections", headers=[("Retry-After", "1")])
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            if not self.tls:
                sock.send(_head(503, "application/json", error.headers, close=True) + _framed(error_body(error)))
                sock.recv(_MAX_HEAD)  # what is left unread would reset the connection
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

    `fallback` answers every path that no route names. `name` is the metrics' prefix. `keys` are those of routes that
    check a key of their own: like an API key, they let a request in whatever host name it has. A connection needs up to
    `descriptors` file descriptors.
    """

    def __init__(
        self,
        config: Config,
        routes: Iterable[Route],
        fallback: Optional[Handler] = None,
        name: str = "comeapi",
        keys: Sequence[str] = (),
        descriptors: int = 1,
    ):
        self.config = config
        self.metrics = Metrics()
        self._router = Router(routes, fallback)
        self._keys = [key.encode("utf-8") for key in config.api_key]
        self._all_keys = self._keys + [key.encode("utf-8") for key in keys]
        self._hosts = Hosts(config.host, config.allowed_host)
        self._origins = Origins(config.cors_origin)
        self._limits = KeyLimits(config.key_requests, config.key_rate)
        self.bodies = BodyBudget(max(config.max_bodies, config.max_body))
        self._server: Optional[_Server] = None
        self._draining = False
        self._descriptors = descriptors
        self.connections = Connections(config.max_connections)
        self._count = _HTTPMetrics(self.metrics, name, self)

    # ---- life

    def start(self) -> "Service":
        """Bind and serve in a background thread. Raises OSError where the address can't be had."""
        self._server = _Server(self)
        self._fit_into_process()
        threading.Thread(target=self._server.serve_forever, name="accept", daemon=True).start()
        return self

    def _fit_into_process(self) -> None:
        """Allow no more connections than this process may have open files for."""
        fit = room(self._descriptors)
        if fit is not None and fit < self.connections.most:
            self.connections.most = fit
            log.info("the limit of open files (ulimit -n) leaves room for %d connections at once", fit)

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
        self._draining = True
        if self._server:
            self._server.shutdown()
            self._server.accept_the_rest()
            self._server.server_close()
        self.connections.end_idle()
        self.connections.wait_until_closed(timeout)
        return self.connections.cut()

    # ---- counting

    def connections_open(self) -> int:
        """How many connections are open."""
        return len(self.connections)

    def requests_active(self) -> int:
        """How many requests are being answered."""
        return self.connections.active()

    # ---- answering

    def respond(self, request: Request, read_body: Callable[[Request], bytes]) -> Any:
        """Return the Reply or Stream for a request: route, key, body, handler; every error as its envelope."""
        try:
            self._check_host(request)
            if _is_preflight(request):
                return Reply(status=204, headers=self._origins.preflight(request.headers))
            if request.target == "*":
                return self._about_all(request)
            route = self._authorized_route(request)
            request.body = read_body(request)
            request.wire.begin_request(request.version)
            return route.handler(request)
        except APIError as error:
            return error_reply(error)
        except (HangUp, TimedOut):
            raise
        except Exception as error:
            if is_short(error):
                return error_reply(_short(error))
            log.error("%s %s (%s) failed:\n%s", request.method, request.path, request.id, traceback.format_exc())
            return error_reply(internal_error())

    def finished(self, request: Request, status: int, size: int, seconds: float) -> None:
        """Count and log one request."""
        self.bodies.give_back(request.held)
        if request.key:
            self._limits.leave(request.key)
        self._count.finished(request, status, seconds)
        if self.config.access_log:
            line = '%s %s "%s %s" %d %dB %.1fms'
            access_log.info(line, request.peer, request.id, request.method, request.target, status, size, seconds * 1e3)

    def cors(self, request: Request) -> Sequence[Tuple[str, str]]:
        """Return the headers that let a web page read the reply, where it may."""
        return self._origins.headers(request.headers.get("origin", ""))

    def _about_all(self, request: Request) -> Reply:
        """Answer a request whose target is the whole server: OPTIONS * (RFC 9110, section 9.3.7)."""
        if request.method != "OPTIONS":
            raise bad_request("The target * is for OPTIONS only.")
        return Reply(status=204, headers=[("Allow", self._router.methods())])

    def _authorized_route(self, request: Request) -> Route:
        try:
            route, request.params = self._router.find(request.method, request.path)
            request.route = route.path
        except APIError:
            self._check_origin(request, public=False)
            self._check_key(request)  # without a key, nobody learns which paths there are
            raise
        self._check_origin(request, route.public)
        if not route.public:
            self._check_key(request)
        return route

    def _check_host(self, request: Request) -> None:
        """Raise APIError 403 for a request by a foreign name, unless it has a key, as no page has that rebinds one."""
        host = request.headers.get("host", "")
        if not self._hosts.allow(host) and not key_is_one_of(presented_key(request.headers), self._all_keys):
            raise host_error(host)

    def _check_origin(self, request: Request, public: bool) -> None:
        self._origins.check(request.method, request.path, request.headers, public)

    def _check_key(self, request: Request) -> None:
        """Raise APIError 401 unless the request carries one of the keys, 429 where that has reached its limit."""
        if not self._keys:
            return
        given = presented_key(request.headers)
        if not key_is_one_of(given, self._keys):
            raise key_error(given)
        self._limits.enter(given, time.monotonic())
        request.key = given


def _is_preflight(request: Request) -> bool:
    return request.method == "OPTIONS" and {"origin", "access-control-request-method"} <= request.headers.keys()


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


def _short(error: Exception) -> APIError:
    return APIError(503, "The server is short of resources: %s." % error, "short", headers=[("Retry-After", "1")])


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


def _chunk(piece: bytes, chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece


def _framed(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


class Connection(BaseHTTPRequestHandler):
    """One client: request after request until either side closes.

    The framing is strict where leniency lets two servers disagree about where a request ends (RFC 9112, section 11.2).
    It replaces http.server's own, whose reads have no overall deadline, and which costs more than all the rest here.
    """

    server: _Server

    def setup(self) -> None:
        """Count the connection in, now that its thread has begun."""
        self.service = self.server.service
        self.wire = Wire(self.request, self.service.config.write_timeout)
        self.service.connections.opened(self.request, self.wire)

    def finish(self) -> None:
        """Leave the closing and the counting out to the server."""

    def handle(self) -> None:
        """Answer requests until the client or an error ends the connection."""
        self.close_connection = False
        while not self.close_connection:
            patience = 0.1 if self.service.draining else self.service.config.idle_timeout
            if not self.wire.wait(time.monotonic() + patience):
                return
            self.service.connections.begins(self.request)
            try:
                self.handle_one_request()
            finally:
                self.service.connections.ends(self.request)

    # ---- one request

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        started = time.monotonic()
        request: Optional[Request] = None
        self._body_pending = True
        try:
            request = self.parse_request()
            reply = self.service.respond(request, self._read_body)
        except APIError as error:
            reply = error_reply(error)
        except TimedOut:
            reply = error_reply(APIError(408, "The request took too long to arrive.", "request_timeout"))
        except HangUp:
            self.close_connection = True
            if request:  # it had arrived
                self.service.finished(request, 499, 0, time.monotonic() - started)
            return
        if request is None:  # nothing of it could be read
            request = Request("GET", "", "HTTP/1.1", {}, self.wire, self.client_address[0])
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
        check_host(version, headers)
        target, host = split_target(target)
        if host:  # it takes the place of the header (RFC 9112, section 3.2.2)
            headers["host"] = host
        request = Request(method, target, version, headers, self.wire, self.client_address[0])
        check_framing(version, headers)
        self._body_pending = has_body(headers)
        self.close_connection = wants_close(version, headers)
        return request

    def _read_body(self, request: Request) -> bytes:
        """Read the body. Raises APIError 400, 411, 413, 503, HangUp, TimedOut."""
        config = self.service.config
        deadline = time.monotonic() + config.body_timeout
        body = read_body(request, config.max_body, deadline, self.service.bodies)
        self._body_pending = False
        return body

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
        self.wire.begin_answer(_chunk(reply.ping, chunked) or None)
        head = self._reply_head(request, reply) + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        size, piece = 0, first
        while piece is not None:
            self.wire.write(head + _chunk(piece, chunked))
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
        headers += self.service.cors(request)
        headers += reply.headers
        return _head(reply.status, reply.content_type if reply.status != 204 else "", headers, self.close_connection)

"""The HTTP server: everything a program needs to be a well-behaved one, on ThreadingHTTPServer.

    socket ── Wire ── Connection ── Service.respond ── route's handler ── Reply | Stream
              bytes,    HTTP/1.1      key, route,         the program
              deadlines framing       body, errors

    ServerConfig  the settings, with their defaults and their reasons
    Service       listens, routes, counts, drains

A handler is a function from Request to Reply or Stream (messages.py). It may raise APIError at any time, also
while streaming. It runs in its connection's own thread.

Sources: RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1 framing), the OpenAI API reference for the error envelope.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import traceback
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any, Callable, Iterable, List, Optional, Sequence, Tuple

from core.errors import APIError, HangUp, TimedOut
from core.http.access import KeyLimits, check_key, key_error, key_is_one_of, presented_key
from core.http.bodies import BodyBudget
from core.http.connection import FIRST_REQUEST, Connection, framed, reply_head
from core.http.connections import Connections
from core.http.counting import HTTPMetrics
from core.http.descriptors import is_short, room
from core.http.leaving import Leaving
from core.http.listening import BACKLOG, listening_sockets
from core.http.messages import Reply, Request, error_body, error_reply, http_url, internal_error, local_host
from core.http.metrics import Metrics
from core.http.origins import Hosts, Origins, check_name, check_origin, host_error
from core.http.requesthead import bad_request
from core.http.routing import Handler, Route, Router
from core.http.sockets import readable
from core.http.tls import ServerTLS, shake_hands
from core.options import between, setting

log = logging.getLogger("comeapi.http")
access_log = logging.getLogger("comeapi.access")


def existing_file(text: str) -> str:
    """Check that a file is there. Raises ValueError."""
    if text and not os.path.isfile(text):
        raise ValueError("there is no file %s" % text)
    return text


_seconds = between(0.05, 86400, float)


@dataclass(frozen=True)
class ServerConfig:
    """A service's settings: each is a name, a default and a reason."""

    host: str = setting(
        "127.0.0.1", "address to listen on, or several with commas between; 0.0.0.0 for every interface", "network",
        variables=("LLAMA_ARG_HOST",),
    )  # fmt: skip
    port: int = setting(0, "port to listen on; 0 picks a free one", "network", check=between(0, 65535))
    listen_fd: Tuple[int, ...] = setting(
        (), "number of a listening socket that this program is started with, in place of --host and --port; repeatable",
        "other", many=True, check=between(0, 1 << 20),
    )  # fmt: skip
    tls_cert: str = setting(
        "", "certificate chain to serve https with, in PEM", "network", check=existing_file, metavar="FILE",
        flags=("--ssl-cert-file",), variables=("LLAMA_ARG_SSL_CERT_FILE",),
    )  # fmt: skip
    tls_key: str = setting(
        "", "its private key, where that is in another file", "network", check=existing_file, metavar="FILE",
        flags=("--ssl-key-file",), variables=("LLAMA_ARG_SSL_KEY_FILE",),
    )  # fmt: skip
    client_ca: str = setting(
        "", "demand of https clients a certificate that one of these, in PEM, has signed", "network",
        check=existing_file, metavar="FILE",
    )  # fmt: skip
    api_key: Tuple[str, ...] = setting(
        (), "a key that clients must send, or @FILE with one a line; repeatable", "access", many=True, secret=True,
        commas=True, check=check_key, metavar="KEY", variables=("LLAMA_API_KEY",),
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
        (), "an origin whose web pages may call, such as https://chat.example.com; localhost for those of this "
        "machine, * for any; repeatable", "access", flags=("--cors-origins",), many=True, commas=True,
        check=check_origin, variables=("LLAMA_ARG_CORS_ORIGINS",),
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


_PAUSE_SECONDS = 0.1  # where no descriptor is left
_MOST_DROPPED = 32 << 10  # bytes of a request that is turned away


class _Server(ThreadingHTTPServer):
    """The accept loop: a thread for each connection, up to a bound."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, service: "Service"):
        self.service = service
        self.short = False  # no descriptor was left for a connection
        self._complained = float("-inf")
        config = service.config
        wanted = config.tls_cert or config.client_ca
        self.tls = ServerTLS(config.tls_cert, config.tls_key, config.client_ca) if wanted else None
        host, port = config.host.split(",")[0], config.port
        self._woken, self._wake = socket.socketpair()
        self._ended = threading.Event()
        self._listening: List[socket.socket] = []
        super().__init__((host, port), Connection)

    def server_bind(self) -> None:
        """Take the sockets that are to be listened on, in place of the one that socketserver has made.

        HTTPServer looks up the host's name here, which can hang where there is no DNS.
        """
        self.socket.close()
        self._listening = listening_sockets(self.service.config)
        self.socket = self._listening[0]  # of which socketserver accepts: each in its turn
        self.server_address = self.socket.getsockname()
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def server_activate(self) -> None:
        """Do nothing: the socket listens already."""

    def serve_forever(self, poll_interval: float = 3600.0) -> None:
        """Accept connections until shutdown(), which wakes this loop at once; socketserver's own loop polls."""
        try:
            while True:
                ready = readable([*self._listening, self._woken], poll_interval)
                if self._woken in ready:
                    return
                for self.socket in ready:
                    self._accept()
        finally:
            self._ended.set()

    def _accept(self) -> None:
        """Accept one connection; what goes wrong ends that connection alone."""
        try:
            request, address = self.get_request()
        except OSError:  # the client has left meanwhile, or no descriptor is left
            return
        try:
            self.process_request(request, address)
        except Exception:
            self.handle_error(request, address)
            self.shutdown_request(request)

    def shutdown(self) -> None:
        """Stop serve_forever() and wait for its end; harmless the second time."""
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        self._ended.wait()

    def server_close(self) -> None:
        """Close all sockets of the accept loop."""
        super().server_close()
        for sock in self._listening:
            sock.close()
        self._woken.close()
        self._wake.close()

    def get_request(self) -> Tuple[socket.socket, Any]:
        """Accept a connection. Where no descriptor is left, make room or pause: the next try would fail at once."""
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

    def _secured(self, sock: socket.socket) -> socket.socket:
        """Return a TLS socket for a plain one, where TLS is on. Its thread does the handshake. Raises OSError."""
        if not self.tls:
            return sock
        sock.setblocking(False)
        try:
            return self.tls.wrap(sock)
        except (OSError, ValueError) as error:
            sock.close()
            raise OSError(str(error))

    def _run_short(self, error: OSError) -> None:
        self.short = True
        self._complain(error)
        if not self.service.connections.make_room():
            time.sleep(_PAUSE_SECONDS)

    def _complain(self, error: BaseException) -> None:
        """Log what this process is short of, at most once a minute."""
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
        """Accept the connections that wait in the kernel's backlog: their clients count on an answer."""
        self.short = False
        for self.socket in self._listening:
            for _ in range(BACKLOG):
                if self.short or self.socket.fileno() < 0 or not readable([self.socket], 0):
                    break
                self._accept()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an exception that nothing has caught: a defect of this program, never the client's fault."""
        log.error("connection from %s failed:\n%s", client_address, traceback.format_exc())

    def _turn_away(self, sock: socket.socket) -> None:
        """Answer 503 and close. This never waits: so over TLS, before the handshake, nothing is answered."""
        error = APIError(503, "Too many connections.", "too_many_connections", headers=[("Retry-After", "1")])
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            if not self.tls:
                sock.send(reply_head(503, "application/json", error.headers, close=True) + framed(error_body(error)))
                sock.recv(_MOST_DROPPED)  # what is left unread would reset the connection
        self.shutdown_request(sock)


class Service:
    """An HTTP server: routes requests to handlers, counts them, and stops without losing one.

        service = Service(ServerConfig(port=9000), [Route("GET", "/health", handler, public=True)])
        service.start()     # raises OSError where the port is taken
        …
        service.drain(30)   # no new connections; running requests finish; then everything is closed

    `fallback` answers every path that no route names. `name` is the metrics' prefix. `keys` are further keys, which
    some routes check themselves: a request with one of them, or with an API key, may call us by any host name. A
    connection needs up to `descriptors` file descriptors. `more` returns headers that each answer to a request has.
    """

    def __init__(
        self,
        config: ServerConfig,
        routes: Iterable[Route],
        fallback: Optional[Handler] = None,
        name: str = "comeapi",
        keys: Sequence[str] = (),
        descriptors: int = 1,
        more: Callable[[Request], Sequence[Tuple[str, str]]] = lambda request: (),
    ):
        self.config = config
        self.more = more
        self.metrics = Metrics()
        self._router = Router(routes, fallback)
        self._keys = [key.encode("utf-8") for key in config.api_key]
        self._all_keys = self._keys + [key.encode("utf-8") for key in keys]
        self._hosts = Hosts(config.host, config.allowed_host)
        self._origins = Origins(config.cors_origin)
        self.limits = KeyLimits(config.key_requests, config.key_rate)
        self.bodies = BodyBudget(max(config.max_bodies, config.max_body))
        self._server: Optional[_Server] = None
        self.leaving = Leaving()
        self._draining = False
        self.keep_alive = "timeout=%d" % config.idle_timeout  # for clients, so that they don't connect for each request
        self._descriptors = descriptors
        self.connections = Connections(config.max_connections)
        self._count = HTTPMetrics(self.metrics, name, self.connections)

    # ---- life

    def start(self) -> "Service":
        """Bind and serve in a background thread. Raises OSError where the address is taken or is not ours."""
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
        """The port that it listens on. Raises RuntimeError before start()."""
        if self._server is None:
            raise RuntimeError("the service has not been started")
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
        """Whether no new connections are taken any more."""
        return self._draining

    def leave(self, grace: float) -> None:
        """For `grace` seconds, go on serving everybody, but end each connection with its answer.

        Those who check this server's health can meanwhile send new clients elsewhere. drain() is to follow.
        """
        self.leaving.begun = True
        self.connections.end_idle()
        time.sleep(grace)

    def drain(self, timeout: float) -> int:
        """Take no new connections, let running requests finish for up to `timeout` seconds, close everything.

        Returns how many requests had to be cut off.
        """
        self.leaving.begun = self._draining = True
        if self._server:
            self._server.shutdown()
            self._server.accept_the_rest()
            self._server.server_close()
        self.connections.end_idle()
        self.connections.wait_until_closed(min(timeout, FIRST_REQUEST))
        self.connections.end_idle(newcomers=True)
        self.connections.wait_until_closed(timeout - FIRST_REQUEST)
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
        return self.shielded(request, lambda: self._handled(request, read_body))

    def _handled(self, request: Request, read_body: Callable[[Request], bytes]) -> Any:
        self._check_host(request)
        if _is_preflight(request):
            return Reply(headers=self._origins.preflight(request.headers), content_type="text/plain")
        if request.target == "*":
            return self._about_all(request)
        route = self._authorized_route(request)
        request.body = read_body(request)
        request.wire.begin_request(request.version)
        return route.handler(request)

    def shielded(self, request: Request, answer: Callable[[], Any]) -> Any:
        """Return what `answer` does; what it raises becomes the reply that tells of it. Raises HangUp, TimedOut."""
        try:
            return answer()
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
            self.limits.leave(request.key)
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
        if not route.public and not route.keyless(request):
            self._check_key(request, route.counts)
        return route

    def _check_host(self, request: Request) -> None:
        """Raise APIError 403 for a Host that is not ours, unless there is a key: a page that rebinds has none."""
        host = request.headers.get("host", "")
        if not self._hosts.allow(host) and not key_is_one_of(presented_key(request.headers), self._all_keys):
            raise host_error(host)

    def _check_origin(self, request: Request, public: bool) -> None:
        self._origins.check(request.method, request.path, request.headers, public)

    def _check_key(self, request: Request, counts: bool = True) -> None:
        """Raise APIError 401 unless the request carries one of the keys, 429 where that has reached its limit."""
        if not self._keys:
            return
        given = presented_key(request.headers)
        if not key_is_one_of(given, self._keys):
            raise key_error(given)
        if counts:
            self.limits.enter(given, time.monotonic())
            request.key = given


def _is_preflight(request: Request) -> bool:
    return request.method == "OPTIONS" and {"origin", "access-control-request-method"} <= request.headers.keys()


def _short(error: Exception) -> APIError:
    return APIError(503, "The server is short of resources: %s." % error, "short", headers=[("Retry-After", "1")])

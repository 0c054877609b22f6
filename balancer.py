#!/usr/bin/env python3
"""The load balancer: one address in front of several model servers. Standard library only.

    python balancer.py                                     backends 127.0.0.1:8080-8084, itself on 127.0.0.1:9000
    python balancer.py 127.0.0.1 8080 5 0.0.0.0 9000       the same backends, open to the network
    python balancer.py --backend http://gpu1:8080 --backend http://gpu2:8080

It can also be embedded: no globals, no signal handlers, several in one process:

    from balancer import Balancer, Config
    balancer = Balancer(Config(backend=("http://gpu1:8080",), port=9000)).start()
    …
    balancer.stop()

What happens to a request:

    Balancer.relay ── Pool.choose ── Client.open ── _Relay ──> client
          ▲               │ one lock; no I/O under it
          └─ next one ◄── unreachable; broken off, or 502/503, before a byte went to the client

    Backend   what is known of one model server            Health    the thread that probes them
    Pool      all of them: the cursor and the choice       Balancer  the routes, and a request's way through

Retries. The client never sees these; it gets its answer later, or the last failure:

    1  no connection                      → the next backend; this one is suspect
    2  a kept-alive connection was stale  → the same backend on a new connection, once (core/upstream.py)
    3  502 or 503                         → the next backend
    4  broken off before a byte was sent on to the client → the next backend, at most `retries` times; it is suspect
    5  no byte in time                    → 504; it may still be at work, so nobody else is asked
    6  broken off after a byte was sent   → the stream ends with an error event; other answers are cut off
    7  no backend left, but one was up before, is loading, or has a parent → wait for it, `queue_timeout` at most
"""

import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple
from urllib.parse import urlsplit

from core import options, process, service
from core.service import APIError, HangUp, Reply, Request, Route, Stream, between, json_reply, setting
from core.settings import ChildSettings, RelaySettings
from core.upstream import Answer, Broken, Client, Slow, Unreachable

log = logging.getLogger("comeapi.balancer")


def backend_url(text: str) -> str:
    """Return a backend's URL without a slash at its end. Raises ValueError."""
    parts = urlsplit(text if "//" in text else "http://" + text)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("%r is not a URL like http://127.0.0.1:8080" % text)
    return "http://%s" % parts.netloc


@dataclass(frozen=True)
class Config(service.Config, RelaySettings, ChildSettings):
    """A balancer's settings. `backend` names each; where it is empty, host, first port and number do."""

    port: int = setting(9000, "port to listen on; 0 picks a free one", "network", check=between(0, 65535))
    backend: Tuple[str, ...] = setting(
        (),
        "a backend's URL; repeatable; in place of the next three",
        "backends",
        many=True,
        check=backend_url,
        metavar="URL",
    )
    backend_host: str = setting("127.0.0.1", "the backends' host", "backends")
    base_port: int = setting(8080, "the first backend's port; the others follow", "backends", check=between(1, 65535))
    backends: int = setting(5, "number of backends", "backends", flags=("-n",), check=between(1, 1000))

    def urls(self) -> Tuple[str, ...]:
        """Return the backends' URLs."""
        numbered = tuple(service.http_url(self.backend_host, self.base_port + i) for i in range(self.backends))
        return self.backend or numbered


# ------------------------------------------------------------------------------------------------ the pool

FIRST_RETRY = 1.0  # seconds until a backend that is down is probed again
SLOWEST_RETRY = 5.0  # seconds, after backing off
BACK_OFF = 1.3


class Backend:
    """What is known of one model server. The pool's lock guards all of it."""

    def __init__(self, url: str):
        self.url = url
        self.healthy = False
        self.seen = False  # it has been healthy once, or says that it is loading
        self.why = "not probed yet"
        self.slots = 1
        self.model: Optional[str] = None
        self.in_flight = 0
        self.requests = 0
        self.errors = 0
        self.response_time = 0.0  # seconds to the first byte, moving average
        self.last_check = 0.0  # time.time()
        self.next_probe = 0.0  # on the health thread's clock
        self.retry_delay = FIRST_RETRY
        self.probing = False

    def describe(self) -> Dict[str, Any]:
        """Return what /status says of it."""
        return {
            "url": self.url,
            "healthy": self.healthy,
            "error_count": self.errors,
            "avg_response_time": round(self.response_time, 4),
            "last_check": round(self.last_check, 3),
            "in_flight": self.in_flight,
            "capacity": self.slots,
            "requests": self.requests,
            "model": self.model,
            "why": self.why,
        }


class Pool:
    """All backends, and the choice among them. Everything is decided under one lock, which guards every field of
    every Backend and the cursor; nothing is sent or received under it."""

    def __init__(self, urls: Tuple[str, ...], clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._backends = [Backend(url) for url in urls]
        self._cursor = 0
        self._lock = threading.Lock()
        self._probe_due = threading.Condition(self._lock)
        self._came_up = threading.Condition(self._lock)

    def choose(self, tried: Set[Backend]) -> Optional[Backend]:
        """Take a backend for one request, which must be given back with finished().

        1. The cursor's next that is healthy, has a free slot and was not tried.
        2. Else the next that is healthy and was not tried: its own queue takes the request.
        3. Else the next that was not tried: it may be back before its next probe.
        4. Else None.
        """
        with self._lock:
            chosen = (
                self._next(lambda each: each.healthy and each.in_flight < each.slots, tried)  # 1
                or self._next(lambda each: each.healthy, tried)  # 2
                or self._next(lambda each: True, tried)  # 3
            )
            if chosen:
                chosen.in_flight += 1
                chosen.requests += 1
            return chosen  # 4

    def finished(self, backend: Backend) -> None:
        """A request has left the backend."""
        with self._lock:
            backend.in_flight -= 1

    def answered(self, backend: Backend, seconds: float) -> None:
        """A backend has sent the first byte of an answer after so many seconds."""
        with self._lock:
            old = backend.response_time
            backend.response_time = old * 0.8 + seconds * 0.2 if old else seconds

    def failed(self, backend: Backend, why: str) -> None:
        """A request did not get through: the backend is suspect, and is probed at once."""
        with self._lock:
            backend.errors += 1
            self._down(backend, why)
            backend.next_probe = 0.0
            self._probe_due.notify_all()

    def due(self, patience: float) -> List[Backend]:
        """Wait at most `patience` seconds for a probe to become due, and take all backends that must be probed."""
        with self._lock:
            due = self._due()
            if not due:
                upcoming = [each.next_probe - self.clock() for each in self._backends if not each.probing]
                self._probe_due.wait(min(upcoming + [patience]))
                due = self._due()
            for each in due:
                each.probing = True
            return due

    def _due(self) -> List[Backend]:
        return [each for each in self._backends if not each.probing and each.next_probe <= self.clock()]

    def probed(self, backend: Backend, healthy: bool, why: str, facts: Dict[str, Any], interval: float) -> bool:
        """Note a probe's outcome and when the next one is due. Returns whether the backend has come up."""
        with self._lock:
            came_up = healthy and not backend.healthy
            backend.probing = False
            backend.last_check = time.time()
            if healthy:
                self._up(backend, facts)
                backend.next_probe = self.clock() + interval
            else:
                self._down(backend, why)
                backend.seen = backend.seen or facts.get("status") == "loading"
                backend.next_probe = self.clock() + backend.retry_delay
                backend.retry_delay = min(backend.retry_delay * BACK_OFF, SLOWEST_RETRY)
            self._probe_due.notify_all()
            return came_up

    def any_healthy(self, timeout: float = 0.0) -> bool:
        """Whether a backend is up, or comes up within `timeout` seconds."""
        with self._lock:
            return self._came_up.wait_for(lambda: any(each.healthy for each in self._backends), timeout)

    def may_recover(self) -> bool:
        """Whether it is worth waiting: a backend was up before, or is loading."""
        with self._lock:
            return any(each.seen for each in self._backends)

    def healthy_urls(self) -> List[str]:
        """Return the URLs of the backends that are up."""
        with self._lock:
            return [each.url for each in self._backends if each.healthy]

    def describe(self) -> List[Dict[str, Any]]:
        """Return what /status says of each backend."""
        with self._lock:
            return [each.describe() for each in self._backends]

    def _next(self, fits: Callable[[Backend], bool], tried: Set[Backend]) -> Optional[Backend]:
        for step in range(len(self._backends)):
            index = (self._cursor + step) % len(self._backends)
            backend = self._backends[index]
            if backend not in tried and fits(backend):
                self._cursor = (index + 1) % len(self._backends)
                return backend
        return None

    def _up(self, backend: Backend, facts: Dict[str, Any]) -> None:
        backend.healthy = backend.seen = True
        self._came_up.notify_all()
        backend.why = "ok"
        backend.retry_delay = FIRST_RETRY
        slots = facts.get("slots")
        backend.slots = slots if isinstance(slots, int) and slots > 0 else 1
        backend.model = facts.get("model")

    def _down(self, backend: Backend, why: str) -> None:
        if backend.healthy:
            log.warning("🔴 %s is down: %s", backend.url, why)
        backend.healthy = False
        backend.why = why


class Health:
    """The thread that probes each backend: at its interval while it is up, every second, backing off, while not.

    Each probe runs in a thread of its own, so that one that hangs delays no other.
    """

    def __init__(self, pool: Pool, client: Client, config: Config, on_up: Callable[[str], None]):
        self._pool = pool
        self._on_up = on_up
        self._client = client
        self._config = config
        self._stopped = False

    def start(self) -> None:
        """Start probing; the first probes go out at once."""
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def stop(self) -> None:
        """Send no more probes."""
        self._stopped = True

    def _run(self) -> None:
        while not self._stopped:
            for backend in self._pool.due(patience=1.0):
                threading.Thread(target=self._probe, args=(backend,), name="probe", daemon=True).start()

    def _probe(self, backend: Backend) -> None:
        healthy, why = False, "the probe failed"
        facts: Dict[str, Any] = {}
        try:
            healthy, why, facts = self._ask(backend.url)
        except (Unreachable, Broken, Slow) as error:
            why = str(error)
        finally:
            if self._pool.probed(backend, healthy, why, facts, self._config.health_interval):
                self._on_up(backend.url)

    def _ask(self, url: str) -> Tuple[bool, str, Dict[str, Any]]:
        """Ask GET /health. Any server counts as up that answers something else than a 5xx."""
        answer = self._client.open(url + "/health", timeout=self._config.health_timeout)
        facts = _object(answer.read_and_close())
        healthy = answer.status < 500
        return healthy, "ok" if healthy else _reason(answer.status, facts), facts


def _object(body: bytes) -> Dict[str, Any]:
    """Return a JSON object, or an empty one for anything else."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _reason(status: int, facts: Dict[str, Any]) -> str:
    """Return what a /health answer says is wrong."""
    error = facts.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or facts.get("status") or "status %d" % status)


# -------------------------------------------------------------------------------------------- the balancer

_HOP_BY_HOP = frozenset(
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"]
)  # fmt: skip
_NOT_SENT_ON = _HOP_BY_HOP | {"host", "content-length", "expect"}
_OURS = _HOP_BY_HOP | {"content-length", "content-type", "server", "date", "x-request-id"}  # the service writes these
_HELD = 16 << 20  # bytes of an answer of known length that are held back, so that a broken one can be asked for again


class Balancer:
    """One address in front of several model servers.

    start() binds (OSError where the port is taken) and begins to probe; stop() lets running requests finish. `on_up` is
    told the URL of each backend that comes up, in a thread of the balancer's.
    """

    def __init__(self, config: Config = Config(), on_up: Callable[[str], None] = lambda url: None):
        self.config = config
        self.pool = Pool(config.urls())
        self._client = Client(config.connect_timeout)
        self._health = Health(self.pool, self._client, config, on_up)
        self.service = service.Service(config, self._routes(), fallback=self.relay)
        self._count = _Metrics(self.service.metrics, self.pool)

    def start(self) -> "Balancer":
        """Bind, serve and probe in background threads. Raises OSError."""
        self.service.start()
        self._health.start()
        return self

    def stop(self, timeout: Optional[float] = None) -> int:
        """Stop; running requests get `timeout` seconds (default drain_timeout). Returns how many were cut off."""
        cut = self.service.drain(self.config.drain_timeout if timeout is None else timeout)
        self._health.stop()
        self._client.close()
        return cut

    @property
    def url(self) -> str:
        """The address a client on this machine calls."""
        return self.service.url

    # ---- its own routes; every other path goes to a backend

    def _routes(self) -> List[Route]:
        return [
            Route("GET", "/", self.root),
            Route("GET", "/health", self.health, public=True),
            Route("GET", "/status", lambda request: json_reply(self.status())),
            Route("GET", "/models", self.models),
            Route("GET", "/metrics", lambda request: self.service.metrics_page(request)),
        ]

    def root(self, request: Request) -> Reply:
        """GET /: who this is, and its state."""
        return json_reply({"message": "ComeAPI Load Balancer", "status": self.status()})

    def health(self, request: Request) -> Reply:
        """GET /health: 200 while at least one backend is up."""
        if self.pool.any_healthy():
            return json_reply({"status": "ok"})
        error = APIError(503, "No backend is up.", "no_backend", headers=[("Retry-After", "1")])
        return service.error_reply(error)

    def status(self) -> Dict[str, Any]:
        """Return the state of all backends."""
        backends = self.pool.describe()
        return {
            "total_backends": len(backends),
            "healthy_backends": sum(each["healthy"] for each in backends),
            "backends": backends,
        }

    def models(self, request: Request) -> Reply:
        """GET /models: the union over the backends that are up."""
        every: Dict[str, Dict[str, Any]] = {}
        urls = self.pool.healthy_urls()
        for url in urls:
            for model in self._models_of(url, request):
                known = every.setdefault(str(model.get("name")), dict(model, backends=[]))
                known["backends"].append(url)
                known["loaded"] = bool(known.get("loaded") or model.get("loaded"))
        if not urls:
            raise self._nobody()
        return json_reply({"models": [every[name] for name in sorted(every)]})

    def _models_of(self, url: str, request: Request) -> List[Dict[str, Any]]:
        try:
            answer = self._client.open(url + "/models", headers=_sent_on(request), timeout=self.config.health_timeout)
            models = _object(answer.read_and_close()).get("models")
        except (Unreachable, Broken, Slow):
            return []  # the next probe will say so
        return [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []

    # ---- relaying

    def relay(self, request: Request) -> Any:
        """Send a request to a backend and its answer to the client; the module's docstring has the table of retries."""
        tried: Set[Backend] = set()
        broken = 0
        failure: Any = None  # what the client gets when nobody is left
        deadline = self.pool.clock() + self.config.queue_timeout
        while True:
            backend = self.pool.choose(tried)
            if backend is None:
                if self._wait_for_backend(request, failure, deadline):  # 7
                    tried.clear()
                    continue
                return failure or service.error_reply(self._nobody())
            tried.add(backend)
            try:
                reply = self._attempt(backend, request)
            except Unreachable as error:  # 1
                self.pool.failed(backend, str(error))
            except Broken as error:  # 4
                self.pool.failed(backend, str(error))
                broken += 1
                if broken > self.config.retries:
                    raise APIError(502, "%d backends broke off while answering." % broken, "backend_broke")
                self._count.retries.inc("broken")
            except Slow as error:  # 5
                raise APIError(504, "The backend %s is too slow: %s." % (backend.url, error), "backend_slow")
            else:
                if reply.status not in (502, 503):
                    return reply
                failure = reply  # 3
                self._count.retries.inc(str(reply.status))

    def _wait_for_backend(self, request: Request, failure: Any, deadline: float) -> bool:
        """Wait for a backend to be up; False where there is no hope or no time left. Raises HangUp."""
        hope = self.config.child or self.pool.may_recover()  # a parent starts what has died again
        while failure is None and hope and not self.service.draining:
            left = deadline - self.pool.clock()
            if left <= 0:
                return False
            if self.pool.any_healthy(min(left, 0.25)):
                return True
            if request.hung_up():
                raise HangUp("the client closed the connection")
        return False

    def _attempt(self, backend: Backend, request: Request) -> Any:
        """Send the request to one backend and return the reply. Raises Unreachable, Broken, Slow, HangUp.

        Nothing goes to the client before the first piece of the body is here, or all of it where its length is known.
        """
        started = self.pool.clock()
        answer: Optional[Answer] = None
        try:
            answer = self._client.open(
                backend.url + request.target,
                request.method,
                _sent_on(request),
                request.body if request.body or request.method in ("POST", "PUT", "PATCH") else None,
                self.config.timeout,
                request.wire.wait_for,
            )
            reply = self._reply(backend, answer)
            self.pool.answered(backend, self.pool.clock() - started)
            return reply
        except BaseException:
            if answer:
                answer.close()
            self.pool.finished(backend)
            raise

    def _reply(self, backend: Backend, answer: Answer) -> Any:
        """Return a whole answer as a Reply; one of unknown or great length as a Stream that gives the backend back."""
        headers = [pair for pair in answer.headers if not _is_ours(pair[0])]
        headers.append(("X-ComeAPI-Backend", backend.url))
        kind = answer.header("content-type")
        if answer.status in (502, 503) or (answer.length is not None and answer.length <= _HELD):
            body = answer.read_and_close()
            self.pool.finished(backend)
            return Reply(body, answer.status, kind, headers)
        relay = _Relay(answer, lambda: self.pool.finished(backend), lambda why: self.pool.failed(backend, why))
        if not kind.startswith(service.EVENT_STREAM):
            return Stream(relay, answer.status, kind, headers)
        if not answer.header("x-accel-buffering"):
            headers.append(("X-Accel-Buffering", "no"))
        return Stream(relay, answer.status, kind, headers, error_chunk=service.error_event)

    def _nobody(self) -> APIError:
        states = "; ".join("%s: %s" % (each["url"], each["why"]) for each in self.pool.describe())
        return APIError(503, "No backend is up. %s" % states, "no_backend", headers=[("Retry-After", "1")])


class _Relay:
    """A backend's answer as a service.Stream's chunks: the first piece is read at once, the others when due."""

    def __init__(self, answer: Answer, finished: Callable[[], None], failed: Callable[[str], None]):
        self._answer = answer
        self._finished = finished
        self._failed = failed
        self._pieces = answer.pieces()
        self._first: Optional[bytes] = next(self._pieces, b"")

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return next(self._pieces)
        except Broken as error:  # 6
            self._failed(str(error))
            raise APIError(502, "The backend broke off in the middle of its answer: %s." % error, "backend_broke")
        except Slow as error:
            raise APIError(504, "The backend stopped in the middle of its answer: %s." % error, "backend_slow")

    def close(self) -> None:
        """Give the backend back; where its answer is not at its end, it sees the connection close and stops."""
        finished, self._finished = self._finished, lambda: None
        self._answer.close()
        finished()


def _sent_on(request: Request) -> Dict[str, str]:
    """Return the headers that a backend gets of a request."""
    headers = {name: value for name, value in request.headers.items() if name not in _NOT_SENT_ON}
    for option in request.headers.get("connection", "").split(","):
        headers.pop(option.strip().lower(), None)
    before = headers.get("x-forwarded-for")
    headers["x-forwarded-for"] = before + ", " + request.peer if before else request.peer
    headers["x-forwarded-proto"] = "http"
    headers["x-forwarded-host"] = request.headers.get("host", "")
    headers["x-request-id"] = request.id
    return headers


def _is_ours(name: str) -> bool:
    return name.lower() in _OURS or name.lower().startswith("access-control-")


class _Metrics:
    """What the balancer counts beside its own HTTP."""

    def __init__(self, metrics: service.Metrics, pool: Pool):
        self.retries = metrics.counter("comeapi_retries_total", "Requests sent to another backend.", "why")
        self._up = metrics.gauge("comeapi_backend_up", "Whether a backend is up.", "backend")
        self._in_flight = metrics.gauge("comeapi_backend_requests_in_flight", "Requests at a backend.", "backend")
        self._requests = metrics.counter("comeapi_backend_requests_total", "Requests sent to a backend.", "backend")
        self._errors = metrics.counter("comeapi_backend_errors_total", "Requests that did not get through.", "backend")
        self._pool = pool
        metrics.collect(self._collect)

    def _collect(self) -> None:
        for each in self._pool.describe():
            self._up.set(each["healthy"], each["url"])
            self._in_flight.set(each["in_flight"], each["url"])
            self._requests.set(each["requests"], each["url"])
            self._errors.set(each["error_count"], each["url"])


# --------------------------------------------------------------------------------------------- the program

POSITIONAL = ("backend_host", "base_port", "backends", "host", "port")


def main() -> None:
    """Run a balancer until a signal, or the end of its parent."""
    process.prepare_terminal()
    config = options.parse(Config, __doc__, POSITIONAL)
    process.warn_if_open(config)
    announce = process.Announcer(config.child)
    balancer = Balancer(config, lambda url: announce("up", "🟢 %s is up" % url, url=url))
    try:
        balancer.start()
    except OSError as error:
        options.fail("can't listen on %s port %d: %s" % (config.host, config.port, error.strerror or error))
    announce(
        "listening",
        "⚖️  %s in front of %s" % (balancer.url, ", ".join(config.urls())),
        url=balancer.url,
        pid=os.getpid(),
    )
    process.wait_for_stop(config.child)
    announce("stopping", "stopping: running requests get %g s to finish" % config.drain_timeout)
    cut = balancer.stop()
    if cut:
        sys.stderr.write("%d requests were cut off\n" % cut)


if __name__ == "__main__":
    main()

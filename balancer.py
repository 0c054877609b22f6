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

    Balancer.relay ── Pool.request ── Client.open ── Relay ──> client
          ▲               │ one lock, no I/O under it; all full: the queue
          └─ another one ◄── unreachable; broken off, or 502/503, before a byte went to the client

    core/asking.py     what a request asks for            core/pool.py      the backends, and the numbered choice
    core/queueing.py   the queue, fair between clients    core/policies.py  round-robin, least-busy, prefix
    core/vitals.py     when a backend may be used         core/health.py    the thread that probes them
    core/upstream.py   urllib, with kept connections      core/relaying.py  headers, and answers piece by piece
    core/watching.py   how a request waits for a backend  core/facts.py     what is believed of what backends tell

Retries. The client never sees these; it gets its answer later, or the last failure:

    1  no connection                      → another backend; this one is suspect
    2  a kept-alive connection was stale  → the same backend on a new connection, once (core/upstream.py)
    3  502 or 503                         → another backend, while the budget lasts; this one is full, not dead
    4  broken off, or down, before a byte went on to the client → another backend; this one is suspect
    5  no byte in time                    → 504; it may still be at work, so nobody else is asked
    6  broken off after a byte was sent   → the stream ends with an error event; other answers are cut off
    7  no backend left, but one was up before, is loading, or has a parent → wait for it, `recovery_timeout` at most

Another backend is never one that this request was sent to, unless it has come up again since (7). Rows 3 and 4 happen
`retries` times at most, together. Whatever else a backend answers goes to the client as it is.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from core import access, asking, descriptors, loops, options, process, service
from core.admin import Admin
from core.asking import Wish
from core.discovery import Discovery, parse_target
from core.errors import APIError, HangUp, shown
from core.health import Health
from core.metrics import Metrics
from core.policies import POLICIES
from core.pool import Backend, Pool, Spec, Ticket, parse_spec, specs_in_file
from core.queueing import Full
from core.relaying import REFUSED, Relay, RetryBudget, held, passed_back, sent_on
from core.service import Reply, Request, Route, Stream, between, json_reply, setting
from core.settings import ChildSettings, RelaySettings
from core.upstream import Answer, Broken, Client, Slow, Unreachable
from core.watching import Watch

log = logging.getLogger("comeapi.balancer")


@dataclass(frozen=True)
class Config(service.Config, RelaySettings, ChildSettings):
    """A balancer's settings. `backend` names each; where it is empty, host, first port and number do."""

    port: int = setting(9000, "port to listen on; 0 picks a free one", "network", check=between(0, 65535))
    backend: Tuple[str, ...] = setting(
        (),
        "a backend's URL, or URL,slots=8,weight=2; repeatable; in place of host, port and number",
        "backends",
        many=True,
        check=lambda text: str(parse_spec(text)),
        metavar="URL",
    )
    backend_host: str = setting("127.0.0.1", "the backends' host", "backends")
    base_port: int = setting(8080, "the first backend's port; the others follow", "backends", check=between(1, 65535))
    backends: int = setting(
        5, "number of backends; 0 where they register themselves", "backends", flags=("-n",), check=between(0, 1000)
    )
    backends_file: str = setting(
        "", "file with a backend a line, as after --backend; read again at SIGHUP", "backends", metavar="FILE"
    )
    discover: Tuple[str, ...] = setting(
        (),
        "find backends by a DNS name, dns://NAME:PORT or dns+srv://NAME (?resolver=IP:PORT, ?scheme=https); repeatable",
        "backends",
        many=True,
        check=lambda text: parse_target(text).text,
        metavar="URL",
    )
    discover_interval: float = setting(
        5.0, "seconds between two look-ups of --discover", "backends", check=between(0.05, 3600, float)
    )
    backend_ca: str = setting(
        "", "certificates in PEM to check https backends by, in place of the system's", "backends", metavar="FILE"
    )
    admin_key: Tuple[str, ...] = setting(
        (), "key for /admin/backends, which is off without one, or @FILE; repeatable", "access", many=True, secret=True,
        check=access.check_key, metavar="KEY",
    )  # fmt: skip

    def specs(self) -> Tuple[Spec, ...]:
        """Return the backends as the options name them."""
        if self.backends_file or self.discover:
            return tuple(parse_spec(text) for text in self.backend)
        numbered = tuple(service.http_url(self.backend_host, self.base_port + i) for i in range(self.backends))
        return tuple(parse_spec(text) for text in self.backend or numbered)


# -------------------------------------------------------------------------------------------- the balancer

_TICK = 0.25  # seconds between two looks whether a client that waits is still there
_BROKE = "broken"


class Balancer:
    """One address in front of several model servers.

    start() binds (OSError where the port is taken) and begins to probe; stop() lets running requests finish. `on_up` is
    told the URL of each backend that comes up, in a thread of the balancer's.
    """

    def __init__(self, config: Config = Config(), on_up: Callable[[str], None] = lambda url: None):
        self.config = config
        self.pool = Pool(config.specs(), POLICIES[config.policy](), config.queue_size, config.slow_start)
        self._discovery = Discovery(
            self.pool, [parse_target(text) for text in config.discover], config.discover_interval
        )
        self._aliases = dict(each.split("=", 1) for each in config.alias)
        self._client = Client(config.connect_timeout, config.backend_ca)
        key = config.api_key[0] if config.api_key else ""
        self._health = Health(self.pool, self._client, config.health_interval, config.health_timeout, key, on_up)
        self.loops = [self._health.loop]  # of this program: /health tells of them
        self.loops += [self._discovery.loop] if config.discover else []
        self._budget = RetryBudget(config.retry_budget)
        self._refreshed = float("-inf")  # when the backends were asked for their models last, for a request
        self.service = service.Service(config, self._routes(), self.relay, keys=config.admin_key, descriptors=2)
        self._count = _Metrics(self.service.metrics, self.pool)

    def start(self) -> "Balancer":
        """Bind, serve and probe in background threads. Raises OSError, and ValueError for a bad backends_file."""
        self.reload()
        self.service.start()
        self._discovery.start()
        self._health.start()
        return self

    def reload(self) -> None:
        """Read the backends_file again: what is new is added, what is gone is drained. Raises OSError, ValueError."""
        if self.config.backends_file:
            self.pool.replace(specs_in_file(self.config.backends_file), self.config.backends_file)

    def stop(self, timeout: Optional[float] = None) -> int:
        """Stop; running requests get `timeout` seconds (default drain_timeout). Returns how many were cut off."""
        cut = self.service.drain(self.config.drain_timeout if timeout is None else timeout)
        self._discovery.stop()
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
            Route("GET", "/v1/models", self.openai_models),
            Route("GET", "/v1/models/{name}", self.openai_model),
            Route("GET", "/metrics", lambda request: self.service.metrics_page(request)),
        ] + Admin(self.pool, self.config.admin_key).routes()

    def root(self, request: Request) -> Reply:
        """GET /: who this is, and its state."""
        return json_reply({"message": "ComeAPI Load Balancer", "status": self.status()})

    def health(self, request: Request) -> Reply:
        """GET /health: 200 while at least one backend is up, and the thread that probes them runs."""
        told = {"loops": loops.describe(self.loops)}
        if self._health.loop.late():
            error = APIError(503, "The thread that probes the backends does not run.", "health_late")
        elif self.pool.any_up():
            return json_reply(dict(told, status="ok"))
        else:
            error = APIError(503, "No backend is up.", "no_backend", headers=[("Retry-After", "1")])
        return json_reply(dict(error.envelope(), **told), 503, error.headers)

    def status(self) -> Dict[str, Any]:
        """Return the state of all backends, and of the queue."""
        backends = self.pool.describe()
        return {
            "total_backends": len(backends),
            "healthy_backends": sum(each["healthy"] for each in backends),
            "queued": self.pool.queued(),
            "policy": self.config.policy,
            "backends": backends,
        }

    # ---- models

    def models(self, request: Request) -> Reply:
        """GET /models: the union over the backends that are up, and the aliases."""
        self._refresh(request)
        if not self.pool.any_up():
            raise self._nobody()
        return json_reply({"models": list(self._known_models().values())})

    def openai_models(self, request: Request) -> Reply:
        """GET /v1/models: the same as a list in OpenAI's form."""
        self._refresh(request)
        if not self.pool.any_up():
            raise self._nobody()
        return json_reply({"object": "list", "data": [_openai_model(each) for each in self._known_models().values()]})

    def openai_model(self, request: Request) -> Reply:
        """GET /v1/models/{name}: one of them."""
        self._refresh(request)
        wanted = asking.plain_name(request.params["name"])
        for name, model in self._known_models().items():
            if asking.plain_name(name) == wanted:
                return json_reply(_openai_model(model))
        raise self._unknown_model(request.params["name"])

    def _known_models(self) -> Dict[str, Dict[str, Any]]:
        known = self.pool.models()
        for alias, name in self._aliases.items():
            target = known.get(name) or known.get(name + ".gguf")
            if target:
                known[alias] = dict(target, name=alias, alias_of=target["name"])
        return known

    def _refresh(self, request: Request) -> None:
        """Ask all backends that are up for their models, all at once, as this client."""
        self._refreshed = self.pool.clock()
        headers = sent_on(request)
        asked = [
            threading.Thread(target=self._ask_for_models, args=(backend, headers), name="probe", daemon=True)
            for backend in self.pool.everyone()
            if backend.vitals.up
        ]
        with contextlib.suppress(RuntimeError):  # no thread can be had: what the last probes have found out holds
            for each in asked:
                each.start()
        for each in asked:
            if each.is_alive():
                each.join(self.config.health_timeout)

    def _ask_for_models(self, backend: Backend, headers: Dict[str, str]) -> None:
        models = self._health.models_of(backend.url, headers)
        if models is not None:  # where it could not tell, what its last probe has found out holds
            self.pool.note_models(backend, models)

    def _unknown_model(self, name: str) -> APIError:
        known = ", ".join(self._known_models()) or "none"
        message = "There is no model '%s' here. There is: %s." % (shown(name), known)
        return APIError(404, message, "model_not_found", "model")

    # ---- what a request asks for

    def _wish(self, request: Request) -> Wish:
        """Return what a request asks for; an alias in its body gives way to the model's name. Raises APIError 404."""
        who = access.presented_key(request.headers) if self.config.api_key else request.peer
        if request.method in ("GET", "HEAD", "DELETE"):
            return Wish(who, works=False)
        fields = asking.read_body(request.body)
        model = asking.model_of(fields)
        if model in self._aliases:
            model = self._aliases[model]
            fields.update({field: model for field in asking.MODEL_FIELDS if field in fields})
            request.body = json.dumps(fields).encode("ascii")
        if model and not self._has(model, request):
            raise self._unknown_model(model)
        beginnings = asking.beginnings(fields) if self.config.policy == "prefix" else ()
        return Wish(who, model, beginnings=beginnings)

    def _has(self, model: str, request: Request) -> bool:
        """Whether there is such a model; before the answer is no, the backends are asked, at most once a second."""
        if self.pool.knows(model):
            return True
        if self.pool.clock() - self._refreshed > 1:
            self._refresh(request)
        return self.pool.knows(model)

    # ---- relaying

    def relay(self, request: Request) -> Any:
        """Send a request to a backend and its answer to the client; the module's docstring has the table of retries."""
        wish = self._wish(request)
        started = self.pool.clock()
        tried: Set[Backend] = set()
        failures = 0
        failure: Any = None  # what the client gets when nobody is left
        self._budget.earn()
        while True:
            ticket = self._admit(request, wish, tried, failure, started)
            if ticket is None:
                return failure or service.error_reply(self._nobody())
            backend = ticket.backend
            tried.add(backend)
            try:
                reply = self._attempt(ticket, request, ticket.since - started)
            except Unreachable as error:  # 1
                self.pool.failed(backend, str(error))
                continue
            except Broken as error:  # 4
                self.pool.failed(backend, str(error))
                why = _BROKE
            except Slow as error:  # 5
                self.pool.failed(backend, str(error), lost=False)
                raise APIError(504, "The backend %s is too slow: %s." % (backend.url, error), "backend_slow")
            else:
                if reply.status not in REFUSED:
                    return reply
                failure, why = reply, str(reply.status)  # 3
            failures += 1
            if failures > self.config.retries or (why != _BROKE and not self._budget.spend()):
                return service.error_reply(_broke(failures)) if why == _BROKE else failure
            self._count.retries.inc(why)

    def _admit(
        self, request: Request, wish: Wish, tried: Set[Backend], failure: Any, started: float
    ) -> Optional[Ticket]:
        """Return a ticket with a backend, after waiting for one where that may help, or None.

        Raises APIError 429 where too many wait already, 503 when it takes too long, HangUp when the client leaves.
        """
        hope = failure is None and not self.service.draining and (self.config.child or self.pool.hopeful())
        try:
            ticket = self.pool.request(wish, tried, hope, again=bool(tried))
        except Full:
            raise self._queue_full()
        if ticket.decided:
            try:
                self._wait(ticket, request, started)
            finally:
                self._count.queue_wait.observe(self.pool.clock() - started)
        return ticket if ticket.backend else None

    def _wait(self, ticket: Ticket, request: Request, started: float) -> None:
        """Wait in the queue until the ticket has a backend."""
        while not ticket.decided.wait(_TICK):
            gone = request.hung_up()
            error = HangUp("the client closed the connection") if gone else self._overdue(ticket, started)
            if error and (self.pool.leave(ticket) or gone):
                self.pool.release(ticket)  # it may have been given a backend at the last moment
                raise error
        if ticket.displaced:
            raise self._queue_full()

    def _overdue(self, ticket: Ticket, started: float) -> Optional[APIError]:
        """Return the error of a request that has waited too long, or None."""
        waited = self.pool.clock() - started
        stranded = min(waited, self.pool.stranded(ticket))
        if stranded and (stranded >= self.config.recovery_timeout or self.service.draining):
            return self._nobody()
        if waited >= self.config.queue_timeout and not stranded:
            return self._too_busy(503, "No slot has become free in %g s." % self.config.queue_timeout, "queue_timeout")
        return None

    def _queue_full(self) -> APIError:
        return self._too_busy(429, "%d requests wait for a slot already." % self.pool.queued(), "queue_full")

    def _too_busy(self, status: int, message: str, code: str) -> APIError:
        after = self.pool.retry_after()
        return APIError(status, message, code, type="overloaded_error", headers=[("Retry-After", str(after))])

    def _attempt(self, ticket: Ticket, request: Request, waited: float) -> Any:
        """Send the request to one backend and return the reply. Raises Unreachable, Broken, Slow, HangUp.

        Nothing goes to the client before the first piece of the body is here, or all of it where its length is known.
        """
        backend = ticket.backend
        answer: Optional[Answer] = None
        try:
            answer = self._client.open(
                backend.url + request.target,
                request.method,
                sent_on(request),
                request.body if request.body or request.method in ("POST", "PUT", "PATCH") else None,
                self.config.timeout,
                Watch(self.pool, backend, request),
            )
            reply = self._reply(ticket, answer, waited)
            seconds = self.pool.clock() - ticket.since
            self.pool.answered(backend, seconds, answer.status)
            self._count.first_byte.observe(seconds)
            return reply
        except BaseException:
            if answer:
                answer.close()
            self.pool.release(ticket)
            raise

    def _reply(self, ticket: Ticket, answer: Answer, waited: float) -> Any:
        """Return a whole answer as a Reply; one of unknown or great length as a Stream that gives the backend back."""
        backend = ticket.backend
        headers = passed_back(answer)
        headers.append(("X-ComeAPI-Backend", backend.url))
        headers.append(("X-ComeAPI-Queue-Ms", "%d" % (waited * 1000)))
        kind = answer.header("content-type")
        whole = held(answer, headers, self.config.timeout)
        if whole:
            self.pool.release(ticket)
            return whole
        relay = Relay(answer, lambda: self._ended(ticket), lambda why, lost: self.pool.failed(backend, why, lost))
        self._count.streams(1)
        if not kind.startswith(service.EVENT_STREAM):
            return Stream(relay, answer.status, kind, headers)
        if not answer.header("x-accel-buffering"):
            headers.append(("X-Accel-Buffering", "no"))
        return Stream(relay, answer.status, kind, headers, error_chunk=service.error_event)

    def _ended(self, ticket: Ticket) -> None:
        self.pool.release(ticket)
        self._count.streams(-1)

    def _nobody(self) -> APIError:
        states = "; ".join("%s: %s" % (each["url"], each["why"]) for each in self.pool.describe())
        return APIError(503, "No backend is up. %s" % states, "no_backend", headers=[("Retry-After", "1")])


def _broke(backends: int) -> APIError:
    return APIError(502, "%d backends broke off while answering." % backends, "backend_broke")


def _openai_model(model: Dict[str, Any]) -> Dict[str, Any]:
    """Return a model as OpenAI's list has it, with what else is known of it."""
    known = {"id": model["name"], "object": "model", "created": 0, "owned_by": "comeapi"}
    return dict(known, **{key: value for key, value in model.items() if key not in ("name", "object")})


class _Metrics:
    """What the balancer counts beside its own HTTP."""

    def __init__(self, metrics: Metrics, pool: Pool):
        self.retries = metrics.counter("comeapi_retries_total", "Requests sent to another backend.", "why")
        self.queue_wait = metrics.histogram(
            "comeapi_queue_wait_seconds", "How long those requests waited that had to wait for a slot."
        )
        self.first_byte = metrics.histogram(
            "comeapi_first_byte_seconds", "From sending a request to a backend to its answer's first byte."
        )
        self._queued = metrics.gauge("comeapi_queued_requests", "Requests that wait for a slot.")
        self._streams = metrics.gauge("comeapi_streams_open", "Answers that are being relayed piece by piece.")
        self._hits = metrics.counter("comeapi_affinity_hits_total", "Requests sent where their beginning was seen.")
        self._state = metrics.gauge(
            "comeapi_backend_state", "1 for the state that a backend is in.", "backend", "state"
        )
        self._backends = {
            "healthy": metrics.gauge("comeapi_backend_up", "Whether a backend is up.", "backend"),
            "in_flight": metrics.gauge("comeapi_backend_requests_in_flight", "Slots in use at a backend.", "backend"),
            "capacity": metrics.gauge("comeapi_backend_capacity", "Slots of a backend.", "backend"),
            "requests": metrics.counter("comeapi_backend_requests_total", "Requests sent to a backend.", "backend"),
            "error_count": metrics.counter(
                "comeapi_backend_errors_total", "Requests that did not get through.", "backend"
            ),
            "ejections": metrics.counter(
                "comeapi_backend_ejections_total", "How often a backend was left out since its requests failed.",
                "backend",
            ),
        }  # fmt: skip
        self._pool = pool
        metrics.collect(self._collect)

    def streams(self, change: int) -> None:
        """Count a stream in or out."""
        self._streams.inc(by=change)

    def _collect(self) -> None:
        self._queued.set(self._pool.queued())
        self._hits.set(getattr(self._pool.policy, "hits", 0))
        backends = self._pool.describe()
        self._state.clear()
        for field, metric in self._backends.items():
            metric.clear()  # of backends that have left
            for each in backends:
                metric.set(each[field], each["url"])
        for each in backends:
            self._state.set(1, each["url"], each["state"])


# --------------------------------------------------------------------------------------------- the program

_RELOAD_SECONDS = 5.0  # between two beats of the thread that waits for SIGHUP
POSITIONAL = ("backend_host", "base_port", "backends", "host", "port")


def main() -> None:
    """Run a balancer until a signal, or the end of its parent."""
    process.prepare_terminal()
    descriptors.raise_limit()
    _prepare_for_many_threads()
    config = options.parse(Config, __doc__, POSITIONAL)
    process.warn_if_open(config)
    announce = process.Announcer(config.child)
    process.Pulse(announce).start()
    balancer = Balancer(config, lambda url: announce("up", "🟢 %s is up" % url, url=url))
    _reload_at_hangup(balancer)
    try:
        balancer.reload()
    except (OSError, ValueError) as error:
        options.fail("the backends file %s can't be read: %s" % (config.backends_file, error), 2)
    try:
        balancer.start()
    except OSError as error:
        options.fail("can't listen on %s port %d: %s" % (config.host, config.port, error.strerror or error))
    announce(
        "listening",
        "⚖️  %s in front of %s" % (balancer.url, _named(balancer)),
        url=balancer.url,
        pid=os.getpid(),
    )
    process.wait_for_stop(config.child)
    announce("stopping", "stopping: running requests get %g s to finish" % config.drain_timeout)
    cut = balancer.stop()
    if cut:
        sys.stderr.write("%d requests were cut off\n" % cut)


def _prepare_for_many_threads() -> None:
    """Give threads small stacks, since there may be thousands; who embeds a Balancer decides that himself."""
    if sys.version_info < (3, 12):  # from then on, parsing deeply nested JSON takes whole megabytes
        threading.stack_size(512 << 10)


def _named(balancer: Balancer) -> str:
    """Return what the balancer stands in front of, in words."""
    urls = [each["url"] for each in balancer.pool.describe()] + list(balancer.config.discover)
    return ", ".join(urls) or "no backend yet"


def _reload_at_hangup(balancer: Balancer) -> None:
    """Read the backends file again at each SIGHUP; the handler only enqueues."""
    if not balancer.config.backends_file or not hasattr(signal, "SIGHUP"):
        return
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def reload() -> None:
        try:
            asked.get(timeout=_RELOAD_SECONDS)
            balancer.reload()
            log.info("🔁 %s read again: %s", balancer.config.backends_file, _named(balancer))
        except queue.Empty:
            pass
        except (OSError, ValueError) as error:
            log.warning("%s can't be read, nothing changes: %s", balancer.config.backends_file, error)

    signal.signal(signal.SIGHUP, lambda number, _frame: asked.put(number))
    balancer.loops.append(loops.Loop("reload", _RELOAD_SECONDS, reload, pauses=False, log=log).start())


if __name__ == "__main__":
    main()

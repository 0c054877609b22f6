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

    Balancer.relay ── what it asks for ── Forwarder.forward ── a backend ── Reply | Stream
                                              the table of retries

core/balancing/ has all the parts; its __init__.py is their map. core/http/client.py calls the backends: urllib, with
kept connections.
"""

import json
import logging
import os
import queue
import secrets
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

from core import hardware, loops, options, process
from core.balancing.admin import Admin, is_admin_path
from core.balancing.adoption import Adoption
from core.balancing.catalogue import Catalogue
from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.discovery import Discovery, parse_target
from core.balancing.feed import Feed
from core.balancing.forwarding import Forwarder, Response
from core.balancing.health import Health
from core.balancing.keeping import connect
from core.balancing.membership import Membership
from core.balancing.ollama import OllamaLists
from core.balancing.openapi import ABOUT, OPERATIONS
from core.balancing.policies import POLICIES
from core.balancing.pool import Pool
from core.balancing.probing import Probing
from core.balancing.registration import INTERVAL
from core.balancing.request import MODEL_FIELDS, Wish, beginnings, head_of, model_of, only_name, read_body
from core.balancing.settings import RelaySettings
from core.balancing.specs import Spec, checked_key, parse_spec, specs_in_file
from core.cookie import shared_secret
from core.errors import APIError, shown
from core.http import access, descriptors, server
from core.http.client import Client
from core.http.listening import activated
from core.http.messages import Reply, Request, http_url, json_reply
from core.http.openapi import described
from core.http.resuming import Resumer
from core.http.routing import Route
from core.http.tls import ClientTLS
from core.options import between, setting
from core.page import files as page
from core.settings import CarrySettings, ChildSettings, grace_setting
from core.version import VERSION

log = logging.getLogger("comeapi.balancer")


def _named_well(text: str) -> str:
    """Check a backend as --backend names it. Raises ValueError."""
    parse_spec(text)
    return text


@dataclass(frozen=True)
class Config(server.ServerConfig, RelaySettings, ChildSettings, CarrySettings):
    """A balancer's settings. `backend` names the backends; where it is empty, host, first port and number do."""

    port: int = setting(9000, "port to listen on; 0 picks a free one", "network", check=between(0, 65535))
    backend: Tuple[str, ...] = setting(
        (),
        "a backend's URL, or URL,slots=8,weight=2,key=KEY,pass-key; repeatable; in place of host, port and number",
        "backends",
        many=True,
        check=_named_well,
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
        "", "certificates in PEM to check https backends by, in place of the system's", "backends", metavar="FILE",
        check=server.existing_file,
    )  # fmt: skip
    backend_cert: str = setting(
        "", "certificate chain in PEM to show https backends that ask for one", "backends", metavar="FILE",
        check=server.existing_file,
    )  # fmt: skip
    backend_cert_key: str = setting(
        "", "its private key, where that is in another file", "backends", metavar="FILE", check=server.existing_file
    )
    backend_cert_name: str = setting(
        "", "the name that https backends' certificates must have (default: the host of each one's URL)", "backends",
        metavar="NAME",
    )  # fmt: skip
    drain_grace: float = grace_setting(6.0)
    backend_key: str = setting(
        "", "the key that backends are shown, by probes and requests, or @FILE; clients' keys stay here", "access",
        secret=True, check=access.check_key, metavar="KEY",
    )  # fmt: skip
    admin_key: Tuple[str, ...] = setting(
        (), "key for /admin/backends, which is off without one, or @FILE; repeatable", "access", many=True, secret=True,
        check=access.check_key, metavar="KEY",
    )  # fmt: skip

    holder_fd: int = setting(
        -1, "number of a socket to the program that starts this one and keeps its clients' connections; -1 for none",
        "other", check=between(-1, 1 << 20),
    )  # fmt: skip

    def specs(self) -> Tuple[Spec, ...]:
        """Return the backends as the options name them."""
        if self.backends_file or self.discover:
            return tuple(parse_spec(text) for text in self.backend)
        numbered = tuple(http_url(self.backend_host, self.base_port + i) for i in range(self.backends))
        return tuple(parse_spec(text) for text in self.backend or numbered)


def _check_keys(config: Config) -> None:
    """Raise ValueError where one key would have two uses, or can't be sent in a header."""
    checked_key(config.backend_key)
    admin = set(config.admin_key)
    if admin & set(config.api_key):
        raise ValueError("a key can't be both an API key and an admin key: every client could change the backends")
    if admin & ({config.backend_key} | {spec.key for spec in config.specs()}):
        raise ValueError("a backend can't be shown the admin key: it could change the other backends")


# -------------------------------------------------------------------------------------------- the balancer

_KNOWN_SECONDS = 2.0  # that a request waits, after the start, until something is known of the backends


class Balancer:
    """One address in front of several model servers.

    start() binds (OSError where the port is taken) and begins to probe; stop() lets running requests finish. `on_up` is
    called with the URL of each backend that comes up, in a thread of the balancer's. `restart()` asks whoever has
    started the backends to restart them; None where nobody can. Raises ValueError where a key has two uses, or a
    backend's name is not valid, OSError where a certificate can't be used.
    """

    def __init__(
        self,
        config: Config = Config(),
        on_up: Callable[[str], None] = lambda url: None,
        restart: Optional[Callable[[], None]] = None,
    ):
        _check_keys(config)
        self.config = config
        self.pool = Pool(POLICIES[config.policy](), config.queue_size)
        if config.admin_key or config.discover:
            self.pool.expecting = self.pool.clock() + 2 * INTERVAL  # one that starts again knows no backend yet
        self._membership = Membership(self.pool, config.specs(), config.slow_start)
        targets = [parse_target(text) for text in config.discover]
        self._discovery = Discovery(self.pool, self._membership, targets, config.discover_interval)
        tls = ClientTLS(config.backend_ca, config.backend_cert, config.backend_cert_key, config.backend_cert_name)
        self._client = Client(config.connect_timeout, tls.load())
        credentials = Credentials(config.backend_key)
        name = secrets.token_hex(8)
        timeout = config.health_timeout
        self._probing = Probing(self.pool)
        self._health = Health(
            self._probing, self._membership, self._client, config.health_interval, timeout, credentials, on_up, name
        )
        self.loops = [self._health.loop]  # /health tells how they are
        self.loops += [self._discovery.loop] if config.discover else []
        self._admin = Admin(self.pool, self._membership, config.admin_key, restart)
        self._catalogue = Catalogue(self.pool, self._health, credentials, config.alias, timeout)
        self._ollama = OllamaLists(self.pool, self._health, credentials, config.alias, timeout)
        self._page = page.Page()
        self.service = server.Service(config, self._routes(), self.relay, keys=config.admin_key, descriptors=2)
        counts = Counts(self.service.metrics, self.pool)
        self._feed = Feed(self.pool, self._probing, counts, {"policy": config.policy})
        self.loops.append(self._feed.loop)
        self._keeper, self._orphans = connect(config.holder_fd)
        self._forwarder = Forwarder(
            config, self.pool, self._client, credentials, counts, lambda: self.service.draining,
            config.carry_secret or shared_secret(), self._keeper, name,
        )  # fmt: skip
        self._counts = counts

    def start(self) -> "Balancer":
        """Bind, serve and probe in background threads. Raises OSError, and ValueError for a bad backends_file."""
        self.reload()
        self.service.start()
        self._discovery.start()
        self._health.start()
        self._feed.start()
        self._adopt()
        return self

    def _adopt(self) -> None:
        """Go on with the answers that the balancer before this one had in hand when it died, if any."""
        if self._keeper:
            self._keeper.loop.start()
            resumer = Resumer(self.service)
            adoption = Adoption(self._keeper, self._forwarder, self.pool, self._counts, resumer)
            adoption.start(self._orphans, lambda: self._health.known.wait(_KNOWN_SECONDS))

    def reload(self) -> None:
        """Read the backends_file again: what is new is added, what is gone is drained. Raises OSError, ValueError."""
        if self.config.backends_file:
            self._membership.replace(specs_in_file(self.config.backends_file), self.config.backends_file)

    def stop(self, timeout: Optional[float] = None, grace: float = 0.0) -> int:
        """Stop; running requests get `timeout` seconds (default drain_timeout). Returns how many were cut off.

        For `grace` seconds before that, /health says 503, and everybody is still served.
        """
        if grace:
            self.service.leave(grace)
        self._feed.stop()  # what watches is no work to wait for
        cut = self.service.drain(self.config.drain_timeout if timeout is None else timeout)
        self._discovery.stop()
        self._health.stop()
        self._client.close()
        if self._keeper:
            self._keeper.close()
        return cut

    def manage(self, url: str, drain: Optional[bool]) -> Dict[str, Any]:
        """Drain a backend, or take it back; None: neither. Returns what /status says of it, nothing if it is unknown.

        `draining` in it is whether it is drained now.
        """
        if drain:
            self._membership.drain(url)
        elif drain is not None:
            self._membership.take_back(url)
        known: Dict[str, Any] = next((each for each in self.pool.describe() if each["url"] == url), {})
        return dict(known, draining=known["state"] == "draining") if known else {}

    @property
    def url(self) -> str:
        """The address a client on this machine calls."""
        return self.service.url

    # ---- its own routes; every other path goes to a backend

    def _routes(self) -> List[Route]:
        routes = [
            Route("GET", "/", self.root, keyless=page.wanted),
            Route("GET", "/events", lambda request: self._feed.events(request), counts=False),
            Route("GET", "/health", self.health, public=True),
            Route("GET", "/v1/health", self.health, public=True),
            Route("GET", "/live", self.live, public=True),
            Route("GET", "/status", lambda request: json_reply(self.status())),
            Route("GET", "/metrics", lambda request: self.service.metrics_page(request)),
        ] + self._page.routes() + self._catalogue.routes() + self._ollama.routes() + self._admin.routes()
        return described(ABOUT, routes, {**OPERATIONS, **page.operations()}, bool(self.config.api_key))

    def root(self, request: Request) -> Reply:
        """GET /: who this is, and its state; for a browser, the web page."""
        if page.wanted(request):
            return self._page.reply(request)
        return json_reply({"message": "ComeAPI Load Balancer", "status": self.status()}, headers=[("Vary", "Accept")])

    def health(self, request: Request) -> Reply:
        """GET /health: 200 while a backend is up, and the thread that probes them runs; 503 when this one stops."""
        told = {"loops": loops.describe(self.loops), "version": VERSION}
        error = self.service.leaving.answer() or self._problem()
        if error is None:
            return json_reply(dict(told, status="ok"))
        return json_reply(dict(error.envelope(), **told), 503, error.headers)

    def _problem(self) -> Optional[APIError]:
        """Return why no request should come here, or None."""
        if self._health.loop.late():
            return _not_probed()
        if not self.pool.any_up():
            return APIError(503, "No backend is up.", "no_backend", headers=[("Retry-After", "1")])
        return None

    def live(self, request: Request) -> Reply:
        """GET /live: 503 where only a new process helps, since no backend is probed any more; else 200."""
        if self._health.loop.late():
            raise _not_probed()
        return json_reply({"status": "ok"})

    def expect(self, url: str) -> None:
        """Probe a backend at once: whoever has started it says that it is ready."""
        self._probing.expect(url)

    def look(self, now: float, paused: bool) -> Dict[str, Any]:
        """Return what a parent is told with each sign of life: how busy this is."""
        backends = [each for each in self.pool.describe() if each["healthy"]]
        busy, slots = (sum(each[key] for each in backends) for key in ("in_flight", "capacity"))
        return {"busy": busy, "slots": slots, "queued": self.pool.queued()}

    def status(self) -> Dict[str, Any]:
        """Return the state of all backends, and of the queue."""
        backends = self.pool.describe()
        return {
            "total_backends": len(backends),
            "healthy_backends": sum(each["healthy"] for each in backends),
            "queued": self.pool.queued(),
            "policy": self.config.policy,
            "adopted": int(self._counts.adopted.total()),
            "backends": backends,
        }

    # ---- what goes to a backend

    def relay(self, request: Request) -> Response:
        """Send a request to a backend and its answer to the client, as core/balancing/forwarding.py says."""
        if is_admin_path(request.target):  # spelt so that a backend may take it for its own /admin
            raise APIError(404, "There is nothing at %s." % shown(request.path), "unknown_path")
        if not self._health.known.is_set():
            self._health.known.wait(_KNOWN_SECONDS)
        return self._forwarder.forward(request, self._wish(request))

    def _wish(self, request: Request) -> Wish:
        """Return what a request asks for; in its body, an alias gives way to the model's name. Raises APIError.

        A body is parsed only where what is in it can make a difference to where it goes.
        """
        who = access.presented_key(request.headers) if self.config.api_key else request.peer
        if request.method in ("GET", "HEAD", "DELETE"):
            return Wish(who, works=False)
        by_prompt = self.config.policy == "prefix"
        name = None if by_prompt else only_name(request.body)
        if name is not None and self._catalogue.makes_no_difference(name):
            return Wish(who, name)
        fields = read_body(request.body)
        named = model_of(fields)
        model = self._catalogue.meant(named, request)
        if model != named:
            fields.update({field: model for field in MODEL_FIELDS if field in fields})
            request.body = json.dumps(fields).encode("ascii")
        if not by_prompt:
            return Wish(who, model)
        return Wish(who, model, beginnings=beginnings(fields), head=head_of(fields) if self.pool.shared else 0)


def _not_probed() -> APIError:
    return APIError(503, "The thread that probes the backends does not run.", "health_late")


# --------------------------------------------------------------------------------------------- the program

_RELOAD_SECONDS = 5.0  # between two beats of the thread that waits for SIGHUP
POSITIONAL = ("backend_host", "base_port", "backends", "host", "port")


def main() -> None:
    """Run a balancer until a signal, or the end of its parent."""
    process.prepare_terminal()
    descriptors.raise_limit()
    _prepare_for_many_threads()
    config = activated(options.parse(Config, __doc__, POSITIONAL))
    process.warn_if_open(config)
    if config.one_core == "on" or (config.one_core == "auto" and not config.tls_cert):
        hardware.stay_on_one_core(config.port or os.getpid())
    announce = process.Announcer(config.child, ready=("listening",))
    pulse = process.Pulse(announce).start()
    told = threading.Event()  # "listening" was announced: it comes before "up", as a reader of both expects

    def on_up(url: str) -> None:
        told.wait()
        announce("up", "🟢 %s is up" % url, url=url)

    try:
        balancer = Balancer(config, on_up, (lambda: announce("restart")) if config.child else None)
    except (OSError, ValueError) as error:
        options.fail(str(error), 2)
    pulse.look = balancer.look
    _reload_at_hangup(balancer)
    try:
        balancer.reload()
    except (OSError, ValueError) as error:
        options.fail("the backends file %s can't be read: %s" % (config.backends_file, error), 2)
    reasons = process.reasons_to_stop()
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
    told.set()
    why = process.wait_for_stop(reasons, config.child, lambda facts: _obey(balancer, announce, facts))
    grace = process.announce_stop(announce, config, why, balancer.service.leaving.is_watched())
    cut = balancer.stop(grace=grace)
    if cut:
        sys.stderr.write("%d requests were cut off\n" % cut)


def _obey(balancer: Balancer, announce: process.Announcer, facts: Dict[str, Any]) -> None:
    """Do what the parent says: note what it knows of backends, or drain one, and tell what came of it."""
    if "notes" in facts:
        balancer.pool.note(facts["notes"])
    elif "ready" in facts:
        balancer.expect(facts["ready"])
    else:
        announce("backend", n=facts["n"], **balancer.manage(facts["backend"], facts["drain"]))


def _prepare_for_many_threads() -> None:
    """Give threads small stacks, since there may be thousands. A program that embeds a Balancer decides this itself."""
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

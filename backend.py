#!/usr/bin/env python3
"""One model server: the HTTP API in front of the engine.

    python backend.py                          models in ./models, on http://127.0.0.1:8080
    python backend.py models 127.0.0.1 8080    the same, by position

It binds its port first, so that a port in use is known before gigabytes are loaded; then it loads a model, runs a few
tokens through it, and from then on answers /health with 200. Other models of the folder are loaded when asked for.
A model file that is broken is waited for (core/opening.py). An engine that hangs in a step is told at /health.

    Config     the settings                     Backend    the routes, the state, the engine's life
    main       parse, bind, load, wait, drain
"""

import contextlib
import dataclasses
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

from core import llamaserver, memory, options, process
from core.apis import (
    anthropic,
    embeddings,
    generate,
    infill,
    llamacpp,
    lora,
    ollama,
    ollama_embeddings,
    openai,
    reranking,
    responses,
    slots,
)
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.measuring import measure
from core.apis.openapi import ABOUT, operations
from core.apis.response_store import ResponseStore
from core.balancing.registration import Registrar, checked_balancer, own_url, take_leave
from core.chat.defaults import ChatDefaults
from core.cookie import shared_secret
from core.engine.defaults import Defaults, SamplingSettings
from core.errors import APIError
from core.http import descriptors, server
from core.http.access import check_key
from core.http.listening import activated
from core.http.messages import Request, json_reply
from core.http.openapi import described
from core.http.routing import Route
from core.memory import megabytes
from core.models import BadModel, BrokenModel, ModelFile, ModelFolder, choose, locate
from core.names import Names, check_alias
from core.opening import Opening, loaded
from core.options import between, setting
from core.places import TURN, TURN_SECONDS, Places, name_of
from core.process import BOOT_FAILURE
from core.settings import (
    CarrySettings,
    ChatSettings,
    ChildSettings,
    EngineSettings,
    FolderSettings,
    ResponseSettings,
    grace_setting,
)  # fmt: skip
from core.version import VERSION


def _names(text: str) -> str:
    """Check --alias: names of the model that --model names, or NAME=MODEL; with commas between. Raises ValueError."""
    for part in text.split(","):
        if "=" in part:
            check_alias(part)
    return text


@dataclass(frozen=True)
class Config(
    server.ServerConfig, EngineSettings, ChatSettings, SamplingSettings, FolderSettings, ResponseSettings,
    ChildSettings, CarrySettings,
):  # fmt: skip
    """A backend's settings. They have llama-server's names, so that its command lines start a backend."""

    port: int = setting(
        8080, "port to listen on; 0 picks a free one", "network", check=between(0, 65535),
        variables=("LLAMA_ARG_PORT",),
    )  # fmt: skip
    timeout: float = setting(
        0.0, "seconds for both --body-timeout and --write-timeout; 0 for their own", "limits", flags=("-to",),
        check=between(0, 86400, float), variables=("LLAMA_ARG_TIMEOUT",),
    )  # fmt: skip
    api_key_file: str = setting(
        "", "a file of API keys, one a line: the same as --api-key @FILE", "access", metavar="FILE",
        variables=("LLAMA_ARG_API_KEY_FILE",),
    )  # fmt: skip
    alias: Tuple[str, ...] = setting(
        (), "further names of the model, with commas between; NAME=MODEL for another model's, *=MODEL for any name "
        "that no model has; repeatable", "model", flags=("-a",), many=True, commas=True, check=_names,
        metavar="NAMES", variables=("LLAMA_ARG_ALIAS",),
    )  # fmt: skip
    tags: Tuple[str, ...] = setting(
        (), "what GET /models says of the model, with commas between", "model", many=True, commas=True,
        variables=("LLAMA_ARG_TAGS",),
    )  # fmt: skip
    no_slots: bool = setting(
        False, "GET /slots answers 501", "access", variables=("LLAMA_ARG_NO_ENDPOINT_SLOTS",)
    )
    register: Tuple[str, ...] = setting(
        (), "a balancer to make this backend known to, such as http://balancer:9000; repeatable", "network", many=True,
        check=checked_balancer, metavar="URL",
    )  # fmt: skip
    name: str = setting(
        "", "a name of this backend's own, for --register: where it comes back at another address, it takes its old "
        "place", "network",
    )  # fmt: skip
    admin_key: str = setting(
        "", "the balancer's admin key, or @FILE, for --register", "network", secret=True, check=check_key,
        metavar="KEY",
    )  # fmt: skip
    drain_grace: float = grace_setting(0.0)
    advertise: str = setting(
        "",
        "the URL at which the balancer reaches this backend (default: found out by calling the balancer)",
        "network",
        metavar="URL",
    )
    lazy: bool = setting(False, "load no model before a request names one", "model")


ENGINE_SECONDS = 2.0  # that the engine may take to end: a step, or the rest of one


class Backend:
    """One model server. start() binds and begins to load; stop() lets running requests finish.

    `announce(what, sentence, **facts)` is told what happens; `on_failure(message, status)` is called, in the engine's
    thread, when the engine ended by a defect. Raises ValueError where there is no such chat template, or no such board.
    """

    def __init__(
        self,
        config: Config,
        announce: Callable[..., None] = lambda what, sentence="", **facts: None,
        on_failure: Callable[[str, int], None] = lambda message, status: None,
    ):
        from core.engine import engine  # here, so that settings and --help work where llama_cpp is missing

        self.config = config
        self.folder = ModelFolder(config.models)
        self._chat = ChatDefaults.of(config)
        self._announce = announce
        self._on_failure = on_failure
        self._ready = False  # a model has passed its self-test since the start
        self._opening: Optional[Opening] = None
        self._started = time.monotonic()
        self._since = int(time.time())
        self.engine = engine.Engine(config, self._engine_event, self._engine_failed)
        self._carry_secret = config.carry_secret or shared_secret()
        self._host = self._make_host()
        self.places = Places(config.slots)
        self._name = ""  # no other backend has it, and the next process at this port has it again
        self.service = server.Service(
            config, self._routes(), name="comeapi_backend", more=lambda request: self.places.told(request.headers)
        )
        measure(self.service.metrics, self.engine)

    def start(self, find: Optional[Callable[[], ModelFile]]) -> "Backend":
        """Bind, then load in the background what `find` returns, again and again until it works. Raises OSError.

        `find` raises BadModel where there is no good file now.
        """
        if find:
            self._opening = Opening(self.config.models, find, self.engine.load, self._tell_waiting)
        self._ready = find is None
        self.service.start()
        self._name = name_of(socket.gethostname(), self.service.port)
        self._announce("listening", "", url=self.service.url, pid=os.getpid())
        self.engine.start()
        if self._opening:
            self._opening.start()
        return self

    def stop(self, timeout: float, grace: float = 0.0) -> Tuple[int, bool]:
        """Stop; running requests get `timeout` seconds to finish.

        For `grace` seconds before that, /health says 503, and everybody is still served. Returns how many requests were
        cut off, and whether the engine has ended, too: one that hangs does not.
        """
        if grace:
            self.service.leave(grace)
        if self._opening:
            self._opening.stop()
        cut = self.service.drain(timeout)
        return cut, self.engine.stop(ENGINE_SECONDS)

    # ---- routes

    def _routes(self) -> "list[Route]":
        routes = [
            Route("GET", "/", self.root),
            Route("GET", "/health", self.health, public=True),
            Route("GET", "/v1/health", self.health, public=True),
            Route("GET", "/live", self.live, public=True),
            Route("GET", "/status", lambda request: json_reply(self.state())),
            Route("GET", "/models", self.models),
            Route("GET", "/metrics", self.metrics),
            Route("GET", TURN, self.turn, counts=False),
        ] + self._apis()
        return described(ABOUT, routes, operations(self._host.defaults), bool(self.config.api_key))

    def _apis(self) -> "list[Route]":
        """Return the routes of the APIs: its own, and those that other servers have, too."""
        endpoint = Endpoint(self._host, self.config.ping_interval, self._carry_secret, self.places)
        dialects = (
            generate, openai, responses, embeddings, reranking, llamacpp, infill, slots, lora, anthropic, ollama,
            ollama_embeddings,
        )  # fmt: skip
        return [route for dialect in dialects for route in dialect.routes(endpoint)]

    def _make_host(self) -> Host:
        config = self.config
        own = [name for name in config.alias if "=" not in name]
        names = Names([name for name in config.alias if "=" in name], own, self._first_model() if own else "")
        store = ResponseStore(
            config.responses_dir, config.responses_max, config.responses_max_bytes, config.responses_days
        )
        return Host(
            self.engine, self.folder, self._chat, self.engine.build, store,
            Defaults.of(config, config.verbose), names, config.tags, not config.no_slots, config.model,
        )  # fmt: skip

    def _first_model(self) -> str:
        """Return the name of the model that is loaded at start."""
        with contextlib.suppress(APIError, OSError):  # its file may be broken for the moment, or missing
            first = self.folder.find(self.config.model) if self.config.model else self.folder.default()
            return first.name if first else ""
        return self.config.model

    def root(self, request: Request) -> Any:
        """GET /: who this is, and its state."""
        return json_reply({"message": "ComeAPI Backend", "status": self.state()})

    def health(self, request: Request) -> Any:
        """GET /health: 200 once a model has passed its self-test, however busy.

        503 before, when it is broken, and when it is stopping.
        """
        state = self.state()
        problem = self.service.leaving.answer() or self._problem()
        if problem is None:
            return json_reply(dict(state, status="ok"))
        return json_reply(dict(state, **problem.envelope()), 503, [("Retry-After", "1")])

    def live(self, request: Request) -> Any:
        """GET /live: 503 where only a new process helps, since the engine hangs; 200 while it loads, waits or stops."""
        if self.engine.stuck:
            raise APIError(503, self._hangs().capitalize() + ".", "wedged")
        return json_reply({"status": "ok"})

    def look(self, now: float, paused: bool) -> Dict[str, Any]:
        """Look whether the engine hangs (see Engine.look). Returns what the parent must know."""
        generated = self.engine.tally.counts["generated_tokens"]
        if not self.engine.look(now, paused):
            return {"wedged": False, "generated_tokens": generated}
        return {"wedged": True, "why": self._hangs(), "generated_tokens": generated}

    def _problem(self) -> Optional[APIError]:
        """Return why no request should come here, or None."""
        if self.engine.stuck:
            return APIError(503, self._hangs().capitalize() + ".", "wedged")
        if self._ready and self.engine.status in ("ready", "loading"):
            return None
        why = self._opening.why if self._opening else ""
        return APIError(503, "The backend is not ready: %s" % (why or self._status() + "."), "not_ready")

    def _hangs(self) -> str:
        engine = self.engine
        return "the engine hangs: a step has not ended for %d s, over the limit of %d s" % (
            engine.stuck, engine.step_limit()
        )  # fmt: skip

    def _status(self) -> str:
        """Return the state in a word: starting, waiting (for a model file), loading, ready, wedged, failed, stopped."""
        if self.engine.stuck:
            return "wedged"
        if self.engine.status == "ready" and not self._ready:
            return "waiting" if self._opening and self._opening.why else "starting"
        return self.engine.status

    def models(self, request: Request) -> Any:
        """GET /models: what is in the folder, with each LoRA adapter too; `data` is OpenAI's list of it."""
        loaded, names = self.engine.model_name(), self._host.names
        models = [
            dict(each.describe(), loaded=each.bare().name == loaded, aliases=names.of(each.name))
            for each in self._host.listed()
        ]
        return json_reply({"models": models, "object": "list", "data": openai.model_cards(self._host, self._since)})

    def turn(self, request: Request) -> Any:
        """GET /turn: for balancers, which wait here until they may send a request, half a second at most."""
        came = request.wait(lambda seconds: self.places.wait(request.headers, seconds), TURN_SECONDS)
        return json_reply({"turn": came, "free_slots": self.places.free})

    def metrics(self, request: Request) -> Any:
        """GET /metrics, with the header by which llama-server tells when it was started."""
        page = self.service.metrics_page(request)
        page.headers = [*page.headers, ("Process-Start-Time-Unix", str(self._since))]
        return page

    # ---- state

    def state(self) -> Dict[str, Any]:
        """Return what /health and /status say; answers at once, whatever the engine is doing."""
        engine = self.engine
        return {
            "status": self._status(),
            "model": engine.model_name(),
            "load_progress": round(engine.load_progress, 2) if engine.status == "loading" else None,
            "name": self._name,
            "version": VERSION,
            "slots": self.config.slots,
            "free_slots": self.places.free,
            "busy_slots": engine.busy(),
            "queued": engine.queued(),
            "heartbeat_age": round(time.monotonic() - engine.heartbeat, 3),
            "stalled": bool(engine.stalled()),
            "largest_batch": engine.tally.largest_batch,
            "prompt_tokens": engine.tally.counts["prompt_tokens"],
            "cached_tokens": engine.tally.counts["cached_tokens"],
            "generated_tokens": engine.tally.counts["generated_tokens"],
            "engine_seconds": {name: round(value, 4) for name, value in sorted(engine.tally.seconds.items())},
            "safe_mode": self.config.safe_mode,
            "memory_mb": megabytes(memory.resident_memory()),
            "carries": bool(self._carry_secret),
            "fingerprint": self._fingerprint(),
            "uptime": round(time.monotonic() - self._started, 1),
            "pid": os.getpid(),
        }

    def _fingerprint(self) -> Optional[str]:
        """Return what tells the model that is loaded from others, for answers that are to be carried on; or None."""
        with contextlib.suppress(APIError):
            return self._host.fingerprint_of(self.engine.vocabulary().file)
        return None

    def _engine_event(self, what: str, **facts: Any) -> None:
        sentence = ""
        if what == "ready":
            self._ready = True
            if self._opening:
                self._opening.loaded(facts["model"])
            sentence = "🟢 %s (PID %d) %s" % (self.service.url, os.getpid(), loaded(facts))
        elif what == "loading":
            sentence = "⏳ loading %s" % facts["model"]
        elif what == "progress":
            sentence = "   %3.0f %%" % (facts["share"] * 100)
        elif what == "failed" and self._ready:
            sentence = "🔴 %s" % facts["why"]
        self._announce(what, sentence, **facts)
        if what == "failed" and self._opening:
            self._opening.failed(facts["model"], facts["why"])

    def _tell_waiting(self, why: str) -> None:
        self._announce("waiting", "🟠 %s Waiting for a good file; Ctrl-C stops." % why, why=why)

    def _engine_failed(self) -> None:
        self._on_failure("the engine failed; see above", 1)


# --------------------------------------------------------------------------------------------- the program


def main() -> None:
    """Run a backend until a signal, or the end of its parent."""
    process.prepare_terminal()
    descriptors.raise_limit()
    config = options.parse(Config, __doc__, ("models", "host", "port"), foreign=llamaserver.OPTIONS)
    config = activated(_as_here(config))
    announce = process.Announcer(config.child, ready=("listening",) if config.lazy else ("ready", "waiting"))
    pulse = process.Pulse(announce).start()
    config = _with_models(config)
    _require_llama()
    process.warn_if_open(config)
    try:
        backend = Backend(config, announce, _die)
    except ValueError as error:
        options.fail(str(error), BOOT_FAILURE)
    pulse.look = backend.look
    reasons = process.reasons_to_stop()
    try:
        backend.start(None if config.lazy else lambda: choose(config.models, config.model))
    except OSError as error:
        options.fail(
            "can't listen on %s port %d: %s" % (config.host, config.port, error.strerror or error), BOOT_FAILURE
        )
    registrars = _register(config, backend)
    why = process.wait_for_stop(reasons, config.child)
    process.end_within(config.drain_grace + config.drain_timeout + process.STOP_SECONDS)
    grace = process.announce_stop(announce, config, why, backend.service.leaving.is_watched())
    take_leave(registrars)
    cut, ended = backend.stop(config.drain_timeout, grace)
    if cut:
        sys.stderr.write("%d requests were cut off\n" % cut)
    if not ended:
        sys.stderr.write("the engine hangs: ending without it\n")
    process.leave(0 if ended else 1)


def _as_here(config: Config) -> Config:
    """Return the settings with llama-server's spellings in our own terms. Ends the program where a file can't be read.

    Says where one of them means something else there.
    """
    if config.timeout:
        config = dataclasses.replace(config, body_timeout=config.timeout, write_timeout=config.timeout)
    if config.api_key_file:
        try:
            keys = options.keys_in_file(config.api_key_file)
        except ValueError as error:
            options.fail(str(error), 2)
        config = dataclasses.replace(config, api_key=config.api_key + tuple(keys))
    given = any(argument.partition("=")[0] in ("-c", "--ctx-size", "--ctx_size") for argument in sys.argv[1:])
    given = (given or "LLAMA_ARG_CTX_SIZE" in os.environ) and not config.child
    if given and config.ctx_size and config.slots > 1 and not config.share_ctx:
        what = config.ctx_size, config.slots, config.ctx_size * config.slots
        sys.stderr.write(
            "--ctx-size %d is each slot's: %d slots hold %d tokens in sum. llama-server shares it out among them; for "
            "that, say --share-ctx.\n" % what
        )
    return config


def _with_models(config: Config) -> Config:
    """Return the settings with the models folder's path and the model's name in it.

    Ends the program where there is no such model, unless another program has started it, which has seen that there
    is: then, and where there is a file that is broken, it waits.
    """
    try:
        folder, name = locate(config.models, config.model)
        config = dataclasses.replace(config, models=folder, model=name)
        if not config.lazy:
            choose(folder, name)
    except BrokenModel:
        pass
    except BadModel as problem:
        if not config.child:
            options.fail(str(problem), BOOT_FAILURE)
    return config


def _register(config: Config, backend: Backend) -> List[Registrar]:
    """Make the backend known to the balancers that --register names, until it stops."""
    own_key = config.api_key[0] if config.api_key else ""
    try:
        urls = [config.advertise or own_url(each, config, backend.service.port) for each in config.register]
    except (OSError, ValueError) as error:
        options.fail("--register: %s" % error, BOOT_FAILURE if isinstance(error, ValueError) else 1)
    return [
        Registrar(balancer, url, config.admin_key, own_key=own_key, name=config.name).start()
        for balancer, url in zip(config.register, urls)
    ]


def _require_llama() -> None:
    """End the program with advice where llama_cpp can't be imported."""
    try:
        import core.engine.engine  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        options.fail(
            "llama-cpp-python can't be used: %s. Install it with: pip install llama-cpp-python" % error, BOOT_FAILURE
        )


def _die(message: str, status: int) -> None:
    """End the process from the engine's thread; nothing can be served any more."""
    sys.stderr.write("backend.py: error: %s\n" % message)
    process.leave(status)


if __name__ == "__main__":
    main()

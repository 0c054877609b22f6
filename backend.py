#!/usr/bin/env python3
"""One model server: the HTTP API in front of the engine.

    python backend.py                          models in ./models, on http://127.0.0.1:8080
    python backend.py models 127.0.0.1 8080    the same, by position

It binds its port first, so that a port in use is known before gigabytes are loaded; then it loads a model, runs a few
tokens through it, and from then on answers /health with 200. Other models of the folder are loaded when asked for.

    Config     the settings                     Backend    the routes, and a job's way through the engine
    main       parse, bind, load, wait, drain
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Optional

from core import fields, options, process, service
from core.anthropic_endpoints import AnthropicEndpoints
from core.errors import APIError
from core.jobs import Job
from core.models import BadModel, ModelFile, ModelFolder, choose, locate
from core.native_endpoints import NativeEndpoints
from core.ollama_endpoints import OllamaEndpoints
from core.openai_endpoints import OpenAIEndpoints
from core.process import BOOT_FAILURE
from core.registration import Registrar, reachable_url
from core.runner import Answer, Runner
from core.sampling import read_sampling
from core.service import IDLE, Request, Route, between, event_stream, json_reply, setting
from core.settings import ChildSettings, EngineSettings, FolderSettings


@dataclass(frozen=True)
class Config(service.Config, EngineSettings, FolderSettings, ChildSettings):
    """A backend's settings."""

    port: int = setting(8080, "port to listen on; 0 picks a free one", "network", check=between(0, 65535))
    register: str = setting(
        "", "a balancer to make this backend known to, such as http://balancer:9000", "network", metavar="URL"
    )
    admin_key: str = setting("", "the balancer's admin key, for --register", "network", metavar="KEY")
    advertise: str = setting(
        "",
        "the URL at which the balancer reaches this backend (default: found out by calling the balancer)",
        "network",
        metavar="URL",
    )
    lazy: bool = setting(False, "load no model before a request names one", "model")
    probe: bool = setting(False, "print what llama-cpp-python can do here, as JSON, and end", "other")


class Backend:
    """One model server. start() binds and begins to load; stop() lets running requests finish.

    `announce(what, sentence, **facts)` is told what happens; `on_failure(message, status)` is called, in the engine's
    thread, when no model could be loaded at start, or the engine ended by a defect.
    """

    def __init__(
        self,
        config: Config,
        announce: Callable[..., None] = lambda what, sentence="", **facts: None,
        on_failure: Callable[[str, int], None] = lambda message, status: None,
    ):
        from core import engine  # here, so that settings and --help work where llama_cpp is missing

        self.config = config
        self.folder = ModelFolder(config.models)
        self._announce = announce
        self._on_failure = on_failure
        self._ready = False  # a model has passed its self-test since the start
        self._started = time.monotonic()
        self.engine = engine.Engine(config, self._engine_event, self._engine_failed)
        self.runner = Runner(self.engine, self.folder)
        self.service = service.Service(config, self._routes(), name="comeapi_backend")
        self._measure()

    def start(self, model: Optional[ModelFile]) -> "Backend":
        """Bind, then load `model` in the background. Raises OSError."""
        self.service.start()
        self._announce("listening", "", url=self.service.url, pid=os.getpid())
        self._ready = model is None
        self.engine.start(model)
        return self

    def stop(self, timeout: float) -> int:
        """Stop; running requests get `timeout` seconds to finish. Returns how many were cut off."""
        cut = self.service.drain(timeout)
        self.engine.stop()
        return cut

    # ---- routes

    def _routes(self) -> "list[Route]":
        return [
            Route("GET", "/", self.root),
            Route("GET", "/health", self.health, public=True),
            Route("GET", "/status", lambda request: json_reply(self.state())),
            Route("GET", "/models", self.models),
            Route("GET", "/metrics", lambda request: self.service.metrics_page(request)),
            Route("POST", "/generate", self.generate),
        ] + self._apis()

    def _apis(self) -> "list[Route]":
        """Return the routes of the APIs that other servers have, too."""
        template = _text_of(self.config.chat_template)
        fingerprint = "comeapi-" + self.engine.fingerprint
        kinds = (OpenAIEndpoints, NativeEndpoints, AnthropicEndpoints, OllamaEndpoints)
        return [route for kind in kinds for route in kind(self.runner, template, fingerprint).routes()]

    def root(self, request: Request) -> Any:
        """GET /: who this is, and its state."""
        return json_reply({"message": "ComeAPI Backend", "status": self.state()})

    def health(self, request: Request) -> Any:
        """GET /health: 200 once a model has passed its self-test, however busy; 503 before, and when it is broken."""
        state = self.state()
        if self._ready and self.engine.status in ("ready", "loading"):
            return json_reply(dict(state, status="ok"))
        error = APIError(503, "The backend is not ready: %s." % state["status"], "not_ready")
        return json_reply(dict(state, **error.envelope()), 503, [("Retry-After", "1")])

    def models(self, request: Request) -> Any:
        """GET /models: what is in the folder, and which one is loaded."""
        loaded = self.engine.model_name()
        return json_reply(
            {"models": [dict(each.describe(), loaded=each.name == loaded) for each in self.folder.list()]}
        )

    def generate(self, request: Request) -> Any:
        """POST /generate: the answer to a prompt, whole or as server-sent events."""
        body = request.json()
        job = self._job(body)
        if fields.flag(body, "stream", False):
            return event_stream(self._stream(job))
        answer = self.runner.answers([job], request)[0]
        return json_reply(dict({"response": answer.text}, **_summary(answer), **_probabilities(answer)))

    # ---- state

    def state(self) -> Dict[str, Any]:
        """Return what /health and /status say; answers at once, whatever the engine is doing."""
        engine = self.engine
        return {
            "status": engine.status,
            "model": engine.model_name(),
            "load_progress": round(engine.load_progress, 2) if engine.status == "loading" else None,
            "slots": self.config.slots,
            "busy_slots": engine.busy(),
            "queued": engine.queued(),
            "heartbeat_age": round(time.monotonic() - engine.heartbeat, 3),
            "largest_batch": engine.largest_batch,
            "prompt_tokens": engine.counts["prompt_tokens"],
            "cached_tokens": engine.counts["cached_tokens"],
            "generated_tokens": engine.counts["generated_tokens"],
            "engine_seconds": {name: round(value, 4) for name, value in sorted(engine.seconds.items())},
            "safe_mode": self.config.safe_mode,
            "uptime": round(time.monotonic() - self._started, 1),
            "pid": os.getpid(),
        }

    def _measure(self) -> None:
        """Put the engine's state among the metrics."""
        metrics, engine = self.service.metrics, self.engine
        gauges = [
            (metrics.gauge("comeapi_backend_slots", "Requests that can run at once."), lambda: self.config.slots),
            (metrics.gauge("comeapi_backend_busy_slots", "Requests that are running."), engine.busy),
            (metrics.gauge("comeapi_backend_queued_requests", "Requests that wait for a slot."), engine.queued),
            (
                metrics.gauge("comeapi_backend_step_seconds", "How long the last step took."),
                lambda: engine.step_seconds,
            ),
            (
                metrics.gauge("comeapi_backend_heartbeat_age_seconds", "Since the engine's last sign of life."),
                lambda: time.monotonic() - engine.heartbeat,
            ),
        ]
        counters = {
            "prompt_tokens": metrics.counter("comeapi_backend_prompt_tokens_total", "Prompt tokens evaluated."),
            "cached_tokens": metrics.counter(
                "comeapi_backend_cached_tokens_total", "Prompt tokens not evaluated again."
            ),
            "cache_hits": metrics.counter("comeapi_backend_cache_hits_total", "Requests that reused cells."),
            "prompts_aside": metrics.counter("comeapi_backend_prompts_aside_total", "Prompts evaluated in the siding."),
            "generated_tokens": metrics.counter("comeapi_backend_generated_tokens_total", "Tokens generated."),
            "steps": metrics.counter("comeapi_backend_steps_total", "Batches evaluated."),
            "cancelled": metrics.counter("comeapi_backend_cancelled_total", "Requests whose client left."),
        }

        seconds = metrics.counter("comeapi_backend_engine_seconds_total", "What the engine's time went to.", "part")

        def collect() -> None:
            for part, value in engine.seconds.items():
                seconds.set(value, part)
            for gauge, read in gauges:
                gauge.set(read())
            for name, counter in counters.items():
                counter.set(engine.counts[name])

        metrics.collect(collect)

    def _engine_event(self, what: str, **facts: Any) -> None:
        sentence = ""
        if what == "ready":
            self._ready = True
            sentence = "🟢 %s (PID %d) %s loaded in %.1f s" % (
                self.service.url, os.getpid(), facts["model"], facts["seconds"]
            )  # fmt: skip
        elif what == "loading":
            sentence = "⏳ loading %s" % facts["model"]
        elif what == "progress":
            sentence = "   %3.0f %%" % (facts["share"] * 100)
        elif what == "failed":
            sentence = "🔴 %s" % facts["why"]
        self._announce(what, sentence, **facts)
        if what == "failed" and not self._ready:
            self._on_failure(facts["why"], BOOT_FAILURE)

    def _engine_failed(self) -> None:
        self._on_failure("the engine failed; see above", 1)

    # ---- a job

    def _job(self, body: Dict[str, Any]) -> Job:
        """Return the job that a /generate body asks for. Raises APIError 400, 404, 500."""
        prompt = fields.text(body, "prompt")
        name = fields.text(body, "model_name")
        return Job(
            model=self.folder.find(name),
            prompt=prompt,
            max_tokens=fields.integer(body, "max_tokens", 100, 1, 1 << 31),
            stop=fields.texts(body, "stop"),
            sampling=read_sampling(body),
            cache_prompt=fields.flag(body, "cache_prompt", True),
        )

    def _stream(self, job: Job) -> Iterator[Any]:
        """Yield an answer's pieces with their tokens, then its summary."""
        new = Answer(job)
        with contextlib.closing(self.runner.events([job])) as events:
            for each in events:
                if each is IDLE:
                    yield IDLE
                    continue
                new.take(each[1])
                if new.end:
                    last = {"response": "", "tokens": new.tokens, "done": True}
                    yield dict(last, **_summary(new), **_probabilities(new))
                elif new.text:
                    yield dict({"response": new.text, "tokens": new.tokens, "done": False}, **_probabilities(new))
                    new = Answer(job)


def _text_of(path: str) -> str:
    """Return a file's text, "" where none is named. Raises OSError, UnicodeDecodeError."""
    if not path:
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def _probabilities(answer: Answer) -> Dict[str, Any]:
    return {"completion_probabilities": answer.probabilities} if answer.probabilities else {}


def _summary(answer: Answer) -> Dict[str, Any]:
    return {
        "model": answer.job.model.name,
        "finish_reason": answer.end.reason,
        "seed": answer.job.seed,
        "usage": answer.end.usage(),
        "timings": answer.end.timings,
    }


# --------------------------------------------------------------------------------------------- the program


def main() -> None:
    """Run a backend until a signal, or the end of its parent."""
    process.prepare_terminal()
    config = options.parse(Config, __doc__, ("models", "host", "port"))
    if config.probe:
        return _print_probe()
    try:
        folder, name = locate(config.models, config.model)
        model = None if config.lazy else choose(folder, name)
    except BadModel as problem:
        options.fail(str(problem), BOOT_FAILURE)
    config = dataclasses.replace(config, models=folder)
    _require_llama()
    process.warn_if_open(config)
    announce = process.Announcer(config.child)
    backend = Backend(config, announce, _die)
    try:
        backend.start(model)
    except OSError as error:
        options.fail(
            "can't listen on %s port %d: %s" % (config.host, config.port, error.strerror or error), BOOT_FAILURE
        )
    registrar = _register(config, backend)
    process.wait_for_stop(config.child)
    if registrar:
        registrar.stop()
    announce("stopping", "stopping: running requests get %g s to finish" % config.drain_timeout)
    cut = backend.stop(config.drain_timeout)
    if cut:
        sys.stderr.write("%d requests were cut off\n" % cut)


def _register(config: Config, backend: Backend) -> Optional[Registrar]:
    """Make the backend known to the balancer that --register names, until it stops."""
    if not config.register:
        return None
    try:
        own = config.advertise or reachable_url(config.register, backend.service.port)
    except OSError as error:
        options.fail("no way to %s: %s" % (config.register, error))
    return Registrar(config.register, own, config.admin_key).start()


def _require_llama() -> None:
    """End the program with advice where llama_cpp can't be imported."""
    try:
        import core.engine  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        options.fail(
            "llama-cpp-python can't be used: %s. Install it with: pip install llama-cpp-python" % error, BOOT_FAILURE
        )


def _print_probe() -> None:
    _require_llama()
    from core import llama

    print(json.dumps(llama.build_facts()))


def _die(message: str, status: int) -> None:
    """End the process from the engine's thread; nothing can be served any more."""
    sys.stderr.write("backend.py: error: %s\n" % message)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

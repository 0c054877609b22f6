#!/usr/bin/env python3
"""The whole system in one command: a folder of models in, a load-balanced LLM service out.

    python comeapi.py                              models in ./models, backends on 8080, 8081, …, balancer on 9000
    python comeapi.py models 127.0.0.1 8080 5      five backends, by position
    python comeapi.py --backends 5 --slots 1       five backends that run one request each
    python comeapi.py bench                        how fast this machine is, in these and other shapes

It plans how many backends, slots and threads fit this machine, starts the backends and the balancer as processes of
their own, watches them, starts again what dies, and stops everything when it is told to. It never imports them.

    Config          the settings
    make_plan       what to start, and why                                    (pure)
    RestartPolicy   when something that died may be started again             (pure)
    Child           one process: its pipes, its announcements, its last words
    Console         the terminal
    Supervisor      one thread, one queue of events: what starts, becomes ready, dies, asks to stop

A child announces what happens to it on its standard output, a line of JSON each: "listening", "loading", "progress",
"ready". It stops when its standard input ends, so that it never outlives this process, whatever happens to it.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Dict, List, NoReturn, Optional, Set, Tuple

from core import bench, machine, options, process, service
from core.models import BadModel, ModelFile, choose, locate
from core.service import between, setting
from core.settings import CACHE_TYPES, EngineSettings, FolderSettings, RelaySettings

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class Config(service.Config, RelaySettings, EngineSettings, FolderSettings):
    """The system's settings. 0 leaves a number to the plan. `host` and `port` are the balancer's."""

    port: int = setting(9000, "the balancer's port", "network", check=between(1, 65535))
    backend_host: str = setting("127.0.0.1", "the backends' address", "network")
    base_port: int = setting(8080, "the first backend's port; the others follow", "network", check=between(1, 65535))
    backends: int = setting(
        0, "number of backends; 0 for two, or one on a single core or with a GPU", "plan", flags=("-n",),
        check=between(0, 256),
    )  # fmt: skip
    slots: int = setting(
        0, "requests at once in each backend; 0 for 4, or 8 with a GPU", "plan", flags=("--parallel", "-np"),
        check=between(0, 256),
    )  # fmt: skip
    threads: int = setting(
        0, "CPU threads of each backend; 0 to share all cores out", "plan", flags=("-t",), check=between(0, 1024)
    )


# ------------------------------------------------------------------------------------------------ the plan

PROCESS_BYTES = 120 << 20  # Python, numpy and llama.cpp's buffers for a small model
BUFFER_BYTES = 4  # a float32; llama.cpp's compute buffers hold about this many per batch row and embedding or logit


@dataclass(frozen=True)
class Plan:
    """What to start: one number of threads for each backend; `notes` say why."""

    threads: Tuple[int, ...]
    slots: int
    model: ModelFile
    notes: Tuple[str, ...]

    @property
    def backends(self) -> int:
        """How many backends."""
        return len(self.threads)


def make_plan(config: Config, model: ModelFile, cores: int, memory: Optional[int], gpu: bool) -> Plan:
    """Return what to start on a machine with so many cores and bytes of free memory (None: unknown)."""
    backends = config.backends or (1 if gpu or cores == 1 else 2)
    slots = config.slots or (8 if gpu else 4)
    notes = [_why(config, backends, slots, cores, gpu)]
    shared, each = memory_needed(config, model, slots, gpu)
    affordable = backends if memory is None else max(1, (memory - shared) // each)
    if affordable < backends:
        what = "%s for %d backends, but only %s is free" % (_gb(shared + each * backends), backends, _gb(memory))
        notes.append("⚠️  Memory: %s needs %s: starting %d." % (model.name, what, affordable))
        backends = affordable
    else:
        free = "" if memory is None else " of %s free" % _gb(memory)
        notes.append("Memory: about %s%s." % (_gb(shared + each * backends), free))
    if memory is not None and shared + each > memory:
        notes.append("⚠️  Even one backend may not fit; a smaller --ctx-size or fewer --slots need less.")
    return Plan(_share(config.threads, cores, backends), slots, model, tuple(notes))


def memory_needed(config: Config, model: ModelFile, slots: int, gpu: bool) -> Tuple[int, int]:
    """Return the bytes that all backends share, and those that each needs for itself.

    Quantized weights are repacked into private memory; others, and all in safe mode, are mapped and shared.
    """
    if gpu and config.gpu_layers:
        return 0, PROCESS_BYTES  # the rest is the GPU's memory
    context = min(config.ctx_size or model.context_length, model.context_length or config.ctx_size)
    rows = min(config.batch_size, 512)
    share = (CACHE_TYPES[config.cache_type_k] + CACHE_TYPES[config.cache_type_v]) / (2 * CACHE_TYPES["f16"])
    aside = 1 if slots > 1 and config.siding != "off" else 0
    cells = int(context * (slots + aside) * model.kv_bytes * share)
    own = PROCESS_BYTES + cells + rows * BUFFER_BYTES * _widest(model)
    repacked = model.quantized and not config.safe_mode
    return (0, own + model.size) if repacked else (model.size, own)


def _widest(model: ModelFile) -> int:
    """Return a rough width of the widest thing computed for each row, in floats."""
    return max(model.vocabulary // 8, 8192)


def _why(config: Config, backends: int, slots: int, cores: int, gpu: bool) -> str:
    shape = "%s, %s at once" % (_count(backends, "backend"), _count(backends * slots, "request"))
    if config.backends or config.slots or config.threads:
        return "Plan: %s, as asked for." % shape
    if gpu:
        return "Plan: %s: this build of llama.cpp uses the GPU, and one process uses it best." % shape
    if cores == 1:
        return "Plan: %s: one core." % shape
    why = "%d cores; requests share a batch, which reads the weights once, and two keep the service up when one dies"
    return "Plan: %s: %s." % (shape, why % cores)


def _share(threads: int, cores: int, backends: int) -> Tuple[int, ...]:
    """Share the cores out between the backends; each has at least one thread."""
    if threads:
        return (threads,) * backends
    return tuple(max(1, cores // backends + (i < cores % backends)) for i in range(backends))


def _count(number: int, what: str) -> str:
    return "%d %s%s" % (number, what, "" if number == 1 else "s")


def _gb(size: Optional[int]) -> str:
    return "%.1f GB" % ((size or 0) / 1e9)


# ------------------------------------------------------------------------------------------------- restarts

QUICK_SECONDS = 5.0  # a child that worked for less has died quickly
MOST_QUICK_DEATHS = 5
STEADY_SECONDS = 60.0  # a child that worked for longer is forgiven its earlier deaths
LONGEST_DELAY = 30.0


class RestartPolicy:
    """When something that died may be started again: after 1, 2, 4 … 30 s; after five quick deaths in a row, never."""

    def __init__(self) -> None:
        self._deaths = 0
        self._quick = 0

    def died(self, worked: float) -> Optional[float]:
        """Return the seconds to wait after a death, or None to give up. `worked` is the seconds it had been ready."""
        self._quick = self._quick + 1 if worked < QUICK_SECONDS else 0
        self._deaths = self._deaths + 1 if worked < STEADY_SECONDS else 1
        if self._quick >= MOST_QUICK_DEATHS:
            return None
        return min(2.0 ** (self._deaths - 1), LONGEST_DELAY)


# ------------------------------------------------------------------------------------------------- children

_CRASHES = {"SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "access violation", "illegal instruction"}
_WINDOWS_CRASHES = {0xC0000005: "access violation", 0xC000001D: "illegal instruction"}
HOPELESS = (2, process.BOOT_FAILURE)  # the first is what wrong arguments give
LAST_WORDS = 5  # lines


class Child:
    """One process of ours. Its announcements, and its end, come on `events` as (child, run, facts).

    `run` counts its starts, so that what an earlier run has said can be told apart.
    """

    def __init__(self, name: str, arguments: List[str], environment: Dict[str, str], events: Any):
        self.name = name
        self.arguments = arguments
        self.policy = RestartPolicy()
        self.run = 0
        self.url = ""
        self.loading = ""  # the model that it is loading and testing, if it is
        self.safe = False  # it was started in safe mode
        self.progress = 0.0
        self.ready_at: Optional[float] = None
        self.restart_at: Optional[float] = None
        self.given_up = ""  # why it will not be started again
        self._environment = environment
        self._events = events
        self._process: Optional[subprocess.Popen] = None
        self._last_words: List[str] = []

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for at start: it is ready, or will never be."""
        return self.ready_at is not None or bool(self.given_up)

    def start(self) -> None:
        """Start the process, out of the terminal's reach: a Ctrl-C is ours to pass on, in the right order."""
        self.run += 1
        self.restart_at = self.ready_at = None
        self.loading, self.progress, self._last_words = "", 0.0, []
        self.safe = "--safe-mode" in self.arguments
        apart: Dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(
            [sys.executable] + self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            **apart,
        )
        reader = threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True)
        reader.start()
        threading.Thread(target=self._read_events, args=(self._process, self.run, reader), daemon=True).start()

    def ask_to_stop(self) -> None:
        """Close its standard input, which asks it to finish what it is doing and end."""
        if self._process:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def wait(self, timeout: float) -> bool:
        """Wait for its end; False if it is still there after `timeout` seconds."""
        try:
            return self._process is None or self._process.wait(max(0.0, timeout)) is not None
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        """End it at once."""
        if self.alive:
            self._process.kill()

    def cause_of_death(self, status: int) -> Tuple[str, str]:
        """Return what ended it in a word (a signal's name, or "exit 1") and in a sentence with its last words."""
        word = _WINDOWS_CRASHES.get(status & 0xFFFFFFFF) or ("exit %d" % status)
        if status < 0:
            with contextlib.suppress(ValueError):
                word = signal.Signals(-status).name
        if word == "SIGKILL":
            return word, "killed (SIGKILL); if nobody did that, the system ran out of memory"
        said = " | ".join(self._last_words[-2:])
        return word, "%s%s" % (word, ": " + said if said else "")

    def _read_events(self, running: subprocess.Popen, run: int, errors: threading.Thread) -> None:
        for line in running.stdout:
            with contextlib.suppress(ValueError):
                self._events.put((self, run, json.loads(line.decode("utf-8"))))
        status = running.wait()
        errors.join(1)  # its last words
        self._events.put((self, run, {"event": "exit", "status": status}))

    def _read_errors(self, pipe: Any) -> None:
        for raw in pipe:
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._last_words = (self._last_words + [line])[-LAST_WORDS:]
                self._events.put((self, self.run, {"event": "log", "line": line}))


class Console:
    """The terminal: whole lines, and below them, where it is a terminal, one that shows progress."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = ""

    def say(self, line: str) -> None:
        """Print a line."""
        self._erase()
        print(line, flush=True)

    def progress(self, text: str) -> None:
        """Show what is going on, in place of what was shown before."""
        if self._live and text != self._shown:
            self._erase()
            sys.stdout.write(text)
            sys.stdout.flush()
            self._shown = text

    def _erase(self) -> None:
        if self._shown:
            sys.stdout.write("\r" + " " * (len(self._shown) + 4) + "\r")
            self._shown = ""


# ----------------------------------------------------------------------------------------------- supervisor


class Supervisor:
    """Starts the children, watches them, starts again what dies, and stops them all. run() is its one thread."""

    def __init__(self, config: Config, plan: Plan, programs: str = HERE):
        self._config = config
        self._plan = plan
        self._programs = programs  # the folder of backend.py and balancer.py
        self._console = Console()
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (child, run, facts); a signal's number
        self._backends = [self._backend(index) for index in range(plan.backends)]
        self._balancer = Child("Balancer", self._balancer_arguments(), self._environment(), self._events)
        self._announced = False
        self._seen: Set[str] = set()  # the URLs of the backends that the balancer has found up

    def run(self) -> int:
        """Run until a signal, or until nothing is left that could serve. Returns the exit status."""
        process.on_signals(self._events.put)
        for child in self._children():
            child.start()
        try:
            while True:
                self._start_what_is_due()
                event = self._next_event()
                if isinstance(event, int):
                    return self._stop()
                if event:
                    self._handle(*event)
                if self._balancer.given_up or all(child.given_up for child in self._backends):
                    self._console.say("❌ Nothing is left that could serve: stopping.")
                    self._stop()
                    return 1
        finally:
            for child in self._children():
                child.kill()

    # ---- what is started

    def _children(self) -> List[Child]:
        return self._backends + [self._balancer]

    def _backend(self, index: int) -> Child:
        config, plan = self._config, self._plan
        arguments = [
            os.path.join(self._programs, "backend.py"),
            "--child",
            "--host=" + config.backend_host,
            "--port=%d" % (config.base_port + index),
            "--models=" + os.path.dirname(plan.model.path),
            "--model=" + plan.model.name,
            "--slots=%d" % plan.slots,
            "--threads=%d" % plan.threads[index],
        ]
        arguments += options.as_arguments(config, _BACKEND_OPTIONS)
        return Child("Backend %d" % (index + 1), arguments, self._environment(), self._events)

    def _balancer_arguments(self) -> List[str]:
        config = self._config
        program = os.path.join(self._programs, "balancer.py")
        arguments = [program, "--child", "--host=" + config.host, "--port=%d" % config.port]
        arguments += [
            "--backend=" + service.http_url(config.backend_host, config.base_port + i)
            for i in range(self._plan.backends)
        ]
        return arguments + list(options.as_arguments(config, _BALANCER_OPTIONS))

    def _environment(self) -> Dict[str, str]:
        """Return the children's environment: ours, and the API keys, which a command line would show to everybody."""
        environment = dict(os.environ, PYTHONIOENCODING="utf-8")
        if self._config.api_key:
            environment[options.PREFIX + "API_KEY"] = ",".join(self._config.api_key)
        return environment

    # ---- events

    def _next_event(self) -> Any:
        """Return the next event, or None when a restart is due or half a second has passed (see process.next_item)."""
        due = [child.restart_at for child in self._children() if child.restart_at is not None]
        patience = min([0.5] + [max(0.0, moment - time.monotonic()) for moment in due])
        try:
            return self._events.get(timeout=patience)
        except queue.Empty:
            return None

    def _start_what_is_due(self) -> None:
        for child in self._children():
            if child.restart_at is not None and child.restart_at <= time.monotonic():
                child.start()

    def _handle(self, child: Child, run: int, facts: Dict[str, Any]) -> None:
        if run != child.run:
            return  # an earlier run's last words
        handler = getattr(self, "_on_" + str(facts.get("event")), None)
        if handler:
            handler(child, facts)
        self._show_progress()
        self._announce_once()

    def _on_log(self, child: Child, facts: Dict[str, Any]) -> None:
        self._console.say("[%s] %s" % (child.name.lower(), facts["line"]))

    def _on_listening(self, child: Child, facts: Dict[str, Any]) -> None:
        child.url = facts["url"]
        if child is self._balancer:
            child.ready_at = time.monotonic()

    def _on_loading(self, child: Child, facts: Dict[str, Any]) -> None:
        child.loading, child.progress = facts["model"], 0.0

    def _on_progress(self, child: Child, facts: Dict[str, Any]) -> None:
        child.progress = facts["share"]

    def _on_failed(self, child: Child, facts: Dict[str, Any]) -> None:
        child.loading = ""

    def _on_up(self, child: Child, facts: Dict[str, Any]) -> None:
        self._seen.add(facts["url"])

    def _on_ready(self, child: Child, facts: Dict[str, Any]) -> None:
        child.loading = ""
        child.ready_at = child.ready_at or time.monotonic()
        line = "🟢 %s: %s (PID %d) %s loaded in %.1f s"
        self._console.say(line % (child.name, child.url, child.pid, facts["model"], facts["seconds"]))

    def _on_exit(self, child: Child, facts: Dict[str, Any]) -> None:
        """Start a dead child again: in safe mode, after a while, or not any more."""
        status = facts["status"]
        word, cause = child.cause_of_death(status)
        if word in _CRASHES and child.loading and not child.safe:
            return self._restart_in_safe_mode(child, word)
        worked = time.monotonic() - child.ready_at if child.ready_at else 0.0
        hopeless = status in HOPELESS
        delay = None if hopeless else child.policy.died(worked)
        child.ready_at = None
        if delay is None:
            child.given_up = cause
            tries = "" if hopeless else " %d times in a row" % MOST_QUICK_DEATHS
            self._console.say("❌ %s died%s; not starting it again: %s" % (child.name, tries, cause))
        else:
            child.restart_at = time.monotonic() + delay
            self._console.say("🔴 %s died: %s. Starting it again in %g s." % (child.name, cause, delay))

    def _restart_in_safe_mode(self, child: Child, word: str) -> None:
        """Restart a backend that crashed while testing a model; from now on all backends start in safe mode."""
        if "--safe-mode" in child.arguments:
            self._console.say("🛟 %s crashed (%s) in the same way: safe mode, too." % (child.name, word))
        else:
            self._console.say(
                "🛟 %s crashed (%s) in its first test of %s: this machine can't run that build of llama.cpp at full "
                "speed. Restarting it in safe mode, about 20 %% slower; README.md has the cure under 'Crash at first "
                "decode'." % (child.name, word, child.loading)
            )
            for each in self._backends:
                each.arguments.append("--safe-mode")
        child.ready_at = None
        child.start()

    def _show_progress(self) -> None:
        loading = ["%s %.0f %%" % (each.name, each.progress * 100) for each in self._backends if each.loading]
        self._console.progress("⏳ Loading %s: %s" % (self._plan.model.name, ", ".join(loading)) if loading else "")

    def _announce_once(self) -> None:
        """Say where the service is, once everything has come up that will."""
        ready = {child.url for child in self._backends if child.ready_at}
        if self._announced or not ready or not ready <= self._seen:
            return
        if not all(child.settled for child in self._children()):
            return
        self._announced = True
        self._console.say("🚀 ComeAPI: %s (PID %d)" % (self._balancer.url, self._balancer.pid))
        self._console.say("   Try: " + _curl(self._balancer.url, self._plan.model.name, bool(self._config.api_key)))

    # ---- the end

    def _stop(self) -> int:
        """Stop the balancer, then the backends, so that running requests finish; a second signal stops at once."""
        grace = self._config.drain_timeout
        self._console.say("⏹  Stopping: running requests get up to %g s (Ctrl-C again to stop at once)" % grace)
        deadline = time.monotonic() + grace + 5
        for group in ([self._balancer], self._backends):
            for child in group:
                child.ask_to_stop()
            while not all(child.wait(0) for child in group):
                event = self._events.get(timeout=0.5) if not self._events.empty() else None
                if isinstance(event, int) or time.monotonic() > deadline:
                    return 1  # run() kills what is left
                if event is None:
                    group[0].wait(0.1)
        self._console.say("✅ Stopped.")
        return 0


_BACKEND_OPTIONS = [
    each.name for each in dataclasses.fields(EngineSettings) if each.name not in ("slots", "threads")
] + ["max_body", "access_log", "drain_timeout"]
_BALANCER_OPTIONS = [each.name for each in dataclasses.fields(RelaySettings)] + [
    each.name for each in dataclasses.fields(service.Config) if each.name not in ("host", "port", "api_key")
]


def _curl(url: str, model: str, key: bool) -> str:
    """Return a command to paste, quoted so that every shell takes it."""
    body = json.dumps({"model_name": model, "prompt": "Once upon a time in a magical forest,"})
    header = " -H 'Authorization: Bearer YOUR_KEY'" if key else ""
    quoted = "'%s'" % body if os.name != "nt" else '"%s"' % body.replace('"', '\\"')
    return "curl %s/generate%s -d %s" % (url, header if os.name != "nt" else header.replace("'", '"'), quoted)


# ------------------------------------------------------------------------------------------------ the program


def main() -> NoReturn:
    """Plan, check, start, watch."""
    process.prepare_terminal()
    if sys.argv[1:2] == ["bench"]:
        sys.exit(bench.main(sys.argv[2:]))
    config = options.parse(Config, __doc__, ("models", "backend_host", "base_port", "backends"))
    try:
        folder, name = locate(config.models, config.model)
        model = choose(folder, name)
    except BadModel as problem:
        options.fail(str(problem))
    plan = make_plan(config, model, machine.cores(), machine.available_memory(), _probe_gpu())
    _check_ports(config, plan)
    for host in sorted({config.host, config.backend_host}):
        process.warn_if_open(dataclasses.replace(config, host=host))
    for note in plan.notes:
        print(note, flush=True)
    sys.exit(Supervisor(config, plan).run())


def _probe_gpu() -> bool:
    """Ask a backend whether llama-cpp-python is there and can use a GPU. Ends the program where it is not there."""
    command = [sys.executable, os.path.join(HERE, "backend.py"), "--probe"]
    probe = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        return bool(json.loads(probe.stdout.decode("utf-8"))["gpu"])
    except (ValueError, KeyError):
        said = probe.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[-1].replace("backend.py: error: ", "") if said else "it ended with status %d" % probe.returncode
        options.fail(why)


def _check_ports(config: Config, plan: Plan) -> None:
    """End the program where a port is taken, before anything is started."""
    wanted = [(config.backend_host, config.base_port + i, "--base-port") for i in range(plan.backends)]
    wanted.append((config.host, config.port, "--port"))
    if any(port > 65535 for _, port, _ in wanted):
        options.fail("there are not so many ports above %d" % config.base_port)
    ports = [port for _, port, _ in wanted]
    if len(set(ports)) < len(ports):
        options.fail("the balancer's port %d is also a backend's; choose another with --port" % config.port)
    for host, port, option in wanted:
        try:
            _try_to_bind(host, port)
        except OSError as error:
            why = error.strerror or error
            options.fail("can't listen on %s port %d: %s; choose another with %s" % (host, port, why, option))


def _try_to_bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


if __name__ == "__main__":
    main()

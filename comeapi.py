#!/usr/bin/env python3
"""The whole system in one command: a folder of models in, a load-balanced LLM service out.

    python comeapi.py                              models in ./models, backends on 8080, 8081, …, balancer on 9000
    python comeapi.py models 127.0.0.1 8080 5      five backends, by position
    python comeapi.py --backends 5 --slots 1       five backends that run one request each
    python comeapi.py pull Qwen/Qwen3-4B-GGUF      get a model
    python comeapi.py chat                         talk to it; status: how it is
    python comeapi.py bench                        how fast this machine is, in these and other shapes
    python comeapi.py tune                         what runs the model fastest here, kept for the next start
    python comeapi.py COMMAND --help               a command: bench, chat, doctor, offline, pull, status, tune

It plans how many backends, slots and threads fit this machine, starts the backends and the balancer as processes of
their own, watches them, starts again what dies, and stops everything when it is told to. It never imports them.

    Config    the settings          core/system/     what is planned, started and watched
    main      plan, check, start    core/commands/   the subcommands
"""

import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any, Dict, NoReturn, Sequence

from core import hardware, memory, options, process, tuned
from core.balancing.settings import RelaySettings
from core.http import server
from core.http.listening import activated, listening_sockets
from core.models import BadModel, BrokenModel, ModelFile, choose, locate
from core.notify import Notifier
from core.opening import attempts
from core.options import between, setting
from core.settings import CarrySettings, ChatSettings, EngineSettings, FolderSettings, ResponseSettings
from core.system.launch import ROOT, own_environment
from core.system.plan import Plan, make_plan
from core.system.supervisor import Supervisor

# Each is a file in core/commands/, imported only where it is asked for.
COMMANDS = ("bench", "chat", "doctor", "offline", "pull", "status", "tune")
HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class Config(
    server.ServerConfig, RelaySettings, EngineSettings, ChatSettings, FolderSettings, ResponseSettings, CarrySettings
):  # fmt: skip
    """The system's settings. Where a number is 0, the plan chooses. `host` and `port` are the balancer's."""

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


# ------------------------------------------------------------------------------------------------ the program

_POSITIONAL = ("models", "backend_host", "base_port", "backends")


def main() -> NoReturn:
    """Plan, check, start, watch."""
    process.prepare_terminal()
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        importlib.import_module("core.commands." + sys.argv[1]).main(sys.argv[2:])
        sys.exit()
    notifier = Notifier()
    config = activated(options.parse(Config, __doc__, _POSITIONAL))
    model = _first_model(config, notifier)
    build = _probe_build()
    choices, note = tuned.read(model, str(build["version"]), options.named(Config, _POSITIONAL))
    config = replace(config, **choices)
    plan = make_plan(config, model, hardware.cores(), memory.available_memory(), bool(build["gpu"]))
    if note:
        print(note, flush=True)
    _check_ports(config, plan)
    listening = _listen(config)
    process.warn_if_open(config)  # the backends are never open: see core/system/launch.py
    for note in plan.notes:
        print(note, flush=True)
    process.leave(Supervisor(config, plan, HERE, listening, notifier).run())


def _first_model(config: Config, notifier: Notifier) -> ModelFile:
    """Return the model to load. Where its file is broken, wait for a good one; where there is none, end the program."""
    try:
        folder, name = locate(config.models, config.model)
        return choose(folder, name)
    except BrokenModel as problem:
        return _wait_for_model(folder, name, str(problem), notifier)
    except BadModel as problem:
        options.fail("%s%s" % (problem, _model_advice(config)))


def _model_advice(config: Config) -> str:
    """Return what to type where there is no model to load."""
    if config.models and not os.path.exists(config.models) and not os.path.dirname(config.models):
        return ", and there is no command %s; the commands: %s" % (config.models, ", ".join(COMMANDS))
    if config.model:
        return "; without --model, the first one is loaded"
    folder = " --models %s" % config.models if config.models else ""
    return "; get one: python comeapi.py pull Qwen/Qwen3-4B-GGUF:Q4_K_M%s" % folder


def _wait_for_model(folder: str, name: str, told: str, notifier: Notifier) -> ModelFile:
    """Return the model as soon as its file is good; `told` says what is wrong with it. Ctrl-C ends the program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        print("🟠 %s. Waiting for a good file; Ctrl-C stops." % told, flush=True)
        notifier.ready("waiting for a good model file: %s" % told)
        for _ in attempts(folder):
            try:
                return choose(folder, name)
            except BadModel as problem:
                if str(problem) != told:
                    told = str(problem)
                    print("🟠 %s. Waiting for a good file." % problem, flush=True)
    except KeyboardInterrupt:
        pass
    print("✅ Stopped.", flush=True)
    process.leave(0)


def _probe_build() -> Dict[str, Any]:
    """Return llama-cpp-python's `version`, and whether it can use a `gpu`. Ends the program without it."""
    command = [sys.executable, "-m", "core.engine.llama.build"]
    probe = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=own_environment(),
    )  # fmt: skip
    try:
        build = json.loads(probe.stdout.decode("utf-8"))
        return {"gpu": build["gpu"], "version": build["version"]}
    except (ValueError, KeyError):
        said = probe.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[-1] if said else "it ended with status %d" % probe.returncode
        options.fail(
            "llama-cpp-python can't be used: %s. Install it with: pip install llama-cpp-python; what this machine "
            "lacks: python comeapi.py doctor" % why
        )


def _check_ports(config: Config, plan: Plan) -> None:
    """End the program where a backend's port is taken, or two are the same, before anything is started."""
    wanted = [(config.backend_host, config.base_port + i, "--base-port") for i in range(plan.backends)]
    wanted.append((config.host, config.port, "--port"))
    if any(port > 65535 for _, port, _ in wanted):
        options.fail("there are not so many ports above %d; choose a lower --base-port" % config.base_port)
    ports = [port for _, port, _ in wanted]
    if len(set(ports)) < len(ports):
        free = config.base_port + plan.backends
        options.fail(
            "the balancer's port %d is also a backend's; choose another with --port, for example: "
            "python comeapi.py --port %d" % (config.port, free)
        )
    for host, port, option in wanted[:-1]:
        try:
            _try_to_bind(host, port)
        except OSError as error:
            _fail_to_listen(host, port, error, option)


def _listen(config: Config) -> Sequence[socket.socket]:
    """Return the balancer's listening sockets, to hand on to each balancer; none where the system can't do that.

    Ends the program where the port is taken.
    """
    try:
        if os.name == "posix":
            return listening_sockets(config)
        _try_to_bind(config.host, config.port)
    except OSError as error:
        _fail_to_listen(config.host, config.port, error, "--port")
    return ()


def _fail_to_listen(host: str, port: int, error: OSError, option: str) -> NoReturn:
    why, other = error.strerror or error, port + 100 if port + 100 <= 65535 else port - 100
    advice = "choose another with %s, for example: python comeapi.py %s %d" % (option, option, other)
    if error.errno == errno.EADDRINUSE:
        advice += "; if it is ComeAPI that runs there: python comeapi.py status"
    options.fail("can't listen on %s port %d: %s; %s" % (host, port, why, advice))


def _try_to_bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


if __name__ == "__main__":
    main()

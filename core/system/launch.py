"""How the backends and the balancer are started: their command lines, their environments, the keys between them.

    Launch(config, plan, programs).backend(index)     one backend's Command
    Launch(config, plan, programs).balancer(numbers)  the balancer's, with the descriptors that it inherits
    own_environment()                                 this process' environment, without options of ours
    ROOT                                              where `python -m core.…` is started

Keys go by the environment, since a command line would show them to every user of the machine.
"""

import dataclasses
import os
import secrets
from typing import Any, Dict, List, NamedTuple, Sequence

from core import options, process
from core.balancing.settings import RelaySettings
from core.http import server
from core.http.messages import http_url, local_host
from core.settings import ChatSettings, EngineSettings, ResponseSettings
from core.system.plan import Plan

_BACKEND_OPTIONS = [
    each.name
    for settings in (EngineSettings, ChatSettings, ResponseSettings)
    for each in dataclasses.fields(settings)
    if each.name not in ("slots", "threads", "board")
] + [
    "max_body", "access_log", "drain_timeout", "header_timeout", "body_timeout", "write_timeout", "ping_interval",
    "allowed_host",
]  # fmt: skip
_OWN_OPTIONS = ("host", "port", "listen_fd", "api_key")  # that are not passed on to the balancer as they are
_BALANCER_OPTIONS = [each.name for each in dataclasses.fields(RelaySettings)] + [
    each.name for each in dataclasses.fields(server.ServerConfig) if each.name not in _OWN_OPTIONS
]
_CARRY_SECRET = options.PREFIX + "CARRY_SECRET"


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the folder that core/ is in


class Command(NamedTuple):
    """What one process is started with: the arguments after the interpreter, and its environment."""

    arguments: List[str]
    environment: Dict[str, str]


class Launch:
    """Makes the commands of one plan. `config` is comeapi.py's, `programs` the folder of backend.py and balancer.py.

    `board` is the name of the file in which the backends note who computes (BoardFile in core/board.py), which they
    inherit; "" where they lend no threads.
    """

    def __init__(self, config: Any, plan: Plan, programs: str, board: str = ""):
        self._config = config
        self._plan = plan
        self._programs = programs
        self._board = board
        self._secret = secrets.token_urlsafe(32)  # the key that our balancer shows to our backends
        self._carry_secret = config.carry_secret or secrets.token_urlsafe(32)

    def backend(self, index: int) -> Command:
        """Return what the backend with this number, from 0, is started with."""
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
        if self._board:
            arguments.append("--board=%s:%d" % (self._board, index))
        return Command(arguments + list(options.as_arguments(config, _BACKEND_OPTIONS)), self._backend_environment())

    def urls(self) -> List[str]:
        """Return the URLs by which the balancer knows the backends."""
        host = local_host(self._config.backend_host)
        return [http_url(host, self._config.base_port + index) for index in range(self._plan.backends)]

    def balancer(self, listen_fds: Sequence[int] = (), holder_fds: Sequence[int] = ()) -> Command:
        """Return what the balancer is started with.

        It inherits the listening sockets `listen_fds`, and in `holder_fds` the one to the Holder, where there is one.
        """
        config = self._config
        program = os.path.join(self._programs, "balancer.py")
        arguments = [program, "--child", "--host=" + config.host, "--port=%d" % config.port]
        arguments += ["--listen-fd=%d" % number for number in listen_fds]
        arguments += ["--holder-fd=%d" % number for number in holder_fds]
        arguments += ["--backend=" + url for url in self.urls()]
        return Command(arguments + list(options.as_arguments(config, _BALANCER_OPTIONS)), self._balancer_environment())

    def _backend_environment(self) -> Dict[str, str]:
        """Return a backend's environment: ours without its options, which are ours or the balancer's."""
        environment = dict(own_environment(), **{_CARRY_SECRET: self._carry_secret})
        if self._backends_are_locked():
            environment[options.PREFIX + "API_KEY"] = ",".join([*self._config.api_key, self._secret])
        return environment

    def _balancer_environment(self) -> Dict[str, str]:
        """Return the balancer's environment: ours, with the clients' keys, and with the key to the backends."""
        environment = dict(os.environ, PYTHONIOENCODING="utf-8", **{_CARRY_SECRET: self._carry_secret})
        if self._config.api_key:
            environment[options.PREFIX + "API_KEY"] = ",".join(self._config.api_key)
        if self._backends_are_locked():
            environment[options.PREFIX + "BACKEND_KEY"] = self._secret
        return environment

    def _backends_are_locked(self) -> bool:
        """Whether the backends ask for a key: where the clients have one, and where other machines reach them."""
        return bool(self._config.api_key) or not process.is_loopback(self._config.backend_host)


def own_environment() -> Dict[str, str]:
    """Return our environment without options of ours: a child that read them would not be the one that is planned."""
    taken = (options.PREFIX, "LLAMA_ARG_", "LLAMA_API_KEY")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    return dict(environment, PYTHONIOENCODING="utf-8")

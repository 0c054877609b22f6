"""The servers that bench.py measures, as processes: our programs in any shape, and llama.cpp's own server.

    chosen(config)                                                               the model to serve
    with served(model, config, [(threads, slots), …], balanced) as service       backends, a balancer in front of them
    with peer_served(model, config, threads, slots) as service                   llama-server

`config` is bench's. A program that ends before it is ready ends this one, with a message.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from core import hardware, options
from core.board import BoardFile
from core.commands.driving import ask, numbers, room
from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.models import BadModel, ModelFile, choose, locate
from core.system.launch import ROOT


@dataclass
class Service:
    """What is measured: a backend, a balancer in front of some, or another server."""

    url: str
    pids: List[int]
    tokens_per_number: float  # of a prompt; it depends on the model's vocabulary
    backend: str = ""  # the first one's own address; "" where it is another server

    def engine_seconds(self) -> Dict[str, float]:
        """Return what the first backend's engine has spent its time on; nothing where that is not told."""
        if not self.backend:
            return {}
        client = Client()
        facts = json.loads(client.open(self.backend + "/status").read_and_close().decode("utf-8"))
        client.close()
        return facts["engine_seconds"]

    def prompt(self, start: int, tokens: int) -> str:
        """Return a prompt of its own of about so many tokens."""
        return numbers(start, max(1, round(tokens / self.tokens_per_number)))


def chosen(config: Any) -> ModelFile:
    """Return the model that the options name. Ends the program where there is none."""
    try:
        return choose(*locate(config.models, config.model))
    except BadModel as problem:
        options.fail(str(problem))


@contextlib.contextmanager
def served(
    model: ModelFile,
    config: Any,
    shapes: List[Tuple[int, int]],
    balanced: bool = False,
    context: int = 0,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Service]:
    """Run a backend for each (threads, slots), and a balancer in front where there is to be one.

    `more` are other settings of the backends, by their names.
    """
    context = context or room(config)
    running: List[subprocess.Popen] = []
    lends = sum(threads for threads, _ in shapes) <= hardware.cores()
    board = BoardFile([threads for threads, _ in shapes])
    try:
        urls = []
        for index, (threads, slots) in enumerate(shapes):
            arguments = ["--port=0", "--models=" + os.path.dirname(model.path), "--model=" + model.name]
            arguments += ["--threads=%d" % threads, "--slots=%d" % slots, "--ctx-size=%d" % context]
            arguments += ["--safe-mode"] if config.safe_mode else []
            arguments += ["--" + _flag(name, value) for name, value in more.items() if value is not False]
            arguments += ["--board=%s:%d" % (board.name, index)] if lends else []
            running.append(_start("backend.py", arguments, board.descriptors))
        for process in running:
            urls.append(_wait_for(process, "listening")["url"])
            _wait_for(process, "ready")
        url = urls[0]
        if balanced:
            running.append(_start("balancer.py", ["--port=0"] + ["--backend=" + each for each in urls]))
            url = _wait_for(running[-1], "listening")["url"]
            _wait_for_all(url, len(urls))
        yield Service(url, [process.pid for process in running], _tokens_per_number(urls[0]), urls[0])
    finally:
        board.close()
        for process in reversed(running):
            if process.stdin:
                process.stdin.close()
        for process in running:
            process.wait()
            if process.stdout:
                process.stdout.close()


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    return flag if value is True else "%s=%s" % (flag, value)


def _tokens_per_number(url: str) -> float:
    return ask(url, numbers(0, 4), 1).summary["tokens_evaluated"] / 4


@contextlib.contextmanager
def peer_served(model: ModelFile, config: Any, threads: int, slots: int, context: int = 0) -> Iterator[Service]:
    """Run llama-server, with the same threads, slots and context for each."""
    context = context or room(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [config.peer, "-m", model.path, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(threads), "-np", str(slots), "-c", str(slots * context)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = "http://127.0.0.1:%d" % port
        if not _answers(process, url):
            options.fail("%s ended with status %d" % (config.peer, process.returncode))
        yield Service(url, [process.pid], _tokens_per_number(url))
    finally:
        process.terminate()
        process.wait()


def _answers(process: subprocess.Popen, url: str) -> bool:
    """Wait until a server has loaded its model; False where its process ends before."""
    client = Client()
    while process.poll() is None:
        with contextlib.suppress(Unreachable, Broken, Slow):
            answer = client.open(url + "/health", timeout=5)
            answer.read_and_close()
            if answer.status == 200:
                return True
        time.sleep(0.1)
    return False


def _start(program: str, arguments: List[str], descriptors: Sequence[int] = ()) -> subprocess.Popen:
    command = [sys.executable, os.path.join(ROOT, program), "--child", "--drain-timeout=1"] + arguments
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors)


def _wait_for(process: subprocess.Popen, what: str) -> Dict[str, Any]:
    """Return a child's announcement of `what`. Ends the program if the child ends first."""
    for line in process.stdout or ():
        facts = json.loads(line.decode("utf-8"))
        if facts["event"] == what:
            return facts
    status = process.wait()
    options.fail("a process ended with status %d before it was ready%s" % (status, advice(status)))


def advice(status: int) -> str:
    """Return what may help where a process has ended with this status."""
    return "; with --safe-mode it may work (README.md, 'Crash at first decode')" if status < 0 else ""


def _wait_for_all(url: str, count: int) -> None:
    """Wait until a balancer has found all its backends up."""
    client = Client()
    while json.loads(client.open(url + "/status").read_and_close().decode("utf-8"))["healthy_backends"] < count:
        time.sleep(0.05)
    client.close()

"""Looks at this machine, and says what is well, what is not, and what to do about it.

    python comeapi.py doctor             in words
    python comeapi.py doctor --json      for programs

It looks at Python, llama-cpp-python's build and whether that runs quantized models here, the processor, the memory and
how fast it is, the ports, and the models: how many backends of each fit, and the tokens per second that the memory
allows. Exit status: 0 when the service can run, 1 when something must be done first.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any, Iterator, List

from core import options
from core.commands import checks, machine
from core.commands.bandwidth import read_bandwidth
from core.commands.checks import GOOD, PROBLEM, Finding
from core.hardware import cores, processor
from core.memory import available_memory
from core.models import BadModel, ModelFolder, locate
from core.options import between, setting
from core.settings import FolderSettings
from core.terminal import paint

_MARKS = {GOOD: "✅", checks.NOTE: "🟠", PROBLEM: "❌"}
_COLOURS = {GOOD: "green", checks.NOTE: "yellow", PROBLEM: "red"}


@dataclass(frozen=True)
class Config(FolderSettings):
    """What to look at."""

    host: str = setting("127.0.0.1", "the balancer's address", "network")
    port: int = setting(9000, "the balancer's port", "network", check=between(1, 65535))
    base_port: int = setting(8080, "the first backend's port", "network", check=between(1, 65535))
    backends: int = setting(2, "number of backends whose ports are looked at", "network", check=between(1, 256))
    json: bool = setting(False, "say it as JSON", "output")


def main(argv: List[str]) -> None:
    """Look, say what was found, and end the program with status 1 where the service can't run."""
    config = options.parse(Config, __doc__, argv=argv, program="comeapi.py doctor")
    findings: List[Finding] = []
    for finding in _findings(config):
        findings.append(finding)
        if not config.json:
            _print(finding)
    worst = any(each.level == PROBLEM for each in findings)
    if config.json:
        print(json.dumps({"ok": not worst, "findings": [asdict(each) for each in findings]}, indent=1), flush=True)
    elif worst:
        print("\nSomething must be done before the service can run; see ❌.", flush=True)
    else:
        print("\nStart it: python comeapi.py", flush=True)
    sys.exit(1 if worst else 0)


def _findings(config: Config) -> Iterator[Finding]:
    """Look at one thing after another, in the order in which they matter."""
    yield checks.python(sys.version_info, sys.maxsize > 1 << 32, sys.implementation.name)
    trials = machine.trials()
    yield checks.library(trials, machine.tools())
    yield from checks.quantized(trials)
    yield checks.processor(processor(), checks.features(trials))
    yield checks.company(cores(), machine.load())
    memory, rate = available_memory(), read_bandwidth()
    yield checks.memory(memory)
    yield checks.bandwidth(rate)
    for host, port, option in _ports(config):
        yield checks.port(port, option, machine.listener(host, port))
    yield from _models(config, memory, rate, checks.uses_gpu(trials))


def _ports(config: Config) -> Iterator[Any]:
    for number in range(config.backends):
        yield "127.0.0.1", config.base_port + number, "--base-port"
    yield config.host, config.port, "--port"


def _models(config: Config, memory: Any, rate: Any, gpu: bool) -> Iterator[Finding]:
    try:
        folder, _ = locate(config.models, config.model)
        models = ModelFolder(folder).list()
    except (BadModel, OSError) as problem:
        yield checks.no_folder(str(problem))
        return
    yield checks.folder(folder, models, machine.free_disk(folder))
    for model in models:
        yield checks.model(model, memory, rate, gpu)


def _print(finding: Finding) -> None:
    print("%s %s: %s" % (_MARKS[finding.level], paint(finding.name, "bold"), finding.says), flush=True)
    if finding.do:
        print("   → " + paint(finding.do, _COLOURS[finding.level]), flush=True)

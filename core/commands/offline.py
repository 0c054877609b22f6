"""Gathers what a machine without a network needs in one folder: the project, llama-cpp-python, a model.

    python comeapi.py offline ../comeapi-offline                    the model that would be loaded at start
    python comeapi.py offline ../comeapi-offline --model NAME       another one

Carry the folder over; OFFLINE.txt in it holds the one command to run there. That machine needs the same kind of system
and processor as this one, and the same version of Python; no compiler.
"""

import contextlib
import glob
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import List

from core import hardware, options
from core.commands.download import BadDownload, require_room
from core.models import BadModel, ModelFile, choose, locate, other_parts
from core.options import setting
from core.settings import FolderSettings
from core.terminal import paint, size

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROJECT = ("comeapi.py", "backend.py", "balancer.py", "core", "models", "tests", "setup.cfg", "README.md", "LICENSE")
_NOTE = "OFFLINE.txt"
_WHEELS = "wheels"
_WHEELS_SIZE = 100 << 20  # bytes; about
_TEXT = """This folder holds ComeAPI, and all it needs, for a machine without a network. In this folder, run:

    %(command)s

It needs what this was made with: Python %(python)s on %(system)s. %(library)s was built for the processor of the
machine that made this: %(processor)s. If it crashes on another one (SIGILL), make the folder again, with
CMAKE_ARGS=-DGGML_NATIVE=OFF in the environment and without a kept wheel: pip cache remove llama_cpp_python.
"""


@dataclass(frozen=True)
class Config(FolderSettings):
    """What to gather, and where."""

    folder: str = setting("", "the folder to make", "what", metavar="DIR")
    wheel: str = setting(
        "", "a built wheel of llama-cpp-python to take (default: pip's own copy, or pip builds one, for some minutes)",
        "what", metavar="FILE",
    )  # fmt: skip


def main(argv: List[str]) -> None:
    """Gather. Ends the program with status 1 where something can't be had."""
    config = options.parse(Config, __doc__, ("folder",), argv, program="comeapi.py offline")
    if not config.folder:
        options.fail("which folder? For example: python comeapi.py offline ../comeapi-offline", 2)
    target = os.path.abspath(config.folder)
    try:
        folder, name = locate(config.models, config.model)
        model = choose(folder, name)
        _prepare(target, model)
        _copy_project(target)
        _copy_model(model, os.path.join(target, "models"))
        _gather_wheels(config.wheel, os.path.join(target, _WHEELS))
        _write_note(target)
    except (BadModel, BadDownload) as problem:
        options.fail(str(problem))
    except (OSError, shutil.Error) as error:
        options.fail("the folder can't be made: %s" % error)
    print(paint("✅ %s is ready: %s." % (target, size(_size_of(target))), "green"))
    print("   Carry it over; in it, run: %s" % command(), flush=True)


def command() -> str:
    """Return the command that installs and starts everything on the other machine, without a network."""
    python, folder = ("python", ".venv\\Scripts\\") if os.name == "nt" else ("python3", ".venv/bin/")
    install = "%spython -m pip install --no-index --find-links %s llama-cpp-python" % (folder, _WHEELS)
    return "%s -m venv .venv && %s && %spython comeapi.py" % (python, install, folder)


def _prepare(target: str, model: ModelFile) -> None:
    """Make the folder. Raises BadDownload where it holds something else, or its disk is too small."""
    if os.path.isdir(target) and os.listdir(target) and not os.path.exists(os.path.join(target, _NOTE)):
        raise BadDownload("%s holds something else; name an empty folder, or a new one" % target)
    if os.path.commonpath([target, ROOT]) == ROOT:
        raise BadDownload("%s is in the project itself; name a folder outside of it" % target)
    os.makedirs(target, exist_ok=True)
    _write_note(target)  # so that a try that failed can be repeated
    require_room(target, model.size + _WHEELS_SIZE, "the folder")


def _copy_project(target: str) -> None:
    print("The project …", flush=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.gguf", "*.part", "*.part.json", ".*")
    for name in _PROJECT:
        source, copy = os.path.join(ROOT, name), os.path.join(target, name)
        if os.path.isdir(source):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=ignored)
        elif os.path.exists(source):  # a package of the service alone may lack some
            shutil.copyfile(source, copy)


def _copy_model(model: ModelFile, folder: str) -> None:
    print("The model %s, %s …" % (model.name, size(model.size)), flush=True)
    for path in [model.path] + other_parts(model.path):
        shutil.copyfile(path, os.path.join(folder, os.path.basename(path)))


def _gather_wheels(given: str, folder: str) -> None:
    """Get the wheels of llama-cpp-python and of what it needs, by pip. Raises BadDownload."""
    print("llama-cpp-python and what it needs, by pip; building it takes some minutes …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    wanted = os.path.abspath(given) if given else _requirement()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir", folder]
    done = subprocess.run(pip + [wanted], stdin=subprocess.DEVNULL)
    if done.returncode:
        advice = "pip's reason stands above. Without a network, give a built wheel by --wheel FILE"
        raise BadDownload("the wheels can't be had (pip ended with status %d); %s" % (done.returncode, advice))
    if not glob.glob(os.path.join(folder, "llama_cpp_python-*.whl")):
        raise BadDownload("%s is no wheel of llama-cpp-python" % given)


def _requirement() -> str:
    """Return what to ask pip for: the version that is installed here, else the newest."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return "llama-cpp-python==" + metadata.version("llama-cpp-python")
    return "llama-cpp-python"


def _write_note(target: str) -> None:
    wheels = glob.glob(os.path.join(target, _WHEELS, "llama_cpp_python-*.whl"))
    facts = {
        "command": command(),
        "python": "%d.%d" % sys.version_info[:2],
        "system": "%s, %s" % (platform.system(), platform.machine()),
        "library": os.path.basename(wheels[0]) if wheels else "llama-cpp-python",
        "processor": hardware.processor().name,
    }
    with open(os.path.join(target, _NOTE), "w", encoding="utf-8") as note:
        note.write(_TEXT % facts)


def _size_of(folder: str) -> int:
    return sum(
        os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names
    )

"""What surrounds the tests and the programs: settings and proxies of the shell, ignored signals, ASCII, no home."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from conftest import PATIENCE, ROOT, call, free_ports, leave_out_the_users_surroundings, wait_until

from core.http import server
from core.http.client import Client
from core.http.messages import json_reply
from core.http.routing import Route
from core.http.server import Service

# ------------------------------------------------------------------------------------------------ the tests


def test_any_file_of_tests_can_import_conftest_and_its_neighbours():
    """A folder without an __init__.py is on the path: its names are there once. A package hides nothing of Python's.

    So tests/http can't be a package, and only a package can have a conftest.py of its own.
    """
    modules, packages = [], []
    for folder, _, names in os.walk(os.path.join(ROOT, "tests")):
        if "__init__.py" in names:
            packages.append(os.path.basename(folder))
        else:
            modules += [name[:-3] for name in names if name.endswith(".py")]
    assert len(set(modules)) == len(modules) > 30 and "conftest" in modules
    assert not set(packages) & (set(modules) | set(getattr(sys, "stdlib_module_names", ())) | {"core"})


def test_what_the_users_shell_has_set_reaches_no_program(monkeypatch):
    for name in ("COMEAPI_PORT", "http_proxy", "NO_PROXY", "PYTHONWARNINGS", "COLUMNS"):
        monkeypatch.setenv(name, "the user's")
    for name in ("COMEAPI_SOAK_SECONDS", "COMEAPI_FUZZ_CASES"):
        monkeypatch.setenv(name, "the tests'")
    leave_out_the_users_surroundings()
    assert "the user's" not in os.environ.values() and list(os.environ.values()).count("the tests'") == 2


# --------------------------------------------------------------------------------------------- the programs


def test_proxies_are_for_others(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:%d" % free_ports(1))
    near = Service(server.ServerConfig(), [Route("GET", "/", lambda request: json_reply({"near": True}))]).start()
    with contextlib.closing(Client()) as client:
        assert client.open(near.url + "/").read_and_close() == b'{"near": true}'
    near.drain(0)


@pytest.fixture
def barren():
    """Start programs as a shell in the background of nowhere does: signals ignored, ASCII only, a home that is none."""
    running = []

    def start(*command, root=ROOT):
        surroundings = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "HOME": "/nonexistent", "TERM": "dumb"}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
        shell = ["sh", "-c", 'trap "" INT HUP; umask 077; exec "$@"', "sh", sys.executable]
        running.append(
            subprocess.Popen(
                shell + [os.path.join(root, command[0])] + [str(each) for each in command[1:]],
                env=dict(environment, **surroundings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
        return running[-1]

    yield start
    for each in running:
        each.kill()
        each.wait(PATIENCE)
        each.stdout.close()


def catches(pid, number):
    """Whether a process has a handler for a signal. It says where it is a moment before it listens to signals."""
    with open("/proc/%d/status" % pid) as status:
        facts = dict(line.split(":", 1) for line in status)
    return int(facts["SigCgt"], 16) >> (number - 1) & 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells which signals a program listens to")
@pytest.mark.parametrize("name", ["balancer.py", "backend.py", "comeapi.py"])
def test_a_program_with_nothing_to_rely_on_says_where_it_is_and_stops_when_asked(barren, tmp_path, name):
    root = tmp_path / os.fsdecode("プロジェクト of mine".encode("utf-8"))  # this test's own locale may not spell it
    shutil.copytree(os.path.join(ROOT, "core"), str(root / "core"), ignore=shutil.ignore_patterns("__pycache__"))
    (root / "models").mkdir()
    for file in ("balancer.py", "backend.py", "comeapi.py", os.path.join("models", "demo.gguf")):
        shutil.copy(os.path.join(ROOT, file), str(root / file))
    port = free_ports(4)
    ports = {"comeapi.py": ["--base-port", port, "--port", port + 3]}.get(name, ["--port", port])
    program = barren(name, *ports, root=str(root))
    said = []
    too_late = threading.Timer(PATIENCE, program.kill)
    too_late.start()
    for line in program.stdout:
        said.append(line.decode("ascii"))
        if "http://127.0.0.1:%d" % int(ports[-1]) in said[-1]:
            break
    too_late.cancel()
    assert program.poll() is None, said
    page = "/status" if name == "balancer.py" else "/models"  # a folder's path is in it
    assert call("http://127.0.0.1:%d%s" % (int(ports[-1]), page)).status == 200
    wait_until(lambda: catches(program.pid, signal.SIGINT))
    program.send_signal(signal.SIGINT)
    assert program.wait(PATIENCE) == 0, said


STOPPED_AT_ONCE = """
import os, signal, sys
sys.path.insert(0, {root!r})
sys.argv = [{program!r}, *{options!r}]
import {program}
from core import process
wait = process.wait_for_stop
def stopped_before(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return wait(*arguments)
process.wait_for_stop = stopped_before
{program}.main()
"""


@pytest.mark.parametrize("program, options", [("balancer", ("--port", "0")), ("backend", ("--port", "0", "--lazy"))])
def test_a_signal_right_after_the_start_ends_a_program_in_good_order(program, options):
    code = STOPPED_AT_ONCE.format(root=ROOT, program=program, options=options)
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, stdout=subprocess.PIPE)
    assert done.returncode == 0 and b"stopping" in done.stdout

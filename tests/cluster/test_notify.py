"""What systemd is told (sd_notify(3)): ready when it serves, more time while it loads, and no lie when it hangs."""

import os
import shutil
import signal
import socket

import pytest
from conftest import MODELS, call, free_ports
from manager import Ear

from core.notify import Notifier

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd runs on Linux alone")


@pytest.fixture
def ear(tmp_path_factory):
    found = Ear(tmp_path_factory.mktemp("n"))
    yield found
    found.close()


def notifier(ear, **more):
    environ = dict({"NOTIFY_SOCKET": ear.path}, **more)
    made = Notifier(environ)
    assert not environ  # what this program starts is another service, or none
    return made


def at_once(made):
    """Let the next sign of life out, however soon after the last one."""
    made._next = 0.0
    return made


# ---- the messages


def test_a_program_that_loads_or_stops_asks_for_time_and_one_that_serves_does_not(ear):
    made = notifier(ear, WATCHDOG_USEC="20000000", WATCHDOG_PID=str(os.getpid()))
    made.alive()
    made.ready("serves \n demo")
    at_once(made).alive()
    at_once(made).alive(well=False)
    made.stopping()
    made.ready()  # a model that was loaded too late
    at_once(made).alive()
    made.status("the end")
    assert ear.hear("STATUS=the end")
    more = "EXTEND_TIMEOUT_USEC=20000000"
    assert ear.heard == [
        more, "READY=1", "STATUS=serves demo", "WATCHDOG=1", "WATCHDOG=trigger", "STOPPING=1",
        "STATUS=stopping: running requests may finish", more, more, "STATUS=the end",
    ]  # fmt: skip


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_a_unit_without_a_watchdog_hears_no_sign_of_life(ear, variables):
    made = notifier(ear, **variables)
    made.ready()
    at_once(made).alive()
    made.status("next")
    ear.hear("STATUS=next")
    assert ear.heard == ["READY=1", "STATUS=next"]


def test_signs_of_life_are_few_however_often_they_are_given(ear):
    made = notifier(ear, WATCHDOG_USEC="20000000")
    made.ready()
    for _ in range(100):
        made.alive()
    made.status("next")
    ear.hear("STATUS=next")
    assert ear.heard.count("WATCHDOG=1") == 1


def test_a_socket_without_a_path_is_called_by_its_name():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = "comeapi-test-%d" % os.getpid()
        sock.bind("\0" + name)
        sock.settimeout(20)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "@nobody-listens-here", "x" * 300])
def test_where_nobody_listens_nothing_happens(address):
    made = Notifier({"NOTIFY_SOCKET": address} if address else {})
    made.ready("so")
    made.stopping()


# ---- the programs


def test_a_backend_is_ready_when_its_model_is(start, ear):
    backend = start("backend.py", "--port=0", "--threads=1", NOTIFY_SOCKET=ear.path, WATCHDOG_USEC="20000000")
    ready = ear.hear("READY=1")
    assert "demo" in ready[1] and any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in ear.heard)
    ear.hear("WATCHDOG=1")
    backend.process.send_signal(signal.SIGTERM)
    ear.hear("STOPPING=1")
    assert backend.end() == 0


def test_a_backend_that_waits_for_its_model_file_holds_no_unit_up(start, ear, tmp_path):
    with open(os.path.join(MODELS, "demo.gguf"), "rb") as whole, open(tmp_path / "demo.gguf", "wb") as cut:
        cut.write(whole.read(100_000))
    start("backend.py", "--port=0", "--threads=1", "--models", tmp_path, NOTIFY_SOCKET=ear.path)
    assert "Waiting for a good file" in ear.hear("READY=1")[1]
    shutil.copy(os.path.join(MODELS, "demo.gguf"), tmp_path)
    while "loaded in" not in ear.hear("STATUS=")[0]:
        pass


def test_a_backend_without_a_model_to_load_is_ready_when_it_listens(start, ear):
    start("backend.py", "--port=0", "--lazy", NOTIFY_SOCKET=ear.path)
    ear.hear("READY=1")


def test_a_balancer_is_ready_when_it_listens(start, ear):
    balancer = start("balancer.py", "--port=0", "--backends=0", NOTIFY_SOCKET=ear.path, WATCHDOG_USEC="20000000")
    assert "no backend yet" in ear.hear("READY=1")[1]
    ear.hear("WATCHDOG=1")
    balancer.process.send_signal(signal.SIGTERM)
    ear.hear("STOPPING=1")
    assert balancer.end() == 0


def test_comeapi_alone_speaks_for_its_children(start, ear):
    first = free_ports(3)
    options = ["--backends=2", "--threads=1", "--base-port=%d" % first, "--port=%d" % (first + 2)]
    system = start("comeapi.py", *options, NOTIFY_SOCKET=ear.path, WATCHDOG_USEC="20000000")
    assert "in front of 2 backends" in ear.hear("READY=1")[1]
    assert call("http://127.0.0.1:%d/health" % (first + 2)).status == 200
    ear.hear("WATCHDOG=1")
    system.process.send_signal(signal.SIGTERM)
    ear.hear("STOPPING=1")
    assert system.end() == 0
    assert ear.heard.count("READY=1") == 1 == ear.heard.count("STOPPING=1")

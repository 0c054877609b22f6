"""The units of core/balancing/deploy: systemd understands them, and the programs understand what they say.

No systemd runs here: systemd-analyze reads units, systemd-socket-activate hands sockets on as a socket unit does.
"""

import contextlib
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import PATIENCE, ROOT, call, free_ports, wait_until

import backend
import balancer
import comeapi
from core import options, process

FOLDER = os.path.join(ROOT, "core", "balancing", "deploy")
PROGRAMS = {
    "comeapi.service": (comeapi, ("models", "backend_host", "base_port", "backends")),
    "comeapi-balancer.service": (balancer, balancer.POSITIONAL),
    "comeapi-backend@.service": (backend, ("models", "host", "port")),
}
analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")


def read(name):
    """Return a unit's settings, by their names; one that is repeated has a list of all its values."""
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        text = file.read().replace("\\\n", " ")
    found = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def verify(folder, **replaced):
    """Return what systemd-analyze has to say of all units, with the paths of this machine in them."""
    for path in glob.glob(os.path.join(FOLDER, "*.service")) + glob.glob(os.path.join(FOLDER, "*.socket")):
        with open(path, encoding="utf-8") as file:
            text = file.read().replace("/usr/bin/python3 /opt/comeapi", "%s %s" % (sys.executable, ROOT))
        for word, other in replaced.items():
            text = text.replace(word, other)
        (folder / os.path.basename(path).replace("@", "@8080")).write_text(text)
    units = sorted(str(path) for path in folder.iterdir())
    assert len(units) == 5
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )  # fmt: skip
    # Of the machine's own units, which ours are to come after, it may complain, too.
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return [line for line in lines if "comeapi" in line]


@analyze
def test_systemd_has_nothing_to_say_against_the_units(tmp_path):
    assert verify(tmp_path) == []


@analyze
def test_it_would_have_if_a_field_were_spelt_wrong(tmp_path):
    (complaint, *_) = verify(tmp_path, WatchdogSec="WatchDogSeconds")
    assert "WatchDogSeconds" in complaint


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_understand_their_units_and_have_time_to_stop(name, tmp_path):
    unit, (program, positional) = read(name), PROGRAMS[name]
    credentials = unit.get("LoadCredential", [])
    for credential in credentials:
        (tmp_path / credential.split(":")[0]).write_text("a-secret-of-%s\n" % credential.split(":")[0])
    command = unit["ExecStart"].replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)).replace("%i", "8080")
    python, path, *arguments = shlex.split(command)
    assert (python, path) == ("/usr/bin/python3", "/opt/comeapi/%s.py" % program.__name__)
    config = options.parse(program.Config, "A program.", positional, argv=arguments, environ={})
    assert config.carry_secret if credentials else config.port == 9000
    grace = getattr(config, "drain_grace", 0.0)
    assert int(unit["TimeoutStopSec"]) > grace + config.drain_timeout + process.STOP_SECONDS + 1
    assert unit["RestartPreventExitStatus"].split() == ["2", str(process.BOOT_FAILURE)]
    assert unit["Type"] == "notify" and float(unit["WatchdogSec"]) > 5 * process.PULSE_SECONDS


@pytest.mark.parametrize("name", ["comeapi", "comeapi-balancer"])
def test_a_socket_and_its_service_belong_together(name):
    service = read(name + ".service")
    assert service["Requires"] == name + ".socket" and name + ".socket" in service["After"].split()
    assert read(name + ".socket")["ListenStream"].split(":")[-1] == "9000"


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate here")
@pytest.mark.parametrize("command", [("balancer.py", "--backends=0"), ("backend.py", "--threads=1", "--lazy")], ids=str)
def test_systemds_own_tool_hands_a_socket_on(command):
    port, (name, *arguments) = free_ports(1), command
    url = "http://127.0.0.1:%d" % port
    program = subprocess.Popen(
        ["systemd-socket-activate", "--listen=127.0.0.1:%d" % port, "--setenv=PYTHONDONTWRITEBYTECODE=1",
         sys.executable, os.path.join(ROOT, name), "--port=1", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: _answers(url))  # the first connection starts it, and is its first client
        assert call(url + "/live").status == 200
        program.terminate()
        assert program.wait(PATIENCE) == 0
    finally:
        program.kill()
        program.wait(PATIENCE)


def _answers(url):
    with contextlib.suppress(OSError):
        return call(url + "/live").status == 200
    return False

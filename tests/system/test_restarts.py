"""Planned restarts of the backends, and a balancer that is killed: no connection is refused, no request fails."""

import itertools
import os
import re
import signal
import threading
import time
import urllib.error

import hasty
import pytest
from conftest import MODELS, PATIENCE, call, free_ports, running, wait_until

from core.system.rolling import Rolling

STORY = {"model_name": "demo.gguf", "prompt": "Once upon a time in a magical forest,", "max_tokens": 20}
BOSS = {"Authorization": "Bearer boss"}


class System:
    """comeapi.py, running, with shorter limits (hasty.py)."""

    def __init__(self, start, folder, *arguments, **environment):
        base = free_ports(4)
        self.url = "http://127.0.0.1:%d" % (base + 3)
        program = str(hasty.write_programs(folder))
        options = ("--models", MODELS, "--base-port", base, "--port", base + 3)
        self.program = start(program, *options, *arguments, **environment)
        self.wait_for = self.program.wait_for_line
        self.wait_for("🚀")

    def pids(self):
        """Return the number of each process that was announced last under its name."""
        found = {}
        for line in list(self.program.lines):
            match = re.search(r"(Backend \d|ComeAPI|Balancer): \S+ \(PID (\d+)\)", line)
            if match:
                found[match.group(1).replace("ComeAPI", "Balancer")] = int(match.group(2))
        return found

    def generate(self):
        return call(self.url + "/generate", STORY).status


@pytest.fixture
def system(start, tmp_path):
    def make(*arguments, **environment):
        return System(start, tmp_path, *arguments, **environment)

    return make


class Load:
    """Clients that call again and again until the end: when each request began, and what came of it."""

    def __init__(self, ask, clients=6):
        self.outcomes = []
        self._ask = ask
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait_for_more(self, count=20):
        at = len(self.outcomes)
        wait_until(lambda: len(self.outcomes) >= at + count)

    def _run(self):
        while not self._done.is_set():
            began = time.monotonic()
            try:
                outcome = self._ask()
            except OSError as error:
                outcome = error.reason if isinstance(error, urllib.error.URLError) else error
            self.outcomes.append((began, outcome))


# ------------------------------------------------------------------------------------------ the balancer is killed


@pytest.mark.skipif(os.name != "posix", reason="the socket is handed on where the system can do that")
def test_no_connection_is_refused_while_the_balancer_is_dead(system):
    made = system("--backends", 1)
    with Load(lambda: call(made.url + "/status").status) as load:
        for _ in range(2):
            time.sleep(1.1)  # a balancer that has worked for so long is started again at once
            os.kill(made.pids()["Balancer"], signal.SIGKILL)
            killed = time.monotonic()
            made.wait_for("🟢 Balancer")
            load.wait_for_more()
            after = [outcome for began, outcome in load.outcomes if began > killed]
            assert set(after) == {200}
    refused = [outcome for _, outcome in load.outcomes if isinstance(outcome, ConnectionRefusedError)]
    assert not refused
    assert sum(outcome != 200 for _, outcome in load.outcomes) <= 12  # those that ran: one of each client, twice


@pytest.mark.skipif(os.name != "posix", reason="the socket is handed on where the system can do that")
def test_a_balancer_that_dies_is_back_at_once(system):
    made = system("--backends", 1)
    os.kill(made.pids()["Balancer"], signal.SIGKILL)
    assert call(made.url + "/status").status == 200  # it has waited in the backlog
    assert "Starting it again at once" in made.wait_for("Balancer died")


def test_a_balancer_whose_parent_is_killed_leaves_the_port(system):
    made = system("--backends", 1)
    pids = made.pids()
    made.program.process.kill()
    wait_until(lambda: not any(running(pid) for pid in pids.values()))
    with pytest.raises(OSError):
        call(made.url + "/status")


# ------------------------------------------------------------------------------------------ all backends are restarted


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the backends share a file that has a path")
def test_a_folder_for_temporary_files_that_is_emptied_is_no_loss(system, tmp_path):
    """As systemd-tmpfiles does with what is ten days old."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    made = system("--threads", 0, "--backends", 2, TMPDIR=str(folder))
    for path in folder.iterdir():
        path.unlink()
    os.kill(made.pids()["Backend 2"], signal.SIGKILL)
    made.wait_for("🟢 Backend 2")
    made.program.process.send_signal(signal.SIGINT)
    assert made.program.end() == 0 and not made.program.errors


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_rolling_restart_under_load_fails_no_request_and_all_backends_are_new(system):
    made = system("--backends", 2)
    before = made.pids()
    with Load(made.generate) as load:
        made.program.process.send_signal(signal.SIGHUP)
        made.wait_for("🔁 Draining Backend 1")
        made.program.process.send_signal(signal.SIGHUP)
        assert "A restart is under way" in made.wait_for("Asked for another one: ignored.")
        made.wait_for("🔁 Draining Backend 2")
        made.wait_for("🔁 All backends are restarted.")
        load.wait_for_more()
    assert {outcome for _, outcome in load.outcomes} == {200}
    after = made.pids()
    assert after["Balancer"] == before["Balancer"]
    assert not set(before.values()) - {before["Balancer"]} & set(after.values())
    assert not any("died" in line for line in made.program.lines)
    states = [each["state"] for each in call(made.url + "/status").json["backends"]]
    assert states == ["up", "up"]


def test_a_single_backend_is_restarted_while_requests_wait(system):
    made = system("--backends", 1, COMEAPI_ADMIN_KEY="boss")
    before = made.pids()["Backend 1"]
    with Load(made.generate, clients=2) as load:
        answer = call(made.url + "/admin/restart", b"", BOSS)
        assert answer.status == 202
        made.wait_for("its answers wait for its new process")
        made.wait_for("🔁 All backends are restarted.")
        load.wait_for_more(4)
    assert {outcome for _, outcome in load.outcomes} == {200}
    assert made.pids()["Backend 1"] != before


def test_only_the_admin_may_restart_and_only_where_there_is_a_parent(start, system):
    made = system("--backends", 1, COMEAPI_ADMIN_KEY="boss")
    assert call(made.url + "/admin/restart", b"").status == 401
    alone = start("balancer.py", "--port", 0, COMEAPI_ADMIN_KEY="boss")
    url = re.search(r"http://\S+", alone.wait_for_line("⚖️")).group()
    refused = call(url + "/admin/restart", b"", BOSS)
    assert refused.status == 409 and refused.json["error"]["code"] == "no_parent"


# ------------------------------------------------------------------------------------------ step by step


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Part:
    """A backend or a balancer, as Rolling sees it. It ends when it is asked to, unless it is `stubborn`."""

    def __init__(self, name, stubborn=False):
        self.name, self.url, self.pid = name, "http://" + name, 1
        self.run, self.ready_at, self.alive, self.replaced = 1, 1.0, True, False
        self.done, self.told, self._stubborn = [], [], stubborn

    def tell(self, facts):
        self.told.append(facts)

    def ask_to_stop(self):
        self.done.append("asked")
        if not self._stubborn:
            self._end()

    def kill(self, why):
        self.done.append("killed")
        self._end()

    def _end(self):
        assert self.replaced
        self.run += 1
        self.ready_at, self.replaced = None, False


class Steps:
    """A Rolling of some backends, with a balancer that says of each what `state` holds."""

    def __init__(self, *backends):
        self.clock, self.lines, self.balancer = Clock(), [], Part("balancer")
        self.state = {backend.url: {"in_flight": 0, "healthy": True} for backend in backends}
        self.drained = {}
        self.looks = itertools.count()
        self.rolling = Rolling(backends, self.balancer, 30.0, self.lines.append, self.clock)

    def go(self, seconds=3.0):
        """Let some time pass; returns whether it goes on."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            if not self.rolling.step():
                return False
            self.clock.now += 0.05
            while self.balancer.told:
                asked = self.balancer.told.pop(0)
                url = asked["backend"]
                if asked["drain"] is not None:
                    self.drained[url] = asked["drain"]
                draining = self.drained.get(url, False)
                answer = dict(self.state[url], n=asked["n"], draining=draining, last_check=next(self.looks))
                self.rolling.heard(answer)
        return True


def test_the_next_backend_waits_until_the_one_before_is_up():
    first, second = Part("1"), Part("2")
    steps = Steps(first, second)
    assert steps.go(60) and first.done == ["asked"] and second.done == []
    assert steps.drained == {first.url: True}  # it has not been ready yet
    first.ready_at, steps.state[first.url]["healthy"] = steps.clock(), False
    assert steps.go(60) and second.done == [] and steps.drained == {first.url: False}
    steps.state[first.url]["healthy"] = True
    assert steps.go() and second.done == ["asked"]
    second.ready_at = steps.clock()
    assert not steps.go()
    assert steps.drained == {first.url: False, second.url: False}


def test_a_backend_gets_its_time_to_end_its_requests_then_it_is_killed():
    first = Part("1")
    steps = Steps(first, Part("2"))
    steps.state[first.url]["in_flight"] = 1
    assert steps.go(29) and first.done == []
    assert steps.go(3) and first.done == ["killed"]


def test_one_that_nobody_can_stand_in_for_is_not_waited_for():
    first, second = Part("1"), Part("2")
    second.ready_at = None
    steps = Steps(first, second)
    steps.state[first.url]["in_flight"] = 1
    assert steps.go(1) and first.done == ["killed"]


def test_one_that_does_not_stop_is_killed():
    first = Part("1", stubborn=True)
    steps = Steps(first, Part("2"))
    assert steps.go(30) and first.done == ["asked"]
    assert steps.go(10) and first.done == ["asked", "killed"]


def test_what_the_admin_has_drained_stays_drained():
    first = Part("1")
    steps = Steps(first)
    steps.drained[first.url] = True
    assert steps.go() and first.done == ["asked"]
    first.ready_at = steps.clock()
    assert not steps.go()
    assert steps.drained == {first.url: True}


def test_a_backend_that_is_not_running_is_left_alone():
    first = Part("1")
    first.alive = False
    steps = Steps(first)
    assert not steps.go() and first.done == []
    assert "not running" in steps.lines[1]

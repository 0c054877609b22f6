"""What comeapi.py shows below its log: a line for each backend that loads, then one that says how the service is."""

import os
import signal
import threading
import types

import pytest
from conftest import PATIENCE, ROOT, call, free_ports

from core.system.dashboard import Dashboard

ALIVE = {"event": "alive", "busy": 3, "slots": 8, "queued": 0}


class FakeConsole:
    def __init__(self, live):
        self.live, self.said, self.shown = live, [], []

    def say(self, line):
        self.said.append(line)

    def show(self, lines):
        self.shown = list(lines)


class Scene:
    """A dashboard with two backends, and a clock that the test turns."""

    def __init__(self, live=True):
        self.now = 0.0
        self.console = FakeConsole(live)
        self.dashboard = Dashboard(self.console, lambda: self.now)
        self.backends = [
            types.SimpleNamespace(name="Backend %d" % number, loading="", progress=0.0, ready_at=1.0)
            for number in (1, 2)
        ]
        self.balancer = types.SimpleNamespace(name="Balancer")

    def load(self, number, share, seconds):
        child = self.backends[number]
        first = not child.loading
        child.loading, child.progress = "m.gguf", share
        self.now = seconds
        self.dashboard.heard(child, {"event": "loading" if first else "progress"})

    def shows(self, serving=True):
        self.dashboard.show(self.backends, serving)
        return self.console.shown


def test_each_backend_that_loads_has_a_line_of_its_own():
    scene = Scene()
    scene.load(0, 0.5, 0)
    scene.load(1, 1.0, 0)
    first, second = scene.shows()
    assert first.startswith("⏳ Backend 1: loading m.gguf ██████████░") and first.endswith("50 %")
    assert second.startswith("⏳ Backend 2: ") and second.endswith("testing it")
    scene.backends[0].loading = ""
    assert len(scene.shows()) == 1


def test_where_there_is_no_terminal_a_long_load_is_told_now_and_then_and_a_short_one_is_not():
    scene = Scene(live=False)
    for seconds in range(13):
        scene.load(0, seconds / 20, seconds)
    assert scene.console.said == ["⏳ Backend 1: loading m.gguf, %d %%" % share for share in (25, 50)]


def test_one_quiet_line_says_how_the_service_is():
    scene = Scene()
    assert scene.shows() == []
    scene.dashboard.heard(scene.balancer, ALIVE)
    assert scene.shows(serving=False) == []
    assert scene.shows() == ["2 of 2 backends ready · 3 of 8 slots busy"]
    scene.backends[1].ready_at = None
    scene.dashboard.heard(scene.balancer, dict(ALIVE, queued=4))
    assert scene.shows() == ["1 of 2 backends ready · 3 of 8 slots busy · 4 waiting"]


def test_tokens_per_second_are_those_of_all_backends_lately():
    scene = Scene()
    scene.dashboard.heard(scene.balancer, ALIVE)
    for seconds, counts in ((0, (100, 50)), (2, (140, 60)), (4, (140, 61))):
        scene.now = seconds
        for child, count in zip(scene.backends, counts):
            scene.dashboard.heard(child, {"event": "alive", "generated_tokens": count})
        if seconds == 2:
            assert scene.shows()[0].endswith(" · 25 tokens/s")
    assert scene.shows()[0].endswith(" · 0.5 tokens/s")
    scene.now = 6
    scene.dashboard.heard(scene.backends[1], {"event": "alive", "generated_tokens": 3})  # it was started again
    assert "tokens/s" not in scene.shows()[0]


def keep_asking(url, body, enough):
    while not enough.wait(0.1):
        call(url, body)


def test_a_person_at_a_terminal_sees_the_status_below_the_log():
    terminals = pytest.importorskip("terminals")
    base = free_ports(4)
    system, seen = terminals.Terminal("comeapi.py", "--base-port", base, "--port", base + 3), threading.Event()
    try:
        system.wait_for("🚀 ComeAPI")
        system.wait_for("2 of 2 backends ready · 0 of 8 slots busy")
        body = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True}
        asking = threading.Thread(target=keep_asking, args=("http://127.0.0.1:%d/generate" % (base + 3), body, seen))
        asking.start()
        system.wait_for("tokens/s")
        seen.set()
        asking.join(PATIENCE)
        system.process.send_signal(signal.SIGINT)
        assert system.end() == 0
    finally:
        seen.set()
        system.close()
    shown = terminals.screen(system.text)
    assert not any("slots busy" in line for line in shown)  # it was written anew in its place, and taken away
    assert any(line.startswith("✅ Stopped.") for line in shown)
    assert "\x1b[1m🚀" in system.text


def test_a_pipe_gets_whole_lines_and_no_colours(start):
    base = free_ports(4)
    system = start("comeapi.py", "--base-port", base, "--port", base + 3)
    system.wait_for_line("🚀")
    system.process.send_signal(signal.SIGINT)
    assert system.end() == 0
    assert not any("\x1b" in line or "\r" in line or "slots busy" in line for line in system.lines)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_person_who_wants_no_colours_gets_none(environment):
    terminals = pytest.importorskip("terminals")
    system = terminals.Terminal("comeapi.py", os.path.join(ROOT, "nowhere"), **environment)
    assert system.end() == 1 and "does not exist" in system.text and "\x1b[3" not in system.text
    system.close()

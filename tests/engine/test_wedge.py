"""An engine that hangs in a step: it is noticed, told, and ended, and nobody else is taken for one."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import hasty
import pytest
from conftest import PATIENCE, ROOT, call, wait_until
from engines import DEMO, asked, next_event

import core.engine.llama.context
from core.engine.engine import Engine
from core.engine.outcome import Piece
from core.engine.pace import Pace
from core.sampling import Sampling
from core.settings import EngineSettings

BODY = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 20}
QUICKLY_STUCK = ("--step-timeout", 1, "--batch-size", 32)  # a small batch: the self-test allows for no long one


@pytest.fixture
def gate(monkeypatch):
    """llama_decode comes back only while this is set."""
    event = threading.Event()
    event.set()
    decode = core.engine.llama.context.Context.decode

    def guarded(self, chunks):
        assert event.wait(PATIENCE)
        return decode(self, chunks)

    monkeypatch.setattr(core.engine.llama.context.Context, "decode", guarded)
    return event


@pytest.fixture
def engine(gate):
    events = queue.SimpleQueue()
    settings = EngineSettings(threads=1, step_timeout=1.0, batch_size=32)
    engine = Engine(settings, lambda what, **facts: events.put(what))
    engine.start(DEMO)
    while events.get(timeout=PATIENCE) != "ready":
        pass
    yield engine
    gate.set()
    assert engine.stop(PATIENCE)


def look(engine, paused):
    return engine.look(time.monotonic(), paused)


def submit(engine):
    generation = asked(prompt="Once upon a time", max_tokens=5, sampling=Sampling(temperature=0))
    engine.submit(generation)
    return generation


def end_of(generation):
    while True:
        event = next_event(generation)
        if not isinstance(event, Piece):
            return event


def test_a_step_that_does_not_end_is_noticed_and_forgotten_when_it_does(engine, gate):
    assert look(engine, False) == 0
    gate.clear()
    generation = submit(engine)
    wait_until(lambda: look(engine, False) > engine.step_limit())
    gate.set()
    assert end_of(generation).completion_tokens
    wait_until(lambda: look(engine, False) == 0)


def test_a_step_that_lasts_much_longer_than_its_like_stalls_long_before_it_hangs(engine, gate, monkeypatch):
    monkeypatch.setattr("core.engine.engine.STALL_SECONDS", 0.3)
    monkeypatch.setattr(engine, "settings", replace(engine.settings, step_timeout=60.0))
    end_of(submit(engine))
    gate.clear()
    generation = submit(engine)
    wait_until(engine.stalled)
    assert look(engine, False) == 0 and engine.stalled() > 0.3
    engine._stepping.expected = 1.0  # a step from which so much was to be expected
    assert not engine.stalled()
    gate.set()
    assert end_of(generation).completion_tokens
    wait_until(lambda: not engine.stalled())


def test_an_engine_that_has_nothing_to_do_or_loads_does_not_hang(engine):
    engine.heartbeat = time.monotonic() - 1000
    assert look(engine, False) == 0 or engine.busy()
    engine._loading.loading, engine._idle = True, False
    engine.heartbeat = time.monotonic() - 1000
    assert look(engine, False) == 0


def test_a_process_that_was_stopped_did_not_hang(engine, gate):
    gate.clear()
    submit(engine)
    wait_until(lambda: look(engine, False))
    now = time.monotonic()
    assert engine.look(now, True) == 0
    assert look(engine, False) == 0


def test_the_limit_grows_with_the_longest_step(engine, gate):
    assert engine.step_limit() >= 1
    gate.clear()
    generation = submit(engine)
    wait_until(lambda: look(engine, False) > 0.5)
    gate.set()
    end_of(generation)
    assert engine.step_limit() >= 5


def test_a_program_that_has_to_end_ends_though_no_thread_can_run():
    code = "import re, core.process; core.process.end_within(0.3); re.match('(a+)+$', 'a' * 64 + 'b')"  # holds the GIL
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_a_step_should_take_follows_from_its_rows():
    pace = Pace(512)
    assert pace.expect(0, 100) == 0 == pace.expect(4, 0)
    pace.observe(0, 100, 1.0)
    pace.observe(4, 0, 0.2)
    assert pace.expect(0, 50) == pytest.approx(0.5) and pace.expect(4, 0) == pytest.approx(0.2)
    assert pace.expect(4, 50) == pytest.approx(0.7)


# -------------------------------------------------------------------------------------------- the program


@pytest.fixture
def hanging(start, tmp_path):
    """Start a backend, send it a request, and let its engine hang in it."""

    def make(*arguments):
        hasty.write_programs(tmp_path)
        hang = tmp_path / "hang"
        program = str(tmp_path / "backend.py")
        options = ("--child", "--port", 0, "--threads", 1, "--models", os.path.join(ROOT, "models"))
        backend = start(program, *options, *QUICKLY_STUCK, *arguments, HANG_FILE=str(hang))
        backend.url = backend.wait_for_event("listening")["url"]
        backend.wait_for_event("ready")
        hang.write_bytes(b"")
        backend.client = threading.Thread(target=ask, args=(backend.url,), daemon=True)
        backend.client.start()
        backend.told = backend.wait_for_line('"wedged": true')
        return backend

    return make


def ask(url):
    try:
        return call(url + "/generate", BODY).status
    except OSError:
        return None


@pytest.mark.parametrize("how", ["SIGTERM", "end of input"])
def test_a_backend_whose_engine_hangs_says_so_and_can_be_stopped(hanging, how):
    backend = hanging("--drain-timeout", 0.5)
    health = call(backend.url + "/health")
    assert health.status == 503 and health.json["status"] == "wedged"
    assert call(backend.url + "/live").status == 503
    assert health.json["error"]["code"] == "wedged" and "has not ended for" in health.json["error"]["message"]
    assert ask(backend.url) == 503
    asked = time.monotonic()
    if how == "SIGTERM":
        backend.process.send_signal(signal.SIGTERM)
    else:
        backend.process.stdin.close()
    assert backend.end() == 1
    assert time.monotonic() - asked < 0.5 + 5
    assert "the engine hangs: ending without it" in backend.errors
    backend.client.join(PATIENCE)

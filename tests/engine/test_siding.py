"""The siding is made when the first long prompt comes."""

import threading

import pytest
from conftest import LASTING, PATIENCE, wait_until
from engines import RAMBLING, asked, launch, next_event, result, run

from core import memory
from core.engine.aside import ASIDE_TOKENS

LONG = "The little fox went home. Ben saw a big red ball in the garden. " * 20


@pytest.fixture
def engine():
    engine = launch(siding="on", **LASTING)
    yield engine
    engine.stop()


@pytest.fixture
def slow(engine, monkeypatch):
    """Let the siding's context be made only when this event is set."""
    lazy, go = engine._running.resident.lazy_siding, threading.Event()
    make = lazy._make
    monkeypatch.setattr(lazy, "_make", lambda: go.wait(PATIENCE) and make())
    yield go
    go.set()


def is_made(engine):
    return engine._running.resident.siding is not None


def test_short_prompts_make_no_siding_and_the_first_long_one_does(engine):
    run(engine, max_tokens=2)
    assert not is_made(engine)
    assert run(engine, prompt=LONG, max_tokens=2)[2].prompt_tokens > ASIDE_TOKENS
    assert is_made(engine) and engine.tally.counts["prompts_aside"] == 1


def test_streams_and_short_prompts_go_on_while_the_siding_is_made(engine, slow):
    stream, long = asked(max_tokens=8000, sampling=RAMBLING), asked(prompt=LONG, max_tokens=2)
    engine.submit(stream)
    engine.submit(long)
    assert run(engine, max_tokens=20)[2].completion_tokens == 20
    seen = stream.generated
    wait_until(lambda: stream.generated > seen + 20)
    assert long.generated == 0 and not is_made(engine)
    slow.set()
    assert result(long)[2].completion_tokens == 2 and engine.tally.counts["prompts_aside"] == 1
    engine.cancel(stream)


def test_a_long_prompt_can_be_cancelled_while_the_siding_is_made(engine, slow):
    long = asked(prompt=LONG, max_tokens=2)
    engine.submit(long)
    wait_until(lambda: engine.busy() == 1)
    engine.cancel(long)
    wait_until(lambda: engine.busy() == 0)
    assert run(engine, max_tokens=2)[2].completion_tokens == 2 and not is_made(engine)


def test_an_engine_that_stops_while_the_siding_is_made_frees_it(engine, slow):
    long = asked(prompt=LONG, max_tokens=2)
    engine.submit(long)
    wait_until(lambda: [thread for thread in threading.enumerate() if thread.name == "siding's context"])
    assert not engine.stop(timeout=0)
    assert next_event(long).code == "engine_down"
    slow.set()
    assert engine.stop(timeout=PATIENCE)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("siding")]


def test_where_memory_is_short_a_long_prompt_is_evaluated_in_batches_and_the_next_one_tries_again(engine, monkeypatch):
    monkeypatch.setattr(memory, "spare_memory", lambda: 1000)
    expected = run(engine, prompt=LONG, max_tokens=8)[0]
    assert engine.tally.counts["prompts_aside"] == 0 and not is_made(engine)
    monkeypatch.undo()
    assert run(engine, prompt=LONG, max_tokens=8, cache_prompt=False)[0] == expected
    assert engine.tally.counts["prompts_aside"] == 1

"""The siding: it is made after a rest, or when the first prompt comes for it; a quick one takes short ones, too."""

import math
import os
import shutil
import threading

import pytest
from conftest import LASTING, PATIENCE, wait_until
from engines import DEMO, RAMBLING, STORY, asked, launch, next_event, result, run

from core import memory
from core.engine import aside, making, siding
from core.engine.llama import native
from core.models import ModelFile, inspect
from core.settings import EngineSettings

LONG = "The little fox went home. Ben saw a big red ball in the garden. " * 20


@pytest.fixture(autouse=True)
def restless(monkeypatch):
    """Let no siding be made because nothing runs."""
    monkeypatch.setattr(aside, "REST", math.inf)


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


def test_the_siding_is_made_while_nothing_runs(engine, monkeypatch):
    monkeypatch.setattr(aside, "REST", 0.0)
    wait_until(lambda: is_made(engine))
    assert run(engine, prompt=LONG, max_tokens=2)[2].completion_tokens == 2
    assert engine.tally.counts["prompts_aside"] == 1


def test_no_siding_is_made_while_something_runs(engine, monkeypatch):
    stream = asked(max_tokens=8000, sampling=RAMBLING)
    engine.submit(stream)
    wait_until(lambda: stream.generated)
    monkeypatch.setattr(aside, "REST", 0.0)
    seen = stream.generated
    wait_until(lambda: stream.generated > seen + 50)
    assert engine._running.resident.lazy_siding._making is None
    engine.cancel(stream)


def test_short_prompts_make_no_siding_and_the_first_long_one_does(engine):
    run(engine, max_tokens=2)
    assert not is_made(engine)
    assert run(engine, prompt=LONG, max_tokens=2)[2].prompt_tokens > siding.LONG
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
    wait_until(lambda: [thread for thread in threading.enumerate() if thread.name == "siding's maker"])
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


# ---- with weights of its own


@pytest.mark.parametrize(
    "expected, settings, model, features",
    [
        (True, {}, {}, b"AVX2 = 1 | FMA = 1"),
        (False, {}, {}, b"NEON = 1"),
        (False, {}, {}, b"AVX2 = 1 | AMX_INT8 = 1"),
        (False, {}, {"quantization": "Q6_K"}, b"AVX2 = 1"),
        (False, {}, {"sparse": True}, b"AVX2 = 1"),
        (False, {"safe_mode": True}, {}, b"AVX2 = 1"),
        (False, {"no_mmap": True}, {}, b"AVX2 = 1"),
        (False, {"mlock": True}, {}, b"AVX2 = 1"),
        (False, {"prompt_weights": "loaded"}, {}, b"AVX2 = 1"),
        (True, {"prompt_weights": "mapped", "mlock": True}, {"quantization": "Q8_0"}, b"NEON = 1"),
        (False, {"prompt_weights": "mapped"}, {"quantization": "F16"}, b"AVX2 = 1"),
    ],
)
def test_prompts_have_the_files_weights_where_these_have_the_faster_kernels(
    expected, settings, model, features, monkeypatch
):
    monkeypatch.setattr(native.llama_cpp, "llama_print_system_info", lambda: features)
    file = ModelFile("a.gguf", "/a.gguf", 1, **dict({"quantization": "Q4_K"}, **model))
    assert native.maps_for_prompts(EngineSettings(**settings), file) == expected


SHORTS = [
    STORY + " there was a %s who lived in a small house by the big blue sea. One day the %s went to the garden. "
    "The sun was warm, and there was a big tree with red apples. They" % (who, who)
    for who in ("fox", "bear", "girl", "boy", "king")
]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Return an engine as where prompts are faster with weights that are not repacked, and its model's file."""
    monkeypatch.setattr(making, "maps_for_prompts", lambda settings, file: True)
    path = shutil.copy(DEMO.path, str(tmp_path))
    engine = launch(inspect(path), siding="on", **LASTING)
    yield engine, path
    engine.stop()


def told(engine, path, prompt, **ask):
    return run(engine, model=inspect(path), prompt=prompt, max_tokens=8, cache_prompt=False, **ask)


def ready(engine, path):
    """Wait until the siding is there, whose making the first short prompt begins, and takes short ones."""
    told(engine, path, SHORTS[0])
    wait_until(engine._running.resident.lazy_siding._making.done)
    told(engine, path, SHORTS[0])  # while it runs, the engine finds what was made
    assert engine._scheduler.aside_short == siding.SHORT


def test_the_first_short_prompt_does_not_wait_for_the_siding_and_those_after_it_go_there(quick):
    engine, path = quick
    expected, _, end = told(engine, path, SHORTS[0])
    assert siding.SHORT < end.prompt_tokens < siding.LONG and engine.tally.counts["prompts_aside"] == 0
    ready(engine, path)
    before = engine.tally.counts["prompts_aside"]
    assert told(engine, path, SHORTS[0])[0] == expected
    assert engine._running.resident.siding.quick and engine.tally.counts["prompts_aside"] == before + 1


def test_short_prompts_that_come_together_are_answered_as_if_alone(quick):
    engine, path = quick
    ready(engine, path)
    alone = [told(engine, path, prompt)[0] for prompt in SHORTS]
    before = engine.tally.counts["prompts_aside"]
    generations = [asked(model=inspect(path), prompt=prompt, max_tokens=8, cache_prompt=False) for prompt in SHORTS]
    for generation in generations:
        engine.submit(generation)
    assert [result(generation)[0] for generation in generations] == alone
    assert engine.tally.counts["prompts_aside"] == before + len(SHORTS)


def test_short_prompts_do_not_wait_behind_a_long_one(quick, monkeypatch):
    engine, path = quick
    ready(engine, path)
    halted = threading.Event()
    monkeypatch.setattr(engine._running.resident.siding, "run", lambda *_: halted.set())
    long = asked(model=inspect(path), prompt=LONG, max_tokens=2)
    engine.submit(long)
    assert halted.wait(PATIENCE)
    assert told(engine, path, SHORTS[1])[1]
    assert engine._running.resident.siding.generation is long
    monkeypatch.undo()
    assert result(long)[2].completion_tokens == 2


@pytest.mark.parametrize("what", ["replaced", "gone"])
def test_where_the_models_file_is_another_one_by_now_the_siding_has_the_weights_that_are_loaded(quick, what):
    engine, path = quick
    model = inspect(path)
    os.utime(path, (1, 1)) if what == "replaced" else os.remove(path)
    end = run(engine, model=model, prompt=LONG, max_tokens=2)[2]
    assert end.completion_tokens == 2 and engine.tally.counts["prompts_aside"] == 1
    assert not engine._running.resident.siding.quick


def test_where_there_is_no_memory_for_its_weights_the_siding_has_those_that_are_loaded(quick, monkeypatch):
    engine, path = quick
    need = making.aside_bytes(engine.settings, inspect(path), False)
    monkeypatch.setattr(memory, "spare_memory", lambda: need + os.path.getsize(path) - 1)
    assert told(engine, path, LONG)[1]
    assert engine.tally.counts["prompts_aside"] == 1 and not engine._running.resident.siding.quick

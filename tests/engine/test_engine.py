"""The engine, in this process, with the demo model: real llama.cpp, real batches."""

import json
import os
import queue
import random
import shutil
import threading
import time
import types

import pytest
from conftest import LASTING, PATIENCE, in_parallel, wait_until
from engines import DEMO, GREEDY, RAMBLING, STORY, asked, cells_are_known, launch, next_event, result, run

import core.apis.telling
import core.engine.llama.context
from core.apis import generate
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.ask import Ask
from core.engine.engine import Engine
from core.engine.generation import Generation
from core.engine.llama.parameters import context_parameters
from core.engine.outcome import MOST_UNREAD, Finished
from core.errors import APIError
from core.models import ModelFolder
from core.sampling import Sampling
from core.settings import EngineSettings

AUTO, OFF, ON = -1, 0, 1  # llama_flash_attn_type


@pytest.fixture(scope="module")
def engine():
    engine = launch()
    yield engine
    engine.stop()


def test_an_answer_ends_by_itself_or_at_its_limit(engine):
    _, tokens, end = run(engine, prompt="Hello, how are you?", max_tokens=200)
    assert end.reason == "stop" and end.completion_tokens == len(tokens) + 1  # the one that says so has no text
    _, tokens, end = run(engine, max_tokens=7)
    assert end.reason == "length" and end.completion_tokens == len(tokens) == 7


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(engine):
    def story(seed):
        return run(engine, sampling=Sampling(temperature=1.0, seed=seed), max_tokens=40)[0]

    assert story(1) == story(1)
    assert len({story(seed) for seed in range(5)}) > 1


def test_a_seed_is_always_known(engine):
    generation = asked(max_tokens=20, sampling=Sampling(temperature=1.0))
    engine.submit(generation)
    again = run(engine, sampling=Sampling(temperature=1.0, seed=generation.seed), max_tokens=20)
    assert again[0] == result(generation)[0]


def test_requests_share_batches_and_none_disturbs_another(engine):
    prompts = [STORY, "Hello, how are you?", "こんにちは、調子はどうですか？", "むかしむかし、"]
    alone = [run(engine, prompt=prompt, max_tokens=40)[0] for prompt in prompts]
    generations = [asked(prompt=prompt, max_tokens=40) for prompt in prompts]
    for generation in generations:
        engine.submit(generation)
    assert [result(generation)[0] for generation in generations] == alone
    assert engine.tally.largest_batch > 1


def test_more_requests_than_slots_wait_and_all_get_their_answers(engine):
    expected = run(engine, max_tokens=12)[0]
    answers = in_parallel(lambda _: run(engine, max_tokens=12)[0], range(12))
    assert answers == [expected] * 12
    wait_until(lambda: engine.busy() == 0)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine):
    whole, _, _ = run(engine, max_tokens=60)
    stop = whole[10:22]
    text, _, end = run(engine, max_tokens=60, stop=[stop])
    assert text == whole[: whole.index(stop)] and end.reason == "stop"


def test_japanese_comes_in_whole_characters(engine):
    generation = asked(prompt="むかしむかし、", max_tokens=60)
    engine.submit(generation)
    text, _, _ = result(generation)
    assert text and "\ufffd" not in text


def test_a_cancelled_request_frees_its_slot_at_once(engine):
    generations = [asked(max_tokens=100000, sampling=RAMBLING) for _ in range(4)]
    for generation in generations:
        engine.submit(generation)
        next_event(generation)
    for generation in generations:
        engine.cancel(generation)
    wait_until(lambda: engine.busy() == 0)
    assert run(engine, max_tokens=5)[2].reason == "length"


def test_a_waiting_request_can_be_cancelled():
    engine = launch(**LASTING)
    try:
        running = [asked(max_tokens=8000, sampling=RAMBLING) for _ in range(4)]
        waiting = asked()
        for generation in running + [waiting]:
            engine.submit(generation)
        engine.cancel(waiting)
        wait_until(lambda: engine.queued() == 0 and engine.busy() == 4)
        for generation in running:
            engine.cancel(generation)
        wait_until(lambda: engine.busy() == 0)
        assert waiting.channel.get(0) is None
    finally:
        engine.stop()


def resident_memory():
    """This process' memory in bytes; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def storm(engine, rng, count):
    """Send requests of random lengths, a third of them cancelled at random moments; every one must end rightly."""
    generations = []
    for _ in range(count):
        seeded = Sampling(seed=rng.randrange(99))
        generation = asked(prompt=STORY * rng.randrange(1, 11), max_tokens=rng.randrange(1, 120), sampling=seeded)
        try:
            engine.submit(generation)
        except APIError as error:
            assert error.code == "context_length_exceeded"  # the longest do not fit
            continue
        generations.append(generation)
        for each in rng.sample(generations, min(len(generations), 3)):
            if rng.random() < 0.12:
                engine.cancel(each)
    for generation in generations:
        if not generation.cancelled:
            end = result(generation)[2]
            full = end.prompt_tokens + end.completion_tokens >= 96
            assert end.reason == ("length" if full or end.completion_tokens == generation.ask.max_tokens else "stop")
    wait_until(lambda: engine.busy() == engine.queued() == 0)
    return sum(generation.cancelled for generation in generations)


def test_500_requests_of_which_many_are_cancelled_lose_no_slot_no_cell_and_no_memory():
    engine = launch(ctx_size=96, max_queue=1000)
    try:
        rng = random.Random(5)
        cancelled = storm(engine, rng, 250)
        before = resident_memory()
        cancelled += storm(engine, rng, 250)
        assert 120 < cancelled < 400
        assert resident_memory() - before < 8 << 20
        assert cells_are_known(engine)
        assert run(engine, max_tokens=5)[2].completion_tokens == 5
    finally:
        engine.stop()


def test_a_model_that_can_not_give_up_its_last_cells_is_evaluated_anew(monkeypatch):
    real = core.engine.llama.context.llama_cpp.llama_memory_seq_rm
    refuse = lambda memory, slot, first, last: first <= 0 and real(memory, slot, first, last)  # noqa: E731
    engine = launch()
    try:
        expected = [run(engine, prompt=STORY + tail, max_tokens=8, cache_prompt=False)[0] for tail in ("", " a fox")]
        monkeypatch.setattr(core.engine.llama.context.llama_cpp, "llama_memory_seq_rm", refuse)
        for tail, text in zip(("", " a fox"), expected):
            again = run(engine, prompt=STORY + tail, max_tokens=8)
            assert again[0] == text and again[2].cached_tokens == 0
    finally:
        engine.stop()


def test_a_prompt_that_was_evaluated_before_is_not_evaluated_again(engine):
    prompt = STORY + " a small brown fox lived alone" * 10
    first, again = run(engine, prompt=prompt, max_tokens=8), run(engine, prompt=prompt, max_tokens=8)
    assert again[0] == first[0]
    assert again[2].cached_tokens == again[2].prompt_tokens - 1  # the last one gives the first logits
    assert again[2].timings["prompt_n"] == 1
    fresh = run(engine, prompt=prompt, max_tokens=8, cache_prompt=False)
    assert fresh[0] == first[0] and fresh[2].cached_tokens == 0


def test_a_conversation_goes_on_where_it_stood(engine):
    prompt = "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n<|im_start|>assistant\n"
    text, tokens, _ = run(engine, prompt=prompt, max_tokens=40)
    _, _, end = run(engine, prompt=prompt + text + " And then", max_tokens=3)
    assert end.cached_tokens >= 40


def test_requests_that_arrive_together_evaluate_their_common_beginning_once():
    engine = launch(slots=8)
    try:
        common = "The old owl told a long story about the sea. " * 60
        generations = [asked(prompt=common + tail, max_tokens=6) for tail in "abcdefgh"]
        size = len(engine._running.resident.model.prompt_tokens(common, 1000))
        for generation in generations:
            engine.submit(generation)
        ends = [result(generation)[2] for generation in generations]
        assert engine.tally.counts["prompt_tokens"] <= size + 8 * 10
        assert sum(end.cached_tokens for end in ends) >= 7 * (size - 2)
        alone = launch(slots=1)
        try:
            expected = [run(alone, prompt=common + tail, max_tokens=6)[0] for tail in "abcdefgh"]
        finally:
            alone.stop()
        again = [run(engine, prompt=common + tail, max_tokens=6)[0] for tail in "abcdefgh"]
        assert again == expected
        assert cells_are_known(engine)
    finally:
        engine.stop()


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(engine):
    with pytest.raises(APIError) as raised:
        run(engine, prompt="forest " * 5000)
    assert raised.value.status == 400 and raised.value.code == "context_length_exceeded"
    assert "1024" in raised.value.message and raised.value.param == "prompt"


def test_an_answer_stops_where_the_context_ends():
    engine = launch(ctx_size=64)
    try:
        _, tokens, end = run(engine, sampling=RAMBLING, max_tokens=1000, prompt="One day " * 20)
        assert end.reason == "length"
        assert end.prompt_tokens + len(tokens) == 64
    finally:
        engine.stop()


LONG = "The little fox went home. Ben saw a big red ball in the garden. " * 40
TAIL = "Then the fox said:"


@pytest.fixture
def patient():
    """An engine whose long prompts are evaluated aside, in turns of 2 ms: in many, however fast the machine is."""
    engine = launch(step_target=0.002, siding="on", **LASTING)
    yield engine
    engine.stop()


@pytest.fixture
def held(patient, monkeypatch):
    """Let what comes to the siding begin, and then take no more turns but those in which it is told to give up."""
    siding = patient._running.resident.lazy_siding.get(PATIENCE)
    run, begun = siding.run, []

    def turn(seconds, *_):
        if seconds == 0 or siding.generation not in begun:
            begun.append(siding.generation)
            run(0)
        else:
            threading.Event().wait(0.001)

    monkeypatch.setattr(siding, "run", turn)
    return patient


def test_a_long_prompt_is_evaluated_aside_and_streams_pass_it(patient):
    stream = asked(max_tokens=8000, sampling=RAMBLING)
    patient.submit(stream)
    next_event(stream)
    before = stream.generated
    text, _, end = run(patient, prompt=LONG + TAIL, max_tokens=12)
    assert end.prompt_tokens > 600 and patient.tally.counts["prompts_aside"] == 1
    assert stream.generated - before > 12 + 3  # those while it generates, and those while it is evaluated
    patient.cancel(stream)
    plain = launch(siding="off", **LASTING)
    try:
        assert run(plain, prompt=LONG + TAIL, max_tokens=12)[0] == text
    finally:
        plain.stop()


def test_the_rest_of_a_long_prompt_is_evaluated_aside_after_a_beginning_that_is_known(patient):
    expected = run(patient, prompt=LONG + TAIL, max_tokens=12)[0]
    others = [asked(prompt="Hi %d" % number, max_tokens=8000, sampling=RAMBLING) for number in range(2)]
    for generation in others:  # so that the prompt's slot is not the first one
        patient.submit(generation)
        next_event(generation)
    patient._scheduler.copy_cost = 10000  # no copy: it shall stay in its own slot
    for slot in patient._scheduler.idle_slots():
        patient._scheduler.forget(slot)
    run(patient, prompt=LONG[: len(LONG) // 2], max_tokens=1)
    text, _, end = run(patient, prompt=LONG + TAIL, max_tokens=12)
    assert 200 < end.cached_tokens < 400 and patient.tally.counts["prompts_aside"] == 3
    assert text == expected
    for generation in others:
        patient.cancel(generation)


def test_a_copied_beginning_is_there_before_the_rest_of_its_prompt_is_evaluated_aside():
    """llama.cpp copies cells only with its next decode, and with no stream there is none before the siding begins."""
    engine = launch(siding="on", **LASTING)
    try:
        run(engine, prompt=LONG + TAIL, max_tokens=1)
        other = LONG[: len(LONG) // 2] + "A girl called Mia had a small boat and a blue kite. " * 20
        told = Sampling(temperature=0, n_probs=1)
        logprobs = []
        for cached in (True, False):
            generation = asked(prompt=other, max_tokens=1, sampling=told, cache_prompt=cached)
            engine.submit(generation)
            logprobs.append(next_event(generation).probabilities[0]["logprob"])
            assert (next_event(generation).cached_tokens > 200) == cached
        assert engine.tally.counts["prompts_aside"] == 3
        assert abs(logprobs[0] - logprobs[1]) < 0.05
    finally:
        engine.stop()


def test_long_prompts_that_come_together_all_get_their_answers(patient):
    prompts = ["Story %d. %s%s" % (number, LONG, TAIL) for number in range(6)]
    together = in_parallel(lambda prompt: run(patient, prompt=prompt, max_tokens=6)[0], prompts)
    assert together == [run(patient, prompt=prompt, max_tokens=6)[0] for prompt in prompts]
    assert patient.tally.counts["prompts_aside"] >= 6 and cells_are_known(patient)


def test_a_long_prompt_that_is_cancelled_leaves_the_siding_to_others(patient, held, monkeypatch):
    for _ in range(3):
        generation = asked(prompt=LONG + TAIL, max_tokens=5, cache_prompt=False)
        held.submit(generation)
        wait_until(lambda: held._running.resident.siding.generation is not None)
        held.cancel(generation)
        wait_until(lambda: held.busy() == 0)
        assert held._running.resident.siding.generation is None
    monkeypatch.undo()
    assert run(patient, prompt=LONG + TAIL, max_tokens=5)[2].completion_tokens == 5


def test_an_engine_can_be_stopped_while_a_prompt_is_aside(held):
    generation = asked(prompt=LONG + TAIL, max_tokens=5)
    held.submit(generation)
    wait_until(lambda: held._running.resident.siding.generation is not None)
    held.stop()
    assert result(generation)[2].code == "engine_down"
    assert not [thread for thread in threading.enumerate() if thread.name == "siding"]


def test_a_prompt_that_does_not_come_back_from_the_siding_is_evaluated_in_batches(patient, monkeypatch):
    expected = run(patient, prompt=LONG + TAIL, max_tokens=8, cache_prompt=False)[0]
    monkeypatch.setattr(core.engine.llama.context.Context, "load", lambda *_: False)
    text, _, end = run(patient, prompt=LONG + TAIL, max_tokens=8, cache_prompt=False)
    assert text == expected and patient.tally.counts["prompts_aside"] == 1 and cells_are_known(patient)
    assert end.cached_tokens == 0


def test_where_cells_can_not_be_moved_there_is_no_siding(monkeypatch):
    monkeypatch.setattr(core.engine.llama.context.llama_cpp, "llama_state_seq_get_data", lambda *_: 0)
    engine = launch(siding="on")
    try:
        assert engine._running.resident.lazy_siding is None
        assert run(engine, prompt=LONG, max_tokens=3)[2].completion_tokens == 3
    finally:
        engine.stop()


def test_a_long_prompt_is_taken_in_pieces_and_a_stream_goes_on_meanwhile():
    engine = launch(batch_size=32, siding="off", **LASTING)
    try:
        stream = asked(max_tokens=8000, sampling=RAMBLING)
        engine.submit(stream)
        next_event(stream)
        before = stream.generated
        _, _, end = run(engine, prompt="The little fox went home. " * 60, max_tokens=1)
        assert end.prompt_tokens > 300
        assert stream.generated - before >= end.prompt_tokens // 32  # a token in each of the steps that it took
        engine.cancel(stream)
    finally:
        engine.stop()


def test_with_no_line_at_all_a_free_slot_is_still_taken():
    engine = launch(slots=2, max_queue=0)
    try:
        assert run(engine, max_tokens=3)[2].reason == "length"
    finally:
        engine.stop()


def test_a_full_line_turns_requests_away():
    engine = launch(slots=1, max_queue=2, **LASTING)
    try:
        generations = [asked(max_tokens=8000, sampling=RAMBLING) for _ in range(3)]
        engine.submit(generations[0])
        wait_until(lambda: engine.busy() == 1)
        engine.submit(generations[1])
        engine.submit(generations[2])
        with pytest.raises(APIError) as raised:
            engine.submit(asked())
        assert raised.value.status == 503 and ("Retry-After", "1") in raised.value.headers
        for generation in generations:
            engine.cancel(generation)
    finally:
        engine.stop()


@pytest.fixture
def two_models(tmp_path):
    shutil.copy(DEMO.path, tmp_path / "a.gguf")
    shutil.copy(DEMO.path, tmp_path / "b.gguf")
    folder = ModelFolder(str(tmp_path))
    return folder.find("a"), folder.find("b")


def test_asking_for_another_model_lets_the_running_ones_finish_and_swaps(two_models):
    a, b = two_models
    engine = launch(a)
    try:
        first = Generation(Ask(a, STORY, 50, sampling=GREEDY))
        second = Generation(Ask(b, STORY, 10, sampling=GREEDY))
        third = Generation(Ask(a, STORY, 10, sampling=GREEDY))
        for generation in (first, second, third):
            engine.submit(generation)
        texts = [result(generation) for generation in (first, second, third)]
        assert [end.completion_tokens for _, _, end in texts] == [50, 10, 10]
        assert texts[0][0].startswith(texts[1][0])  # the same weights
        assert engine.model_name() == "a.gguf"
    finally:
        engine.stop()


def test_a_model_that_can_not_be_loaded_fails_its_requests_and_nothing_else(two_models):
    a, b = two_models
    with open(b.path, "r+b") as file:  # a header that is sound, and a tensor that llama.cpp misses
        data = file.read()
        file.seek(data.index(b"output_norm.weight"))
        file.write(b"output_n0rm.weight")
    engine = launch(a)
    try:
        generation = Generation(Ask(b, STORY))
        engine.submit(generation)
        _, _, error = result(generation)
        assert isinstance(error, APIError) and error.status == 500
        assert "b.gguf" in error.message and "output_norm" in error.message
        assert isinstance(run(engine, model=a, max_tokens=3)[2], Finished)
    finally:
        engine.stop()


def test_stopping_ends_every_request_with_an_error():
    engine = launch(slots=1)
    generations = [asked(max_tokens=900, sampling=RAMBLING) for _ in range(3)]
    for generation in generations:
        engine.submit(generation)
    threading.Thread(target=engine.stop).start()
    assert all(isinstance(result(generation)[2], (APIError, Finished)) for generation in generations)
    wait_until(lambda: engine.status == "stopped")
    with pytest.raises(APIError):
        engine.submit(asked())


@pytest.mark.parametrize(
    "knobs",
    [
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attn": "on"},
        {"cache_type_k": "bf16", "flash_attn": "off"},
        {"cache_type_k": "f32", "cache_type_v": "f32"},
        {"batch_size": 64, "ubatch_size": 32},
        {"threads": 1, "threads_batch": 2},
        {"no_mmap": True},
        {"safe_mode": True},
    ],
)
def test_a_knob_changes_how_it_runs_and_not_what_it_says(engine, knobs):
    turned = launch(**knobs)
    try:
        expected, answer = run(engine, max_tokens=12)[0], run(turned, max_tokens=12)[0]
        assert answer == expected
    finally:
        turned.stop()


def test_a_stretched_context_may_be_longer_than_the_model_was_trained_with():
    engine = launch(rope_scaling="yarn", rope_freq_scale=0.5, yarn_orig_ctx=1024, ctx_size=2048)
    try:
        assert run(engine, prompt=STORY * 150, max_tokens=2)[2].prompt_tokens > 1024
    finally:
        engine.stop()


def failure_of(**settings):
    """Start an engine that can't load its model; returns what it says."""
    events = queue.SimpleQueue()
    engine = Engine(EngineSettings(threads=1, **settings), lambda what, **facts: events.put((what, facts)))
    engine.start(DEMO)
    try:
        while True:
            what, facts = events.get(timeout=PATIENCE)
            if what in ("failed", "ready"):
                assert what == "failed"
                return facts["why"]
    finally:
        engine.stop()


def test_a_lora_adapter_that_does_not_fit_is_named(tmp_path):
    shutil.copy(DEMO.path, tmp_path / "adapter.gguf")
    assert "adapter.gguf does not fit demo.gguf" in failure_of(lora=(str(tmp_path / "adapter.gguf"),))


@pytest.mark.parametrize(
    "settings, attention, rows",
    [
        ({}, OFF, 128),
        ({"ubatch_size": 256}, OFF, 256),
        ({"ctx_size": 65536}, OFF, 64),
        ({"cache_type_v": "q8_0"}, AUTO, 512),
        ({"flash_attn": "on"}, ON, 512),
        ({"flash_attn": "off", "batch_size": 64}, OFF, 64),
    ],
)
def test_a_cpu_computes_without_flash_attention_and_few_rows_at_once(settings, attention, rows):
    made = EngineSettings(gpu_layers=0, **settings)
    params = context_parameters(types.SimpleNamespace(pooling=""), made, made.ctx_size)
    assert (params.flash_attn_type, params.n_ubatch) == (attention, rows)


def test_a_quantized_cache_without_flash_attention_is_refused():
    assert "flash" in failure_of(cache_type_v="q8_0", flash_attn="off").lower()


class Stubborn:
    """A context that answers some decodes with a status of the test's own, and passes the others on."""

    def __init__(self, context, answers):
        self._context, self._answers = context, answers

    def decode(self, runs):
        status = self._answers(runs)
        return (status, []) if status else self._context.decode(runs)

    def __getattr__(self, name):
        return getattr(self._context, name)


def test_where_there_is_no_room_idle_cells_go_first_then_batches_shrink():
    engine = launch()
    try:
        expected = [run(engine, prompt=STORY * n, max_tokens=20)[0] for n in (1, 2, 3)]
        rows = []

        def refuse(runs):
            rows.append(sum(len(run.tokens) for run in runs))
            return 1 if rows[-1] > 6 else 0

        engine._running.resident.context = Stubborn(engine._running.resident.context, refuse)
        answers = in_parallel(lambda n: run(engine, prompt=STORY * n, max_tokens=20, cache_prompt=False)[0], (1, 2, 3))
        assert answers == expected and max(rows) > 6
        assert not engine._scheduler.idle_slots() or cells_are_known(engine)
    finally:
        engine.stop()


def test_a_request_that_never_fits_fails_alone():
    engine = launch()
    try:
        expected = run(engine, max_tokens=30)[0]
        victim = asked(prompt="むかしむかし、", max_tokens=30)
        engine._running.resident.context = Stubborn(
            engine._running.resident.context, lambda runs: int(any(run.slot == victim.slot for run in runs))
        )
        good = asked(max_tokens=30)
        engine.submit(good)
        engine.submit(victim)
        error = result(victim)[2]
        assert isinstance(error, APIError) and (error.status, error.code) == (503, "no_room")
        assert result(good)[0] == expected
    finally:
        engine.stop()


def test_a_broken_step_fails_what_was_in_it_and_the_engine_goes_on():
    engine = launch()
    try:
        expected = run(engine, max_tokens=30)[0]
        answers = iter([0, 0, 0, -3])
        engine._running.resident.context = Stubborn(engine._running.resident.context, lambda runs: next(answers, 0))
        error = run(engine, max_tokens=30)[2]
        assert isinstance(error, APIError) and (error.status, error.code) == (500, "decode_failed")
        wait_until(lambda: not isinstance(engine._running.resident.context, Stubborn))  # a new one
        assert run(engine, max_tokens=30)[0] == expected
        assert cells_are_known(engine)
    finally:
        engine.stop()


def test_timings_add_up(engine):
    _, _, end = run(engine, max_tokens=20)
    assert end.prompt_tokens == end.timings["prompt_n"] + end.timings["cache_n"] and end.timings["predicted_n"] == 20
    assert all(end.timings[name] >= 0 for name in ("queue_ms", "prompt_ms", "predicted_ms"))


def test_a_reader_that_takes_nothing_holds_its_answer_up_and_nobody_else():
    engine = launch(slots=2)
    try:
        slow = asked(max_tokens=700, sampling=RAMBLING)
        engine.submit(slow)
        wait_until(lambda: slow.channel.unread >= MOST_UNREAD)
        steps = engine.tally.counts["steps"]
        assert run(engine, max_tokens=40)[2].completion_tokens == 40  # the other slot goes on
        assert engine.tally.counts["steps"] - steps < 60 and slow.channel.unread == MOST_UNREAD
        text, tokens, end = result(slow)
        assert len(tokens) == end.completion_tokens == 700 and end.reason == "length"
    finally:
        engine.stop()


def test_an_engine_whose_streams_are_all_paused_is_idle_and_ends_what_is_cancelled():
    engine = launch(slots=2)
    try:
        generations = [asked(max_tokens=700, sampling=RAMBLING) for _ in range(2)]
        for generation in generations:
            engine.submit(generation)
        wait_until(lambda: all(generation.channel.unread >= MOST_UNREAD for generation in generations))
        waiting = asked(max_tokens=3)
        engine.submit(waiting)
        used = time.process_time()
        threading.Event().wait(1)
        assert time.process_time() - used < 0.5
        assert engine.busy() == 2 and engine.queued() == 1
        engine.cancel(generations[0])
        assert result(waiting)[2].completion_tokens == 3
        assert generations[0].channel.unread == MOST_UNREAD
    finally:
        engine.stop()


def test_a_whole_answer_holds_so_many_probabilities_and_no_more(engine, monkeypatch):
    monkeypatch.setattr(core.apis.telling, "MOST_PROBABILITIES", 50)
    routes = generate.routes(Endpoint(Host(engine, ModelFolder(os.path.dirname(DEMO.path))), 15))

    def probabilities(n):
        body = {"prompt": STORY, "model_name": DEMO.name, "max_tokens": 10, "temperature": 0, "n_probs": n}
        data = json.dumps(body).encode()
        patient = types.SimpleNamespace(body=data, headers={}, key="", wait=lambda ready, timeout: ready(timeout))
        return json.loads(routes[0].handler(patient).body)["completion_probabilities"]

    assert len(probabilities(4)) == 10
    with pytest.raises(APIError) as raised:
        probabilities(5)
    assert (raised.value.status, raised.value.code) == (400, "too_many_probabilities")
    wait_until(lambda: engine.busy() == 0)

"""With --context-shift an answer that fills its context goes on, as at llama.cpp's server, and can be carried on."""

import pytest
from conftest import call, wait_until
from engines import STORY, asked, launch, next_event, result, run
from gguf import write_recurrent, write_windowed

from core.engine.choosing import Choosing
from core.engine.llama.batch import Run
from core.models import inspect
from core.sampling import Sampling

EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
CTX = 64
LONG = {"max_tokens": 150, "sampling": Sampling(temperature=0, ignore_eos=True)}


@pytest.fixture(scope="module")
def engine():
    engine = launch(slots=3, ctx_size=CTX, context_shift=True, **EXACT)
    yield engine
    engine.stop()


def by_hand(engine, count, keep=0, discard=0, prompt=STORY):
    """Return the likeliest tokens, evaluated one at a time in a free slot, which is shifted by hand."""
    model, context = engine._running.resident.model, engine._running.resident.context
    banned = list(model.ends_all())
    fed, told = model.prompt_tokens(prompt, 10**6), []
    whole, keep = len(fed), keep + model.adds_bos
    context.forget(2)
    done = 0
    while len(told) < count:
        for token in fed:
            if done == CTX - 1:
                drop = discard or (done - keep) // 2
                assert context.shift(2, keep, drop)
                done -= drop
            status, rows = context.decode([Run(2, done, [token], 1)])
            assert status == 0
            done += 1
        logits = context.logits(rows[0], model.vocabulary).copy()
        logits[banned] = -1e9
        fed = [int(logits.argmax())]
        told += fed
    context.forget(2)
    return told, whole


@pytest.mark.parametrize("keep, discard", [(0, 0), (5, 0), (0, 7), (3, 1)])
def test_a_full_context_loses_its_older_half_or_as_much_as_is_asked_for(engine, keep, discard):
    expected, whole = by_hand(engine, 150, keep, discard)
    _, tokens, end = run(engine, keep=keep, discard=discard, **LONG)
    assert tokens == expected
    assert (end.reason, end.truncated, end.completion_tokens, end.prompt_tokens) == ("length", True, 150, whole)
    assert end.timings["prompt_n"] + end.timings["cache_n"] == whole


def test_the_whole_prompt_may_be_kept(engine):
    prompt = engine.vocabulary().prompt_tokens(STORY, 100)
    assert run(engine, keep=-1, **LONG)[1] == run(engine, keep=len(prompt), **LONG)[1] != run(engine, **LONG)[1]


@pytest.mark.parametrize("sampling", [
    {"temperature": 0.8, "seed": 3}, {"temperature": 0.8, "seed": 3, "repeat_penalty": 1.2},
    {"temperature": 0.8, "seed": 3, "mirostat": 2}, {"temperature": 0},
])  # fmt: skip
def test_an_answer_that_was_shifted_is_carried_on_the_same(engine, sampling):
    ask = {"max_tokens": 150, "keep": 4, "sampling": Sampling(ignore_eos=True, **sampling)}
    _, tokens, end = run(engine, **ask)
    for cut in range(1, len(tokens), 7):
        _, rest, last = run(engine, tokens[:cut], **ask)
        assert rest == tokens[cut:], cut
        assert (last.truncated, last.completion_tokens) == (end.truncated, end.completion_tokens)


def test_no_cell_of_a_shifted_context_is_used_again(engine):
    prompt = STORY * 4
    for _ in range(3):  # in each slot
        run(engine, prompt=prompt, cache_prompt=False, **LONG)
    _, tokens, end = run(engine, prompt=prompt, max_tokens=10)
    assert end.cached_tokens == 0
    again = run(engine, prompt=prompt, max_tokens=10)
    assert again[1] == tokens and again[2].cached_tokens > 0  # those of one that fits are


def test_others_do_not_copy_from_a_context_that_was_shifted_while_it_goes_on(engine):
    prompt = STORY * 4
    alone = run(engine, max_tokens=10, prompt=prompt)[1]
    running = asked(prompt=prompt, keep=-1, **dict(LONG, max_tokens=10**6))
    engine.submit(running)
    while not running.dropped:
        next_event(running)
    ends = []
    for _ in range(3):
        _, tokens, end = run(engine, max_tokens=10, prompt=prompt)
        assert tokens == alone
        ends.append(end)
    engine.cancel(running)
    wait_until(lambda: not engine.busy())
    assert not ends[0].cached_tokens and ends[1].cached_tokens


def test_after_a_failure_of_llama_cpp_a_shifted_answer_goes_on_as_it_was(engine, monkeypatch):
    expected = run(engine, **LONG)[1]
    generation = asked(**LONG)
    extend, seen = Choosing.extend, []

    def broken(choosing, rows):
        if len(generation.dropped) > 30 and not seen:
            seen.append(generation)
            choosing._running.model.renew_context()
            choosing._running.scheduler.restart()  # as Decoding.fail does with those that were not in the step
        else:
            extend(choosing, rows)

    monkeypatch.setattr(Choosing, "extend", broken)
    engine.submit(generation)
    assert result(generation)[1] == expected and seen


def test_guesses_at_the_next_tokens_do_not_change_a_shifted_answer():
    plain, guessing = [], []
    for draft_max, answers in ((0, plain), (8, guessing)):
        engine = launch(slots=2, ctx_size=CTX, context_shift=True, draft_max=draft_max, **EXACT)
        answers.append(run(engine, prompt=STORY + " " + STORY, **LONG)[1])
        engine.stop()
    assert plain == guessing


def test_without_the_option_an_answer_ends_where_its_context_is_full():
    engine = launch(slots=2, ctx_size=CTX, **EXACT)
    _, tokens, end = run(engine, **LONG)
    engine.stop()
    assert (end.reason, end.truncated) == ("length", True) and end.prompt_tokens + len(tokens) == CTX


@pytest.mark.parametrize("write", [write_recurrent, write_windowed])
def test_a_model_whose_memory_can_not_be_shifted_is_refused(tmp_path, write):
    model = inspect(write(str(tmp_path / "odd.gguf")))
    engine = launch(None, slots=2, ctx_size=CTX, context_shift=True)
    error = run(engine, model=model)[2]
    engine.stop()
    assert error.status == 500 and "without --context-shift" in error.message


def test_over_http_the_settings_are_told(start):
    program = start("backend.py", "--child", "--port=0", "--threads=1", "--context-shift", "-c", CTX, "--keep", 3)
    url = program.wait_for_event("listening")["url"]
    program.wait_for_event("ready")
    body = {"prompt": STORY, "n_predict": 100, "ignore_eos": True, "temperature": 0}
    told = call(url + "/completion", dict(body, n_discard=5)).json
    assert told["truncated"] and told["tokens_predicted"] == 100
    assert (told["generation_settings"]["n_keep"], told["generation_settings"]["n_discard"]) == (3, 5)
    assert call(url + "/completion", dict(body, n_keep=-2)).status == 400
    assert call(url + "/completion", dict(body, n_keep=-1)).json["content"] != told["content"]

"""Models of every kind of memory answer as if nobody had been there before: plain, recurrent, hybrid, sliding-window.

llama.cpp can't cut the end off a state: a recurrent or hybrid model's cells are taken over whole or not at all. What is
expected comes from a fresh engine that runs one request after another and reuses nothing.
"""

import random
from typing import NamedTuple

import pytest
from conftest import wait_until
from engines import DEMO, RAMBLING, asked, cells_are_known, launch, next_event, result
from gguf import WINDOW, write_hybrid, write_recurrent, write_windowed

from core.engine import siding
from core.engine.drafting import Lookup
from core.engine.pace import Pace
from core.models import ModelFile, inspect
from core.sampling import Sampling

GREEDY = Sampling(temperature=0, ignore_eos=True)
# A random model's tokens are nearly equally likely, and rounding to 16 bits differs with what else is in a batch.
EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
STORY = "Once upon a time in a magical forest, there was a kind bear called Ruby. One day, Ruby found a red ball. "
LONG = STORY * 6
TAILS = ["Then %s came by." % name for name in "Tom Max Leo Sam Ben Finn Jack Theo".split()]


class Kind(NamedTuple):
    """A model, and what llama.cpp can do with its memory."""

    model: ModelFile
    forgets_partly: bool  # it can cut the end off a sequence
    plain: bool  # its cells are one per token, and stay


@pytest.fixture(scope="module", params=["plain", "recurrent", "hybrid", "windowed"])
def kind(request, tmp_path_factory):
    if request.param == "plain":
        return Kind(DEMO, True, True)
    write = {"recurrent": write_recurrent, "hybrid": write_hybrid, "windowed": write_windowed}[request.param]
    path = tmp_path_factory.mktemp(request.param) / (request.param + ".gguf")
    return Kind(inspect(write(str(path))), request.param == "windowed", False)


@pytest.fixture
def start(kind):
    """Start engines with the kind's model that end with the test."""
    engines = []

    def starter(**settings):
        engines.append(launch(kind.model, **dict(EXACT, **settings)))
        return engines[-1]

    yield starter
    for engine in engines:
        engine.stop()


def submit(engine, prompt, count=16, **ask):
    given = {"model": engine._running.resident.model.file, "prompt": prompt, "max_tokens": count, "sampling": GREEDY}
    generation = asked(**dict(given, **ask))
    engine.submit(generation)
    return generation


def ask(engine, prompt, count=16, **generation):
    """Return an answer's tokens and its end."""
    _, tokens, end = result(submit(engine, prompt, count, **generation))
    return tokens, end


@pytest.fixture
def expected(start):
    """Return the tokens of an answer to each of some prompts, from an engine that never takes over anything."""
    alone = start(slots=1, siding="off")

    def answers(*prompts, count=16):
        return [ask(alone, prompt, count, cache_prompt=False)[0] for prompt in prompts]

    return answers


def test_a_random_model_reads_its_whole_prompt(kind, expected):
    answers = expected(STORY, "Many years ago" + STORY[len("Once upon a time") :], STORY + TAILS[0], STORY + TAILS[1])
    assert len({tuple(tokens) for tokens in answers}) == (3 if kind.plain else 4)  # the demo model tells the same story
    assert all(len(set(tokens)) > 4 for tokens in answers)


def test_the_same_prompt_gets_the_same_answer_again(kind, start, expected):
    engine = start()
    for cached in (False, kind.forgets_partly, kind.forgets_partly):
        tokens, end = ask(engine, STORY)
        assert [tokens] == expected(STORY)
        assert end.cached_tokens == (end.prompt_tokens - 1 if cached else 0)
        assert cells_are_known(engine)


def test_a_prompt_that_shares_only_a_beginning_is_answered_as_if_alone(kind, start, expected):
    engine = start()
    prompts = [STORY + LONG[:150] + tail for tail in TAILS[:3]]
    answers = [ask(engine, prompt) for prompt in prompts]
    assert [tokens for tokens, _ in answers] == expected(*prompts)
    assert all((end.cached_tokens > 4 * WINDOW) == kind.forgets_partly for _, end in answers[1:])
    assert kind.forgets_partly or engine.tally.counts["cached_tokens"] == 0


def test_a_conversation_goes_on_where_it_stood_with_every_kind_of_memory(start, expected):
    engine = start()
    prompt = (STORY,)
    for tail in TAILS[:3]:
        tokens, end = ask(engine, prompt, 20)
        assert [tokens] == expected(prompt, count=20)
        known = end.prompt_tokens + len(tokens) - 1  # the last one has not been evaluated yet
        prompt += tuple(tokens) + (tail,)
        others, _ = ask(engine, TAILS[7])
        assert [others] == expected(TAILS[7])
        again, end = ask(engine, prompt, 1)
        assert end.cached_tokens == known and [again] == expected(prompt, count=1)
        prompt += tuple(again)


def test_a_second_conversation_with_the_same_beginning_takes_no_state_from_the_first(kind, start, expected):
    engine = start()
    tokens, _ = ask(engine, STORY + TAILS[0])
    ask(engine, STORY + TAILS[1])
    prompt = (STORY + TAILS[0],) + tuple(tokens) + (TAILS[2],)
    again, end = ask(engine, prompt)
    assert [again] == expected(prompt)
    assert kind.forgets_partly or end.cached_tokens > end.prompt_tokens - 16  # all but the last tail


def test_eight_requests_at_once_that_share_a_beginning_are_answered_as_if_alone(kind, start, expected):
    engine = start(slots=8)
    prompts = [STORY + tail for tail in TAILS]
    for _ in range(2):
        generations = [submit(engine, prompt) for prompt in prompts]
        assert [result(generation)[1] for generation in generations] == expected(*prompts)
        assert kind.forgets_partly or not any(generation.cached_tokens for generation in generations)
        assert cells_are_known(engine)


def test_a_request_that_was_cancelled_half_way_can_be_asked_again(start, expected):
    engine = start()
    answer = expected(STORY)
    for pieces in (0, 1, 9):
        generation = submit(engine, STORY, 900)
        for _ in range(pieces):
            next_event(generation)
        engine.cancel(generation)
        wait_until(lambda: engine.busy() == engine.queued() == 0)
        assert cells_are_known(engine)
        assert [ask(engine, STORY)[0]] == answer


def test_guessing_ahead_changes_no_answer_and_is_left_to_models_that_can_take_guesses_back(kind, start, monkeypatch):
    tokens, end = ask(start(), STORY, 60)

    def half_right(_lookup, known, most):
        return (tokens[len(known) - end.prompt_tokens :][:2] + [5, 5])[:most]

    monkeypatch.setattr(Lookup, "guess", half_right)
    monkeypatch.setattr(Lookup, "chances", lambda _lookup, count: [1.0] * count)
    monkeypatch.setattr(Pace, "price", lambda _pace, _streams, _guesses: 0.01)
    engine = start(draft_max=4)
    assert ask(engine, STORY, 60)[0] == tokens and cells_are_known(engine)
    drafts, accepted = engine.tally.counts["drafts"], engine.tally.counts["drafts_accepted"]
    assert drafts > accepted > 0 if kind.forgets_partly else drafts == 0
    assert ask(engine, STORY + TAILS[0], 1)[1].cached_tokens > 0 or not kind.forgets_partly


def test_long_prompts_beside_a_stream_are_answered_as_if_alone(kind, start, expected):
    engine = start(siding="on", step_target=0.01)
    assert (engine._running.resident.lazy_siding is not None) == kind.plain
    stream = submit(engine, TAILS[0], 900, sampling=RAMBLING)
    next_event(stream)
    prompts = [LONG + TAILS[0], TAILS[1] + LONG, LONG + TAILS[2]]
    generations = [submit(engine, prompt) for prompt in prompts]
    assert [result(generation)[1] for generation in generations] == expected(*prompts)
    assert all(generation.prompt_tokens > siding.LONG for generation in generations)
    assert (engine.tally.counts["prompts_aside"] > 0) == kind.plain
    assert kind.forgets_partly or not any(generation.cached_tokens for generation in generations)
    engine.cancel(stream)


def test_two_requests_that_share_more_than_one_that_ended_do_not_wait_for_each_other(start, expected):
    engine = start(slots=2)
    earlier = [submit(engine, prompt, 900, sampling=RAMBLING) for prompt in (STORY * 3, TAILS[0])]
    for generation in earlier:
        next_event(generation)
    prompts = [STORY + TAILS[1] * 10 + tail for tail in TAILS[2:4]]
    generations = [submit(engine, prompt) for prompt in prompts]
    earlier[0].cancelled = True
    engine.cancel(earlier[1])  # both end in one step, and both new ones get their slots in it
    assert [result(generation)[1] for generation in generations] == expected(*prompts)


def test_whatever_comes_and_goes_every_answer_is_as_if_alone(start, expected):
    engine = start(slots=3, batch_size=32, draft_max=3)
    rng = random.Random(1)
    generations = []
    for _ in range(24):
        prompt = STORY * rng.randrange(3) + rng.choice(TAILS) * rng.randrange(1, 3)
        generations.append(submit(engine, prompt, rng.randrange(1, 30), cache_prompt=rng.random() < 0.9))
        if rng.random() < 0.3:
            engine.cancel(rng.choice(generations))
    answers = {generation: result(generation)[1] for generation in generations if not generation.cancelled}
    wait_until(lambda: engine.busy() == engine.queued() == 0)
    assert cells_are_known(engine)
    prompts = {generation.ask.prompt for generation in answers}
    longest = dict(zip(prompts, expected(*prompts, count=30)))
    for generation, tokens in answers.items():
        assert tokens == longest[generation.ask.prompt][: generation.ask.max_tokens]

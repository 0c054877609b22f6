"""A generation that is begun in the middle goes on as if it had never been interrupted; and a choice by chance depends
on the seed and the token's number alone."""

import collections
from dataclasses import replace

import pytest
from engines import STORY, asked, launch, next_event, result, run

from core.engine.draws import draw_seed
from core.engine.outcome import Finished, Piece, Replayed
from core.errors import APIError
from core.grammar.free import Free
from core.grammar.schema import Grammar, json_grammar
from core.sampling import Sampling

COUNT = 40
# What is evaluated in one batch, or token by token, should differ by as little as can be. (It does differ: where two
# tokens are as likely to six digits, either may be chosen. So no test here is at such a place.)
EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def free_text():
    """Return a grammar of free text in which a number follows each "the"."""
    grammar = Grammar()
    number = grammar.reserve("number")
    free = Free(grammar, "free", {"the ": number}, True)
    grammar.define(number, '[1-9] [0-9]{2} " " ' + free.text())
    return grammar.text(free.text())


SAMPLERS = {
    "plain": {},
    "all tokens": {"top_k": 0, "top_p": 1.0},
    "min_p": {"min_p": 0.1, "top_k": 0},
    "typical_p": {"typical_p": 0.7},
    "top_n_sigma": {"top_n_sigma": 1.5, "top_k": 0},
    "xtc": {"xtc_probability": 0.6, "xtc_threshold": 0.05, "min_p": 0.02},
    "dynatemp": {"dynatemp_range": 0.5},
    "penalties": {"repeat_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "dry": {"dry_multiplier": 0.8, "dry_allowed_length": 2},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 3.0},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 3.0},
    "mirostat 2 with penalties": {"mirostat": 2, "repeat_penalty": 1.3},
    "biases": {"logit_bias": ((300, 2.0), (301, float("-inf"))), "ignore_eos": True},
    "schema": {"grammar": json_grammar(SCHEMA)},
    "free text": {"grammar": free_text()},
    "letters": {"grammar": 'root ::= [a-zA-Z ,."あ-ん]+'},
    "grammar with xtc": {"grammar": "root ::= [a-z ]+", "xtc_probability": 0.5, "min_p": 0.02},
    "mirostat with a grammar": {"mirostat": 2, "grammar": "root ::= [a-z ]+"},
}


@pytest.fixture(scope="module")
def engine():
    engine = launch(slots=8, ctx_size=256, **EXACT)
    yield engine
    engine.stop()


def told(engine, begun=(), **ask):
    """Return a generation's tokens, what each of them told of the text, and its last event.

    One that is begun in the middle tells first what it would have told.
    """
    generation = asked(begun, **ask)
    engine.submit(generation)
    tokens, texts = [], []
    while True:
        event = next_event(generation)
        if isinstance(event, Replayed):
            assert [piece.tokens[0] for piece in event.pieces] == list(begun)
            continue
        if not isinstance(event, Piece):
            return tokens, texts, event
        tokens += event.tokens
        texts.append(event.text)


# These only leave candidates out or change their weights: where the likeliest token is taken, they are not even made.
BY_CHANCE_ALONE = ("all tokens", "min_p", "typical_p", "top_n_sigma", "xtc", "dynatemp")


@pytest.mark.parametrize("name", BY_CHANCE_ALONE)
def test_the_likeliest_tokens_are_the_same_with_samplers_that_only_chance_asks(engine, name):
    plain, other = (Sampling(temperature=0.0, seed=7, **SAMPLERS[which]) for which in ("plain", name))
    assert run(engine, max_tokens=COUNT, sampling=other)[:2] == run(engine, max_tokens=COUNT, sampling=plain)[:2]


CASES = [(name, 0.8) for name in SAMPLERS] + [(name, 0.0) for name in SAMPLERS if name not in BY_CHANCE_ALONE]


@pytest.mark.parametrize("name, temperature", CASES)
def test_cut_at_any_token_an_answer_goes_on_the_same(engine, name, temperature):
    ask = {"sampling": Sampling(temperature=temperature, seed=7, **SAMPLERS[name]), "max_tokens": COUNT}
    tokens, texts, end = told(engine, **ask)
    assert len(tokens) > 5
    for cut in range(1, len(tokens)):
        rest, new, last = told(engine, tokens[:cut], **ask)
        assert (rest, "".join(new)) == (tokens[cut:], "".join(texts[cut:])), cut
        assert (last.reason, last.completion_tokens) == (end.reason, end.completion_tokens)


@pytest.mark.parametrize("prompt", ["むかしむかし、", STORY])
def test_held_back_bytes_and_beginnings_of_stop_strings_are_held_on(engine, prompt):
    ask = {"prompt": prompt, "max_tokens": COUNT}
    tokens, texts, _ = told(engine, **ask)
    whole = "".join(texts)
    ask["stop"] = (whole[len(whole) // 2 : len(whole) // 2 + 7], whole[-3:] + "never")
    tokens, texts, end = told(engine, **ask)
    assert end.stop_word == ask["stop"][0]
    for cut in range(1, len(tokens)):
        rest, new, last = told(engine, tokens[:cut], **ask)
        assert "".join(texts[:cut]) + "".join(new) == "".join(texts)
        assert last.stop_word == end.stop_word


def test_one_that_is_begun_at_its_very_end_only_ends(engine):
    whole = run(engine, max_tokens=20)[1]
    assert run(engine, whole, max_tokens=20)[:2] == ("", [])
    stop = (run(engine, max_tokens=20)[0][-6:],)
    tokens, _, end = told(engine, max_tokens=30, stop=stop)
    text, rest, last = run(engine, tokens, max_tokens=30, stop=stop)
    assert (text, rest, last.stop_word, last.completion_tokens) == ("", [], end.stop_word, len(tokens))


def test_one_that_filled_the_context_only_ends(engine):
    tokens, _, end = told(engine, max_tokens=10**6, sampling=Sampling(temperature=0, ignore_eos=True))
    assert end.truncated
    rest = run(engine, tokens, max_tokens=10**6, sampling=Sampling(temperature=0, ignore_eos=True))
    assert rest[:2] == ("", []) and rest[2].truncated and rest[2].completion_tokens == end.completion_tokens


def test_tokens_of_an_answer_that_its_grammar_does_not_take_are_refused(engine):
    tokens = run(engine, max_tokens=5)[1]
    with pytest.raises(APIError, match="does not follow the grammar"):
        run(engine, tokens, max_tokens=20, sampling=Sampling(grammar="root ::= [0-9]+"))


def test_tokens_that_the_model_does_not_have_are_refused(engine):
    with pytest.raises(APIError, match="There is no token 99999"):
        run(engine, [300, 99999], max_tokens=20)


def test_an_answer_goes_on_where_it_was_although_its_model_was_not_loaded(engine):
    tokens, texts, _ = told(engine, max_tokens=COUNT)
    lazy = launch(None, **EXACT)
    try:
        generation = asked(tokens[:20], max_tokens=COUNT)
        lazy.submit(generation)
        assert result(generation)[0] == "".join(texts[20:])
    finally:
        lazy.stop()


def test_a_first_token_is_drawn_by_its_probability(engine):
    """400 seeds: each of the likeliest tokens comes about as often as the model says."""
    probabilities = Sampling(temperature=1.0, top_k=0, top_p=1.0, n_probs=5)
    expected, seen = {}, collections.Counter()
    for seed in range(400):
        generation = asked(max_tokens=1, sampling=replace(probabilities, seed=seed))
        engine.submit(generation)
        piece = next_event(generation)
        if isinstance(piece, Finished):  # the answer is over at once
            continue
        seen[piece.tokens[0]] += 1
        expected = {each["id"]: 2.718281828 ** each["logprob"] for each in piece.probabilities[0]["top_logprobs"]}
    for token, share in expected.items():
        deviation = (share * (1 - share) / 400) ** 0.5
        assert abs(seen[token] / 400 - share) < 4.5 * deviation


def test_seeds_of_draws_repeat_for_nothing_but_the_same_numbers():
    seeds = {draw_seed(seed, number) for seed in range(300) for number in range(300)}
    assert len(seeds) > 300 * 300 - 10 and max(seeds) < 0xFFFFFFFF  # which llama.cpp takes for a random one
    assert draw_seed(7, 5) == draw_seed(7, 5) != draw_seed(5, 7)

"""Sampling parameters: read from a request, and at work in llama.cpp."""

import json
import math
import re

import numpy
import pytest
from conftest import in_parallel
from engines import STORY, asked, launch, next_event, run

import core.engine.engine
import core.engine.llama.chain
import core.engine.llama.context
from core.errors import APIError
from core.sampling import Sampling, read_sampling


@pytest.fixture(scope="module")
def engine():
    engine = launch()
    yield engine
    engine.stop()


def test_the_defaults_are_the_contracts_and_nothing_else_is_on():
    sampling = read_sampling({})
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.8, 40, 0.9, -1)
    assert sampling == Sampling() and not sampling.penalizes


def test_every_parameter_is_read_by_its_llama_cpp_name():
    body = {
        "temperature": 1, "dynatemp_range": 0.5, "dynatemp_exponent": 2, "top_k": 5, "top_p": 0.5, "min_p": 0.1,
        "typical_p": 0.9, "top_n_sigma": 1, "xtc_probability": 0.5, "xtc_threshold": 0.2, "repeat_last_n": -1,
        "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2, "dry_multiplier": 0.8,
        "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 100, "dry_sequence_breakers": ["\n"],
        "mirostat": 2, "mirostat_tau": 3, "mirostat_eta": 0.2, "min_keep": 1, "ignore_eos": True,
        "grammar": "root ::= [a]", "n_probs": 3, "seed": 7, "logit_bias": [[5, -1.5], [6, False]],
    }  # fmt: skip
    sampling = read_sampling(dict(body, unknown_field="is ignored"))
    for name, value in body.items():
        if name not in ("logit_bias", "dry_sequence_breakers"):
            assert getattr(sampling, name) == value, name
    assert sampling.logit_bias == ((5, -1.5), (6, -math.inf)) and sampling.dry_sequence_breakers == ("\n",)


@pytest.mark.parametrize(
    "name, value",
    [
        ("min_p", 2), ("top_n_sigma", -2), ("repeat_penalty", 0), ("mirostat", 3), ("n_probs", 1000),
        ("typical_p", "x"),
        ("dry_sequence_breakers", [1]), ("ignore_eos", 1), ("grammar", 5), ("logit_bias", "5"),
        ("logit_bias", [["", 1]]), ("samplers", "q"), ("samplers", ["top_z"]), ("samplers", 1),
        ("adaptive_target", 0.5), ("post_sampling_probs", 1),
        ("logit_bias", [[1]]), ("logit_bias", [[1, True]]), ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": float("nan")}), ("logit_bias", [[float("inf"), 1]]), ("logit_bias", {"1": 10**400}),
    ],
)  # fmt: skip
def test_a_wrong_parameter_gets_400_that_names_it(name, value):
    with pytest.raises(APIError) as raised:
        read_sampling({name: value})
    assert (raised.value.status, raised.value.param) == (400, name)


def test_a_null_means_the_default():
    assert read_sampling({"top_k": None, "grammar": None, "logit_bias": None, "ignore_eos": None}) == Sampling()


def text_with(engine, **sampling):
    """Return an answer of a seed; with no cells of earlier tests, whose last digits go by the batches they came in."""
    sampling = Sampling(**dict({"temperature": 1.0, "seed": 1}, **sampling))
    return run(engine, max_tokens=120, sampling=sampling, cache_prompt=False)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 1},
        {"top_p": 0.01, "top_k": 0},
        {"min_p": 1.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 0.001},
        {"top_n_sigma": 0.001, "top_k": 0, "top_p": 1.0},
    ],
)
def test_a_cut_to_one_candidate_is_greedy(engine, sampling):
    assert text_with(engine, **sampling) == run(engine, max_tokens=120, cache_prompt=False)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        {"typical_p": 0.2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"repeat_penalty": 1.8},
        {"presence_penalty": 5.0},
        {"frequency_penalty": 5.0},
        {"dry_multiplier": 5.0, "dry_allowed_length": 1},
        {"mirostat": 1, "mirostat_tau": 9.0},
        {"mirostat": 2, "mirostat_tau": 9.0},
        {"dynatemp_range": 0.9, "temperature": 1.2},
        {"logit_bias": ((300, 100.0),)},
    ],
)
def test_a_sampler_that_is_on_changes_the_answer_and_the_seed_still_decides(engine, sampling):
    changed = text_with(engine, **sampling)
    assert changed == text_with(engine, **sampling)
    assert changed != text_with(engine)


def test_a_penalty_counts_the_prompts_tokens_too(engine):
    prompt = STORY + " a fox, a bear and a bird lived in a forest."
    seen = set(engine._running.resident.model.prompt_tokens(prompt, 1000))
    plain = run(engine, prompt=prompt, max_tokens=40)[1]
    penalized = run(engine, prompt=prompt, max_tokens=40, sampling=Sampling(temperature=0, presence_penalty=100.0))[1]
    assert seen & set(plain) and not seen & set(penalized)


def test_a_banned_token_never_comes(engine):
    _, tokens, _ = run(engine, max_tokens=60)
    banned = max(set(tokens), key=tokens.count)
    bias = ((banned, -math.inf), (10**6, 5.0))  # a token that does not exist is passed over
    _, without, _ = run(engine, max_tokens=60, sampling=Sampling(temperature=0, logit_bias=bias))
    assert banned not in without


def test_an_answer_that_must_not_end_goes_on_to_its_limit(engine):
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, ignore_eos=True, seed=2)
        _, tokens, end = run(engine, prompt="Hello, how are you?", max_tokens=300, sampling=sampling)
        assert end.reason == "length" and len(tokens) == 300


def test_a_grammar_is_kept_whatever_the_model_would_say(engine):
    date = 'root ::= [0-9][0-9][0-9][0-9] "-" [0-9][0-9] "-" [0-9][0-9]'
    for seed in range(5):
        text, _, end = run(engine, max_tokens=60, sampling=Sampling(temperature=1.5, seed=seed, grammar=date))
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", text) and end.reason == "stop"


def test_requests_with_and_without_a_grammar_share_a_batch(engine):
    words = 'root ::= "{" "\\"word\\": \\"" [a-z]+ "\\"}"'
    expected = run(engine, max_tokens=30)[0]

    def ask(grammar):
        sampling = Sampling(temperature=0, grammar=grammar)
        return run(engine, max_tokens=30, sampling=sampling)

    answers = in_parallel(ask, [words, "", words, ""])
    assert answers[1][0] == answers[3][0] == expected
    for text, _, end in (answers[0], answers[2]):
        assert end.reason == "length" or json.loads(text)["word"].islower()


@pytest.mark.parametrize("grammar", ["root ::= (", "nothing", 'start ::= "a"'])
def test_a_grammar_that_is_none_gets_400_and_costs_nobody_else(engine, grammar):
    with pytest.raises(APIError) as raised:
        run(engine, sampling=Sampling(grammar=grammar))
    assert (raised.value.status, raised.value.param) == (400, "grammar")
    assert run(engine, max_tokens=3)[2].reason == "length"


NEVER = -math.inf


def banned(engine, *texts):
    """Return biases that ban the tokens with these texts; all tokens if none are given."""
    model = engine._running.resident.model
    return tuple((token, NEVER) for token in range(model.vocabulary) if not texts or model.piece(token) in texts)


def test_a_request_that_leaves_no_token_to_begin_with_gets_400_that_names_what_did_it(engine):
    for names, sampling in (
        (["grammar", "logit_bias"], {"grammar": 'root ::= "a"', "logit_bias": banned(engine, b"a")}),
        (["grammar", "ignore_eos"], {"grammar": 'root ::= ""', "ignore_eos": True}),
        (["grammar"], {"grammar": "root ::= [\\uD800]"}),
        (["logit_bias"], {"logit_bias": banned(engine)}),
        (["logit_bias"], {"logit_bias": banned(engine), "temperature": 0, "repeat_penalty": 1.1}),
    ):
        _, _, error = run(engine, sampling=Sampling(**sampling))
        assert isinstance(error, APIError) and (error.status, error.code) == (400, "no_candidates")
        assert all("'%s'" % name in error.message for name in names) and error.param == names[0]
        assert run(engine, max_tokens=3)[2].reason == "length"


def test_an_answer_that_its_grammar_leaves_nowhere_to_go_stops(engine):
    b_banned = banned(engine, b"b", b"ab")
    for sampling in (
        {"grammar": 'root ::= "a"', "ignore_eos": True},
        {"grammar": 'root ::= "a" "b"', "logit_bias": b_banned},
        {"grammar": 'root ::= "a" "b"', "logit_bias": b_banned, "mirostat": 2},
    ):
        text, _, end = run(engine, sampling=Sampling(**sampling))
        assert (text, end.reason) == ("a", "stop")


@pytest.mark.parametrize(
    "sampling",
    [
        {"logit_bias": ((300, 1e308), (301, 1e308), (300, -1e308))},
        {"logit_bias": ((300, math.inf), (301, 1e38), (301, NEVER))},
        {"logit_bias": ((300, 1e308),), "temperature": 0.0001, "top_n_sigma": 1.0, "top_k": 0},
        {"temperature": 1e-300},
        {"temperature": 1e-30, "top_k": 0, "top_p": 1.0},
        {"temperature": 1e-4, "dynatemp_range": 1e-4, "dynatemp_exponent": 100.0},
        {"repeat_last_n": 2147483647, "repeat_penalty": 1.1},
        {"dry_multiplier": 1.0, "dry_penalty_last_n": 2147483647, "dry_allowed_length": 2147483647},
        {"dry_multiplier": 100.0, "dry_base": 100.0, "dry_allowed_length": 0, "grammar": 'root ::= "a"{300}'},
        {"dry_multiplier": 1.0, "dry_base": 0.01, "dry_sequence_breakers": ("\ud800", "x" * 1000)},
        {"top_k": 2147483647, "min_keep": 2147483647, "typical_p": 0.5, "min_p": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0, "min_keep": 0},
        {"mirostat": 1, "mirostat_tau": 0.0, "grammar": 'root ::= "a"{300}'},
        {"mirostat": 2, "mirostat_tau": 0.0, "mirostat_eta": 10.0, "grammar": 'root ::= "a"{300}'},
        {"mirostat": 1, "mirostat_tau": 100.0, "mirostat_eta": 10.0},
        {"top_n_sigma": 1e-30, "grammar": "root ::= [a-z ]{300}"},
        {"typical_p": 0.0, "grammar": "root ::= [a-z ]{300}", "top_k": 0},
    ],
)
def test_the_oddest_parameters_give_an_answer(engine, sampling):
    _, tokens, end = run(engine, max_tokens=20, sampling=Sampling(seed=1, **sampling))
    assert end.reason in ("length", "stop") and tokens


def test_a_penalty_that_leaves_nothing_gives_way_to_the_grammar(engine):
    sampling = Sampling(grammar='root ::= "a"{40}', dry_multiplier=100.0, dry_base=100.0, dry_allowed_length=0)
    text, _, end = run(engine, max_tokens=60, sampling=sampling)
    assert (text, end.reason) == ("a" * 40, "stop")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_gives_no_numbers_fails_its_request_and_nothing_else(engine, monkeypatch, value):
    real = core.engine.llama.context.Context.logits
    broken = lambda context, row, size: real(context, row, size) * numpy.float32(0) + numpy.float32(value)  # noqa: E731
    monkeypatch.setattr(core.engine.llama.context.Context, "logits", broken)
    _, _, error = run(engine)
    assert (error.status, error.code) == (500, "model_broken")
    monkeypatch.undo()
    assert run(engine, max_tokens=3)[2].reason == "length"


@pytest.mark.parametrize("token", ["<[99999999]>", "<[%s]>" % ("9" * 30), "<no such token>"])
def test_a_token_that_the_model_does_not_have_gets_400(engine, token):
    with pytest.raises(APIError) as raised:
        run(engine, sampling=Sampling(grammar="root ::= <[1]> " + token))
    assert (raised.value.status, raised.value.code) == (400, "invalid_grammar")


def test_a_grammar_may_name_tokens(engine):
    grammar = 'root ::= <|im_start|> "user" <|im_start|> !<|im_start|>'
    _, tokens, end = run(engine, sampling=Sampling(grammar=grammar))
    start = next(iter(engine._running.resident.model.markers(["<|im_start|>"])))
    assert tokens[0] == tokens[-2] == start and tokens[-1] != start and end.reason == "stop"


def test_a_grammar_is_compiled_for_a_model_that_was_not_loaded_yet():
    engine = launch(model=None)
    try:
        assert run(engine, sampling=Sampling(grammar='root ::= "yes"'))[0] == "yes"
        engine2 = launch(model=None)
        _, _, error = run(engine2, sampling=Sampling(grammar="root ::= ("))
        assert (error.status, error.code) == (400, "invalid_grammar")
        engine2.stop()
    finally:
        engine.stop()


def test_probabilities_of_the_likeliest_tokens_are_told(engine):
    generation = asked(max_tokens=10, sampling=Sampling(temperature=0, n_probs=5))
    engine.submit(generation)
    seen = []
    while len(seen) < 10:
        seen += next_event(generation).probabilities
    for each in seen:
        top = each["top_logprobs"]
        assert each["id"] == top[0]["id"] and each["logprob"] == top[0]["logprob"]  # greedy takes the likeliest
        assert [entry["logprob"] for entry in top] == sorted((entry["logprob"] for entry in top), reverse=True)
        assert 0 < sum(math.exp(entry["logprob"]) for entry in top) <= 1.0001
        assert bytes(each["bytes"]).decode("utf-8", "replace") == each["token"]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0},
        {"ignore_eos": True},
        {"repeat_penalty": 1.3, "repeat_last_n": -1},
        {"temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"presence_penalty": -2.0, "top_k": 3},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1},
        {"repeat_penalty": 1.3, "samplers": ("top_k", "penalties", "temperature")},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"grammar": "root ::= [a-m ]{60}"},
    ],
)
def test_the_few_likeliest_tokens_give_the_answer_that_all_give(engine, monkeypatch, sampling):
    narrow = text_with(engine, **sampling)
    monkeypatch.setattr(core.engine.llama.chain, "FEW", 0)
    assert text_with(engine, **sampling) == narrow


def test_rows_sampled_side_by_side_give_the_same_answers(engine, monkeypatch):
    prompts = [STORY, "Hello, how are you?", "むかしむかし、", "One day, a bear"]
    sampling = Sampling(temperature=0.9, top_k=0, seed=5)
    expected = [run(engine, prompt=prompt, max_tokens=40, sampling=sampling)[0] for prompt in prompts]
    monkeypatch.setattr(core.engine.choosing, "LARGE_VOCABULARY", 0)
    answers = in_parallel(lambda prompt: run(engine, prompt=prompt, max_tokens=40, sampling=sampling), prompts)
    assert [text for text, _, _ in answers] == expected

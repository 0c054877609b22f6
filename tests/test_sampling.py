"""Sampling parameters: read from a request, and at work in llama.cpp."""

import json
import math
import re

import pytest
from conftest import in_parallel
from test_engine import DEMO, GREEDY, STORY, launch, run

import core.engine
from core.errors import APIError
from core.jobs import Job
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
        ("logit_bias", {"a": 1}),
        ("logit_bias", [[1]]), ("logit_bias", [[1, True]]), ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": float("nan")}),
    ],
)  # fmt: skip
def test_a_wrong_parameter_gets_400_that_names_it(name, value):
    with pytest.raises(APIError) as raised:
        read_sampling({name: value})
    assert (raised.value.status, raised.value.param) == (400, name)


def test_a_null_means_the_default():
    assert read_sampling({"top_k": None, "grammar": None, "logit_bias": None, "ignore_eos": None}) == Sampling()


def text_with(engine, **sampling):
    return run(engine, max_tokens=120, sampling=Sampling(**dict({"temperature": 1.0, "seed": 1}, **sampling)))[0]


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
    assert text_with(engine, **sampling) == run(engine, max_tokens=120, sampling=GREEDY)[0]


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
    seen = set(engine._model.prompt_tokens(prompt, None, 1000))
    plain = run(engine, prompt=prompt, max_tokens=40, sampling=GREEDY)[1]
    penalized = run(engine, prompt=prompt, max_tokens=40, sampling=Sampling(temperature=0, presence_penalty=100.0))[1]
    assert seen & set(plain) and not seen & set(penalized)


def test_a_banned_token_never_comes(engine):
    _, tokens, _ = run(engine, max_tokens=60, sampling=GREEDY)
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
    expected = run(engine, max_tokens=30, sampling=GREEDY)[0]

    def ask(grammar):
        sampling = Sampling(temperature=0, grammar=grammar)
        return run(engine, max_tokens=30, sampling=sampling)

    answers = in_parallel(ask, [words, "", words, ""])
    assert answers[1][0] == answers[3][0] == expected
    for text, _, end in (answers[0], answers[2]):
        assert end.reason == "length" or json.loads(text)["word"].islower()


@pytest.mark.parametrize("grammar", ["root ::= (", "nothing", 'start ::= "a"'])
def test_a_grammar_that_is_none_gets_400_and_costs_nobody_else(engine, grammar):
    _, _, error = run(engine, sampling=Sampling(grammar=grammar))
    assert isinstance(error, APIError) and (error.status, error.param) == (400, "grammar")
    assert run(engine, max_tokens=3)[2].reason == "length"


def test_probabilities_of_the_likeliest_tokens_are_told(engine):
    job = Job(DEMO, STORY, max_tokens=10, sampling=Sampling(temperature=0, n_probs=5))
    engine.submit(job)
    seen = []
    while len(seen) < 10:
        seen += job.events.get(timeout=60).probabilities
    for each in seen:
        top = each["top_logprobs"]
        assert each["id"] == top[0]["id"] and each["logprob"] == top[0]["logprob"]  # greedy takes the likeliest
        assert [entry["logprob"] for entry in top] == sorted((entry["logprob"] for entry in top), reverse=True)
        assert 0 < sum(math.exp(entry["logprob"]) for entry in top) <= 1.0001
        assert bytes(each["bytes"]).decode("utf-8", "replace") == each["token"]


def test_rows_sampled_side_by_side_give_the_same_answers(engine, monkeypatch):
    prompts = [STORY, "Hello, how are you?", "むかしむかし、", "One day, a bear"]
    sampling = Sampling(temperature=0.9, seed=5)
    expected = [run(engine, prompt=prompt, max_tokens=40, sampling=sampling)[0] for prompt in prompts]
    monkeypatch.setattr(core.engine, "LARGE_VOCABULARY", 0)
    answers = in_parallel(lambda prompt: run(engine, prompt=prompt, max_tokens=40, sampling=sampling), prompts)
    assert [text for text, _, _ in answers] == expected

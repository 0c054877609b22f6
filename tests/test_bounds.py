"""No small body asks for more than a backend holds: in each dialect, what is above a bound gets a 400 that names it."""

import time

import pytest

from core import bounds
from core.apis import anthropic, embeddings, llamacpp, ollama, openai_shapes
from core.errors import APIError
from core.grammar.schema import json_grammar
from core.sampling import read_sampling

SAY = [{"role": "user", "content": "Hello."}]
CALL = {"id": "1", "type": "function", "function": {"name": "go", "arguments": "{}"}}


def tools(count):
    return [{"type": "function", "function": {"name": "go%d" % number}} for number in range(count)]


def chat(**body):
    return openai_shapes.read_chat(dict({"messages": SAY}, **body))


def claude(**body):
    return anthropic.read_messages_body(dict({"messages": SAY, "max_tokens": 5}, **body))


def llama(**body):
    return ollama.read_chat(dict({"messages": SAY, "model": "m"}, **body))


def complete(**body):
    return openai_shapes.read_completion(dict({"prompt": "x"}, **body))


def native(**body):
    return llamacpp.read_completion(dict({"prompt": "x"}, **body))


def embed(**body):
    return embeddings.read_embeddings(body)


def sampling(**body):
    return read_sampling(body)


def calls(count):
    return SAY + [{"role": "assistant", "content": "", "tool_calls": [CALL] * count}]


BOUNDED = [  # a reader, its field, a body's value of a size, and the largest size
    (chat, "messages", lambda size: SAY * size, bounds.MESSAGES),
    (claude, "messages", lambda size: SAY * size, bounds.MESSAGES),
    (llama, "messages", lambda size: SAY * size, bounds.MESSAGES),
    (chat, "messages", calls, bounds.CALLS),
    (chat, "tools", tools, bounds.TOOLS),
    (llama, "tools", tools, bounds.TOOLS),
    (claude, "tools", lambda size: [{"name": "go%d" % n, "input_schema": {}} for n in range(size)], bounds.TOOLS),
    (chat, "n", lambda size: size, bounds.ANSWERS),
    (complete, "n", lambda size: size, bounds.ANSWERS),
    (complete, "prompt", lambda size: ["x"] * size, bounds.PROMPTS),
    (complete, "prompt", lambda size: [[1]] * size, bounds.PROMPTS),
    (native, "prompt", lambda size: ["x"] * size, bounds.PROMPTS),
    (native, "prompt", lambda size: [[1, "x"]] * size, bounds.PROMPTS),
    (embed, "input", lambda size: ["x"] * size, bounds.PROMPTS),
    (chat, "stop", lambda size: ["x"] * size, bounds.STOPS),
    (complete, "stop", lambda size: "x" * size, bounds.STOP_LENGTH),
    (native, "stop", lambda size: ["x" * size], bounds.STOP_LENGTH),
    (claude, "stop_sequences", lambda size: ["x" * size], bounds.STOP_LENGTH),
    (sampling, "logit_bias", lambda size: {str(n): 1 for n in range(size)}, bounds.LOGIT_BIAS),
    (sampling, "logit_bias", lambda size: [[n, False] for n in range(size)], bounds.LOGIT_BIAS),
    (sampling, "dry_sequence_breakers", lambda size: ["x"] * size, bounds.BREAKERS),
    (sampling, "dry_sequence_breakers", lambda size: ["x" * size], bounds.BREAKER_LENGTH),
]


@pytest.mark.parametrize("read, field, value, bound", BOUNDED)
def test_as_much_as_the_bound_is_taken_and_more_gets_400_that_names_it(read, field, value, bound):
    read(**{field: value(bound.most)})
    for size in (bound.most + 1, 30 * bound.most):
        with pytest.raises(APIError) as refused:
            read(**{field: value(size)})
        error = refused.value
        assert error.status == 400 and error.param.startswith(field) and str(bound.most) in error.message


def test_answers_are_bounded_in_sum_too():
    complete(prompt=["x"] * 16, n=128)
    with pytest.raises(APIError) as refused:
        complete(prompt=["x"] * 17, n=128)
    assert "'n' may hold at most 2048 answers in sum, not 2176." == refused.value.message


@pytest.mark.parametrize(
    "bias",
    [{"5": "1"}, {"5": "inf"}, {"5": 1e31}, {"5": 10**40}, {"5": True}, {"5" * 5000: 1}, {"5": [1]}]
    + [[["5", 1, 2]], ["51"], [[5.5, 1]], [[True, 1]], [[None, 1]], [[5, float("inf")]]],
)
def test_a_bias_is_a_token_and_a_number(bias):
    with pytest.raises(APIError) as refused:
        sampling(logit_bias=bias)
    assert refused.value.param == "logit_bias"


HUGE = 10**2000
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const")
LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


@pytest.mark.parametrize("value", [HUGE, 2 * 10**308, float("inf")], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("keyword", NUMBERS + LENGTHS + ("enum",))
def test_a_schemas_number_beyond_every_double_is_refused_at_once(keyword, value):
    started = time.monotonic()
    for signed in (value, -value):
        with pytest.raises(APIError) as refused:
            json_grammar({keyword: [signed] if keyword == "enum" else signed})
        assert refused.value.code == "unsupported_schema"
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("schema", [{"multipleOf": 5e-324}, {"minimum": 1e308, "maximum": 1.5e308}, {"maximum": 1e308}])
def test_numbers_of_many_digits_take_no_time(schema):
    started = time.monotonic()
    json_grammar(schema)
    assert time.monotonic() - started < 5

"""What a balancer reads out of a request's body: the model, and how the prompt begins."""

import json
import random
import time

import pytest

from core.balancing.request import CHUNK, MOST_CHUNKS, beginnings, head_of, model_of, only_name, read_body
from core.names import plain_name

LONG = "All work and no play makes Jack a dull boy. " * 20


def shared(first, second):
    """Return how many beginnings two bodies share, from the first on."""
    pairs = list(zip(beginnings(first), beginnings(second)))
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff{}", b'{"a":', b"nonsense", b"[" * 100000, b"{" * 100000,
                                  b'{"a":' * 100000, b'{"a": %b}' % (b"[" * 100000)])  # fmt: skip
def test_a_body_that_is_no_object_asks_for_nothing_in_particular(body):
    assert read_body(body) == {}


def test_the_model_is_named_in_model_or_model_name():
    assert model_of({"model": "a"}) == model_of({"model_name": "a"}) == "a"
    assert model_of({"model": 7}) == model_of({"model": None}) == model_of({"model": ""}) == model_of({}) == ""
    assert plain_name("a.gguf") == plain_name("a") == "a"


@pytest.mark.parametrize(
    "body, name",
    [
        (b'{"model": "a"}', "a"),
        (b' {"model_name"\n:\t"a"}', "a"),
        (b'{"model": "a", "model_name": "a"}', "a"),
        (b'{"model": "", "model_name": "a"}', "a"),
        (b'{"model": 7, "tools": {"model": {}}, "model_name": "a"}', "a"),
        ('{"model": "größer"}'.encode(), "größer"),
        (b'{"tools": [{"model": "a"}]}', "a"),  # it may be the one
        (b'{"prompt": "the model: a"}', ""),
        (b'{"model": null}', ""),
        (b"{}", ""),
        (b"", ""),
        (b'["model", {"model": "a"}]', ""),
        (b'{"model": "a", "model": "b"}', None),
        (b'{"model": "a\\u00e9"}', None),
        (b'{"mod\\u0065l": "a"}', None),
        (b'{"model": "\xff"}', None),
        (b'{"a": [%s]}' % b",".join([b'{"model": "a"}'] * 1000), None),
    ],
)
def test_the_only_model_that_a_body_can_name_is_found_without_parsing(body, name):
    assert only_name(body) == name


def test_what_is_found_without_parsing_is_what_parsing_finds_or_nothing_is():
    rng = random.Random(11)
    pieces = ["model", "model_name", "a", "b", "", '"', "\\", "é", "\n", ":", "{", 1, None, True]

    def value(depth):
        kind = rng.randrange(4) if depth else 3
        if kind == 0:
            return {str(rng.choice(pieces)): value(depth - 1) for _ in range(rng.randrange(4))}
        if kind == 1:
            return [value(depth - 1) for _ in range(rng.randrange(3))]
        return rng.choice(pieces)

    named = 0
    for _ in range(5000):
        fields = {str(rng.choice(pieces)): value(2) for _ in range(rng.randrange(5))}
        body = json.dumps(fields, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        if rng.random() < 0.5:
            body = body.replace(b"model", rng.choice([b"mod\\u0065l", b"\\u006dodel", b"model"]))
        found, true = only_name(body), model_of(read_body(body))
        assert found is None or true in ("", found), body
        named += bool(found and true)
    assert named > 100


@pytest.mark.parametrize(
    "body", [b'{"model":"a",' * 1_000_000, b'{"model"' + b" " * 16_000_000, b'{"\\u00' * 3_000_000]
)
def test_a_hostile_body_is_searched_quickly(body):
    started = time.thread_time()
    only_name(body)
    assert time.thread_time() - started < 1.0


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": LONG},
        {"prompt": [LONG, "second"]},
        {"prompt": list(range(500))},
        {"input": LONG},
        {"messages": [{"role": "user", "content": LONG}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]},
        {"system": LONG, "messages": [{"role": "user", "content": "Hi"}]},
        {"system": [{"type": "text", "text": LONG}], "messages": []},
    ],
)
def test_every_apis_prompt_has_beginnings(body):
    assert len(beginnings(body)) >= len(LONG) // CHUNK
    assert beginnings(body) == beginnings(json.loads(json.dumps(body)))


def test_a_conversations_next_turn_shares_all_beginnings_of_the_turn_before():
    first = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}]}
    turns = [{"role": "assistant", "content": LONG[::-1]}, {"role": "user", "content": "And then?"}]
    second = {"messages": first["messages"] + turns}
    assert shared(first, second) == len(beginnings(first)) > 10
    assert len(beginnings(second)) > len(beginnings(first))


def test_prompts_share_beginnings_up_to_where_they_differ():
    changed = LONG[: CHUNK * 5 + 3] + "X" + LONG[CHUNK * 5 + 4 :]
    assert shared({"prompt": LONG}, {"prompt": changed}) == 5


def test_the_same_prompt_for_another_model_shares_nothing():
    assert shared({"prompt": LONG, "model": "a"}, {"prompt": LONG, "model": "b"}) == 0
    assert shared({"prompt": LONG, "model": "a"}, {"prompt": LONG, "model": "a.gguf"}) > 0


@pytest.mark.parametrize(
    "body", [{}, {"messages": 7}, {"messages": [None, 7, {"content": None}]}, {"prompt": {"a": 1}}]
)
def test_a_strange_body_has_few_beginnings_and_no_error(body):
    assert len(beginnings(body)) <= 1


@pytest.mark.parametrize("depth", [20, 900, 990])
@pytest.mark.parametrize("field", ["prompt", "tools", "system", "messages", "role", "content"])
def test_a_prompt_that_is_nested_deeply_is_no_error(field, depth):
    nested = "x"
    for _ in range(depth):
        nested = [{"text": [nested]}]
    body = {"messages": [{field: nested}]} if field in ("role", "content") else {field: nested}
    assert len(beginnings(body)) <= MOST_CHUNKS


def test_a_huge_prompt_is_told_by_its_beginning_and_quickly():
    body = {"prompt": "x" * (8 << 20)}
    started = time.thread_time()
    assert len(beginnings(body)) == MOST_CHUNKS
    assert time.thread_time() - started < 0.5


# -------------------------------------------------------------------------------------------------- heads

HELLO = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "Hello"}]
MORE = [{"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Who are you?"}]


@pytest.mark.parametrize(
    "first, later",
    [
        ({"messages": HELLO}, {"messages": HELLO + MORE, "temperature": 1}),
        ({"system": "Be kind.", "messages": HELLO[1:]}, {"system": "Be kind.", "messages": HELLO[1:] + MORE}),
        ({"input": HELLO, "instructions": "x"}, {"input": HELLO + MORE, "instructions": "x"}),
        ({"prompt": LONG}, {"prompt": LONG + "And then?"}),
        ({"model": "a", "messages": HELLO}, {"model": "a.gguf", "messages": HELLO + MORE}),
    ],
)
def test_all_turns_of_a_conversation_have_one_head(first, later):
    assert head_of(first) == head_of(later) != 0


@pytest.mark.parametrize(
    "other",
    [
        {"messages": HELLO[1:]},
        {"messages": HELLO[:1] + [{"role": "user", "content": "Goodbye"}]},
        {"messages": HELLO, "tools": [{"type": "function"}]},
        {"messages": HELLO, "model": "b"},
        {"prompt": "Hello"},
    ],
)
def test_other_conversations_have_other_heads(other):
    assert head_of(other) != head_of({"messages": HELLO})


@pytest.mark.parametrize("fields", [{}, {"prompt": ""}, {"messages": []}, {"model": "a", "temperature": 1}])
def test_what_has_no_prompt_has_no_head(fields):
    assert head_of(fields) == 0


@pytest.mark.parametrize(
    "fields", [{"messages": 7}, {"messages": ["x", None, {}]}, {"prompt": [[1, 2], "x"]}, {"input": {}}]
)
def test_a_head_is_made_of_whatever_a_client_sends(fields):
    assert head_of(fields) >= 0


def test_a_head_of_much_takes_little_time():
    body = {"messages": [{"role": "system", "content": "x" * 100}] * 30000, "system": "y" * 3_000_000}
    started = time.perf_counter()
    assert head_of(body)
    assert time.perf_counter() - started < 1

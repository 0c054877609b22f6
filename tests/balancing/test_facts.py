"""What a server says of itself: whatever it is, it can be written again."""

import json

import pytest

from core.balancing.facts import MOST_MODELS, good_name, life_of, read_models, reason, slots_of


@pytest.mark.parametrize("name", ["m.gguf", "/a/b c.gguf", "qwen3:4b", "模型", "x" * 1024])
def test_a_name_is_kept_as_it_is(name):
    assert good_name(name) == name


@pytest.mark.parametrize(
    "name", ["\ud800", "", "x" * (1 << 20), "a\nb", "a\0", "\x1b[31m", "\x85", "\u2028", None, 7, True, {}, ["a"]]
)
def test_what_is_no_name_is_left_out(name):
    assert good_name(name) is None
    assert read_models({"models": [{"name": name}, {"name": "good"}]}) == [{"name": "good"}]
    assert read_models({"data": [{"id": name}]}) == []


def nested(depth, inner=1):
    for _ in range(depth):
        inner = [{"deeper": inner}]
    return inner


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), 1 << 100, -(10**30), "\ud800", nested(400), "x" * (1 << 20), [[]] * 100000]
)
def test_whatever_else_a_model_has_can_be_written_again(value):
    (model,) = read_models({"models": [{"name": "m", "size_mb": 5.2, "of": {"a": value, "ok": [1, None, True]}}]})
    assert len(json.dumps(model, allow_nan=False, ensure_ascii=False).encode("utf-8")) < 10000
    assert model["size_mb"] == 5.2 and model["of"]["ok"] == [1, None, True]


def test_a_name_of_a_field_can_be_written_again_too():
    (model,) = read_models({"models": [{"name": "m", "\ud800": 1, "a": {"\udfff": 2}}]})
    json.dumps(model, ensure_ascii=False).encode("utf-8")


def test_a_list_ends():
    assert len(read_models({"models": [{"name": "m%d" % n} for n in range(5000)]})) == MOST_MODELS


@pytest.mark.parametrize("body", [{}, {"models": None}, {"models": {"name": "m"}}, {"data": "x"}])
def test_what_lists_no_models_tells_nothing(body):
    assert read_models(body) is None


@pytest.mark.parametrize(
    "value", [float("inf"), -1, 0, True, False, 10**30, 100_001, 2.0, "4", None, {}, [4], float("nan")]
)
def test_a_number_of_slots_that_can_not_be_is_none(value):
    assert slots_of(value) is None
    assert slots_of(4) == 4 and slots_of(100_000) == 100_000


def test_a_life_is_a_number_or_a_name():
    assert life_of(17) == 17 and life_of("pod-7") == "pod-7"
    assert life_of({"a": 1}) is None and life_of("\ud800") is None and life_of(1e999) is None


@pytest.mark.parametrize(
    "facts, text",
    [
        ({"error": {"message": "loading"}}, "loading"),
        ({"status": "loading"}, "loading"),
        ({"error": {"message": nested(400)}, "status": {}}, "status 503"),
        ({"error": "x"}, "status 503"),
        ({"status": "a\x1b\nb\ud800"}, "a  b "),
        ({"status": "x" * 10**6}, "x" * 200),
    ],
)
def test_a_reason_is_one_short_line(facts, text):
    assert reason(503, facts) == text

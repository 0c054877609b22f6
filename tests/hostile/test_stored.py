"""Responses that reach for what is not theirs: ids that are paths, chains that are missing, items that are nothing.

Files that somebody has tampered with are in tests/apis/test_response_store.py.
"""

import json
from urllib.parse import quote

import pytest

from hostile.enemy import get, post, unharmed

MODEL = "demo.gguf"
SECONDS = 15  # that an answer to a flood may take on a loaded machine
IDS = [
    "..", "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "resp_%00", "resp_" + "0" * 32 + "%0a", ".json",
    "resp_" + "0" * 32 + ".json", "resp_" + "0" * 31, "resp_" + "G" * 32, "RESP_" + "0" * 32, "x" * 3000,
    "resp_" + "%D9%A0" * 32, "%ff%fe", "~", "*", "resp_*", "CON", "%e2%80%ae", "resp_" + "0" * 32 + "%2f..",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(IDS)))
def test_an_id_that_is_a_path_is_no_id(target, number):
    place, survivors = target
    with unharmed(*survivors):
        for end in ("", "/input_items"):
            for method in (b"GET", b"DELETE") if not end else (b"GET",):
                reply = get(place.port, "/v1/responses/%s%s" % (IDS[number], end), method=method)
                assert reply.status in (400, 404) and b"root:" not in reply.body and len(reply.body) < 4096
        assert post(place.port, "/v1/responses/%s/cancel" % IDS[number], b"{}").status in (400, 404)


TEXTS = ["../../etc/passwd", "\0", "resp_" + "0" * 32, "resp_" + "0" * 32 + "\n", "x" * 1000000, "\u202e"]


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_chain_from_nowhere_is_refused(target, number):
    place, survivors = target
    body = {"model": MODEL, "input": "x", "previous_response_id": TEXTS[number]}
    with unharmed(*survivors):
        reply = post(place.port, "/v1/responses", json.dumps(body).encode())
        assert reply.status == 400 and reply.error["param"] == "previous_response_id" and len(reply.body) < 4096
        body = {"model": MODEL, "input": [{"type": "item_reference", "id": TEXTS[number]}]}
        reply = post(place.port, "/v1/responses", json.dumps(body).encode())
        assert reply.status == 400 and reply.error["param"] == "input[0].id" and len(reply.body) < 4096


def item(**more):
    return dict({"type": "message", "role": "user", "content": "x"}, **more)


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}
NOTHINGS = [None, 1, True, "x", [], {}, [[]], [{}], {"a": []}, "x" * 1000, 1e300]
ITEMS = (
    [[nothing] for nothing in NOTHINGS]
    + [[item(**{name: nothing})] for name in ("type", "role", "content", "id", "status") for nothing in NOTHINGS]
    + [[item(content=[{"type": "input_text", "text": nothing}])] for nothing in NOTHINGS]
    + [[item(content=[nothing])] for nothing in NOTHINGS]
    + [[dict(CALL, **{name: nothing})] for name in ("call_id", "name", "arguments") for nothing in NOTHINGS]
    + [[CALL, dict(OUTPUT, **{name: nothing})] for name in ("call_id", "output") for nothing in NOTHINGS]
    + [[{"type": "reasoning", name: nothing}] for name in ("summary", "content") for nothing in NOTHINGS]
    + [[OUTPUT, CALL], [CALL] * 3 + [OUTPUT] * 3, [item(type="computer_call")], [item(type="mcp_call")]]
)


def test_items_that_are_nothing(alone):
    place, survivors = alone
    with unharmed(*survivors):
        for items in ITEMS:
            body = {"model": MODEL, "input": items, "max_output_tokens": 1, "store": False}
            reply = post(place.port, "/v1/responses", json.dumps(body).encode())
            assert reply.status in (200, 400), (items, reply.status, reply.body[:300])
            if reply.status == 400:
                assert "messages[" not in reply.error["message"] and len(reply.body) < 4096, (items, reply.body[:300])


FIELDS = ["tools", "tool_choice", "text", "reasoning", "metadata", "include", "stream_options", "conversation",
          "previous_response_id", "truncation", "max_tool_calls", "max_output_tokens", "top_logprobs", "user",
          "safety_identifier", "prompt_cache_key", "chat_template_kwargs"]  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_are_nothing(alone, name):
    place, survivors = alone
    good = {"model": MODEL, "input": "x", "max_output_tokens": 1, "store": False}
    with unharmed(*survivors):
        for nothing in NOTHINGS + [[{"type": each}] for each in NOTHINGS] + [{"type": each} for each in NOTHINGS]:
            reply = post(place.port, "/v1/responses", json.dumps(dict(good, **{name: nothing})).encode())
            assert reply.status in (200, 400), (name, nothing, reply.status, reply.body[:300])


FLOODS = [
    {"input": [item()] * 30000}, {"input": "x" * 3000000}, {"input": [CALL, OUTPUT] * 2000},
    {"input": [item(content=[{"type": "input_text", "text": "x"}] * 60000)]},
    {"input": [{"type": "reasoning", "content": [{"text": "x"}] * 60000}, {"role": "user", "content": "x" * 9999}]},
    {"input": "x", "metadata": {"x" * 3000000: ""}},
    {"input": "x", "tools": [{"type": "function", "name": "f%d" % n} for n in range(20000)]},
    {"input": "x", "include": ["message.output_text.logprobs"] * 100000},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FLOODS)))
def test_floods(target, number):
    place, survivors = target
    body = dict({"model": MODEL, "max_output_tokens": 1}, **FLOODS[number])
    with unharmed(*survivors):
        reply = post(place.port, "/v1/responses", json.dumps(body).encode(), patience=SECONDS)
        assert reply.status in (400, 413), (reply.status, reply.body[:300])
        assert len(reply.body) < 4096


QUERIES = ["limit=-1", "limit=1e9", "limit=" + "9" * 3000, "order=" + quote("\0"), "after=../.."]


@pytest.mark.parametrize("query", QUERIES)
def test_pages_of_what_is_not_there(target, query):
    place, survivors = target
    with unharmed(*survivors):
        reply = get(place.port, "/v1/responses/resp_%s/input_items?%s" % ("0" * 32, query))
        assert reply.status in (400, 404) and len(reply.body) < 4096

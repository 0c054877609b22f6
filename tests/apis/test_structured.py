"""Answers of the demo model that must be something: valid, whatever it has in mind, with thoughts and without."""

import dataclasses
import json

import pytest
from engines import DEMO, launch, result

from core.apis import openai_shapes
from core.chat.conversation import Conversation
from core.chat.defaults import ChatDefaults
from core.chat.template import CHATML
from core.engine.generation import Generation

jsonschema = pytest.importorskip("jsonschema")

THINKING = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
ANSWER = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"type": "number"}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
WANTED = {
    "tools": {"tools": TOOLS},
    "schema": {"response_format": FORMAT},
    "both": {"tools": TOOLS, "response_format": FORMAT},
}


@pytest.fixture(scope="module")
def engine():
    engine = launch(slots=4, ctx_size=768)
    yield engine
    engine.stop()


def answered(engine, seed, begun="", template=THINKING, max_tokens=250, **body):
    """Return a message that the demo model has written, after a text that it is said to have begun with, and why it
    ended."""
    asked = {"messages": [{"role": "user", "content": "Hello, how are you?"}], "seed": seed, "temperature": 1.5}
    ask, _, _ = openai_shapes.read_chat(dict(asked, max_tokens=max_tokens, **body))
    conversation = Conversation(ask, DEMO, ChatDefaults(template))
    tokens = engine.vocabulary().tokenize(begun, False, True) if begun else []
    generation = Generation(dataclasses.replace(conversation.asks()[0]), begun=tokens)
    engine.submit(generation)
    text, _, end = result(generation)
    turn = conversation.turn("nonce")
    return turn.read(begun + text, end.reason), turn.reason


def check(message, reason, wanted):
    """Check a message: its calls fit their parameters, and what it says the schema, unless it was cut short."""
    if reason == "length":
        return
    schemas = {"get_weather": PLACE, "now": {"type": "object", "maxProperties": 0}}
    for call in message.calls:
        jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])
    assert reason == ("tool_calls" if message.calls else "stop")
    if wanted == "schema" or (wanted == "both" and not message.calls):
        jsonschema.validate(json.loads(message.content), ANSWER)


CALL = "<tool_call>"
BEGINNINGS = {  # of answers, without thoughts and with
    "tools": [("", ""), (CALL, "Hm.</think>" + CALL), ("Hi. " + CALL, "No <tool_call> yet.</think>\nHi. " + CALL)],
    "schema": [("", "Hm.</think>"), ("{", '{"mood": 1}</think>\n\n{'), ("", "")],
    "both": [("", "Hm.</think>"), (CALL, "Hm.</think>" + CALL), ("{", "<tool_call></think>{")],
}


def every_answer_is_valid(engine, seeds):
    for seed in seeds:
        thinks, wanted = seed % 2, list(WANTED)[seed // 2 % 3]
        template = THINKING if thinks else CHATML
        begun = BEGINNINGS[wanted][seed // 6 % 3][thinks]
        message, reason = answered(engine, seed, begun, template, **WANTED[wanted])
        check(message, reason, wanted)
        if begun.endswith(CALL) and reason != "length":
            assert message.calls


def test_whatever_the_model_writes_it_is_valid(engine):
    every_answer_is_valid(engine, range(36))


@pytest.mark.slow
def test_five_hundred_answers_are_valid(engine):
    every_answer_is_valid(engine, range(500))

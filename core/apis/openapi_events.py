"""Schemas of what streams tell: of one server-sent event, or of one line of JSON.

OpenAPI 3.1 has no word for a stream's items, so the schema of a stream's content is that of one item, as the
description says. An event is an object of its fields, `event` and `data`, as in OpenAPI 3.2. A stream that fails in its
middle ends with an item that tells the error. Pings are comments, which are no items.
"""

from typing import Any
from typing import Sequence as Many

from core.apis.openapi_answers import (
    MESSAGE_USAGE,
    NATIVE_ONE,
    OLLAMA_COUNTS,
    OLLAMA_HEAD,
    OLLAMA_REASON,
    REASON,
    RESPONSE,
    STOP_REASON,
    TIMINGS,
    USAGE,
)
from core.http.schemas import (
    NUMBER,
    OBJECT,
    STRING,
    WHOLE,
    Schema,
    answer,
    array,
    choice,
    either,
    json_text,
    nullable,
    told,
)

_ERROR: Schema = {"$ref": "#/components/schemas/Error"}


def _event(title: str, *schemas: Schema) -> Schema:
    """Return the schema of an event whose data is one of these; after the last one comes the word [DONE]."""
    data = either(json_text(either(*schemas, _ERROR)), _fixed("[DONE]"))
    return told(answer(title, data=data), "One server-sent event.")


def _typed_event(title: str, *schemas: Schema) -> Schema:
    """Return the schema of an event whose data is one of these, and whose name is the type of that."""
    names = [schema["properties"]["type"]["const"] for schema in schemas]
    return told(answer(title, event=choice(*names), data=json_text(either(*schemas))), "One server-sent event.")


def _fixed(value: Any) -> Schema:
    return {"const": value}


# ------------------------------------------------------------------------------ ComeAPI's, llama.cpp's and OpenAI's

_PROBABILITIES = {"completion_probabilities": array(OBJECT)}
_PIECE = {"response": STRING, "tokens": array(WHOLE)}
_SUMMARY = {
    "model": STRING, "finish_reason": choice("stop", "length"), "seed": WHOLE, "usage": USAGE, "timings": TIMINGS
}  # fmt: skip
GENERATE = _event(
    "GenerateEvent",
    answer("", tuple(_PROBABILITIES), **_PIECE, done=_fixed(False), **_PROBABILITIES),
    answer("", tuple(_PROBABILITIES), **_PIECE, done=_fixed(True), **_SUMMARY, **_PROBABILITIES),
)  # fmt: skip
_SOFAR = {
    "timings": OBJECT, "prompt_progress": answer("", total=WHOLE, cache=WHOLE, processed=WHOLE, time_ms=NUMBER)
}  # fmt: skip
NATIVE = _event(
    "NativeEvent",
    answer(
        "", (*_SOFAR, *_PROBABILITIES), index=WHOLE, content=STRING, tokens=array(WHOLE), stop=_fixed(False), **_SOFAR,
        **_PROBABILITIES,
    ),
    dict(NATIVE_ONE, properties=dict(NATIVE_ONE["properties"], stop=_fixed(True))),  # or its `response_fields`
)  # fmt: skip
_CALL = answer(
    "", ("id", "type"), index=WHOLE, id=STRING, type=choice("function"),
    function=answer("", ("name",), name=STRING, arguments=STRING),
)  # fmt: skip
_CHANGE = {
    "role": choice("assistant"), "content": STRING, "reasoning_content": STRING, "tool_calls": array(_CALL)
}  # fmt: skip


def _chunk(title: str, kind: str, piece: Schema) -> Schema:
    """Return the schema of a chunk of OpenAI's; the one that tells the usage has no choices."""
    choices = array(answer("", (), index=WHOLE, **piece, logprobs=nullable(OBJECT), finish_reason=nullable(REASON)))
    chunk = answer(
        "", ("usage", *_SOFAR), id=STRING, object=choice(kind), created=WHOLE, model=STRING,
        system_fingerprint=STRING, choices=choices, usage=USAGE, **_SOFAR,
    )  # fmt: skip
    return _event(title, chunk)


CHAT = _chunk("ChatEvent", "chat.completion.chunk", {"delta": answer("", tuple(_CHANGE), **_CHANGE)})
COMPLETION = _chunk("CompletionEvent", "text_completion", {"text": STRING})

# --------------------------------------------------------------------------------------- OpenAI's Responses API


def _news(kind: str, optional: Many[str] = (), **properties: Schema) -> Schema:
    return answer("", optional, type=_fixed("response." + kind), sequence_number=WHOLE, **properties)


def _response(status: str) -> Schema:
    """Return the schema of the answer's object in this state."""
    return dict(RESPONSE, title=status, properties=dict(RESPONSE["properties"], status=_fixed(status)))


_PLACE = {"item_id": STRING, "output_index": WHOLE}
_CONTENT = dict(_PLACE, content_index=WHOLE)
_PART = answer("", type=choice("output_text", "reasoning_text"), text=STRING)
_ITEM = answer("", id=STRING, type=choice("message", "reasoning", "function_call"), status=STRING)
_TOKENS = array(OBJECT)
RESPONSES = _typed_event(
    "ResponseEvent",
    _news("created", response=_response("in_progress")),
    _news("in_progress", tuple(_SOFAR), response=_response("in_progress"), **_SOFAR),
    _news("output_item.added", output_index=WHOLE, item=_ITEM),
    _news("content_part.added", (), **_CONTENT, part=_PART),
    _news("reasoning_text.delta", (), **_CONTENT, delta=STRING),
    _news("reasoning_text.done", (), **_CONTENT, text=STRING),
    _news("output_text.delta", (), **_CONTENT, delta=STRING, logprobs=_TOKENS),
    _news("output_text.done", (), **_CONTENT, text=STRING, logprobs=_TOKENS),
    _news("function_call_arguments.delta", (), **_PLACE, delta=STRING),
    _news("function_call_arguments.done", (), **_PLACE, name=STRING, arguments=STRING),
    _news("content_part.done", (), **_CONTENT, part=_PART),
    _news("output_item.done", output_index=WHOLE, item=_ITEM),
    _news("completed", response=_response("completed"), timings=TIMINGS),
    _news("incomplete", response=_response("incomplete"), timings=TIMINGS),
    _news("failed", response=_response("failed")),
)  # fmt: skip

# ------------------------------------------------------------------------------------- Anthropic's and Ollama's

_STOP = {"stop_reason": nullable(STOP_REASON), "stop_sequence": nullable(STRING)}
_BLOCK = either(
    answer("", type=_fixed("thinking"), thinking=STRING, signature=STRING),
    answer("", type=_fixed("text"), text=STRING),
    answer("", type=_fixed("tool_use"), id=STRING, name=STRING, input=OBJECT),
)
_GROWN = either(
    answer("", type=_fixed("thinking_delta"), thinking=STRING),
    answer("", type=_fixed("text_delta"), text=STRING),
    answer("", type=_fixed("input_json_delta"), partial_json=STRING),
)
_BEGUN = answer(
    "", (), id=STRING, type=choice("message"), role=choice("assistant"), model=STRING, content=array(OBJECT), **_STOP,
    usage=MESSAGE_USAGE,
)  # fmt: skip
MESSAGE = _typed_event(
    "MessageEvent",
    answer("", type=_fixed("message_start"), message=_BEGUN),
    answer("", type=_fixed("content_block_start"), index=WHOLE, content_block=_BLOCK),
    answer("", type=_fixed("content_block_delta"), index=WHOLE, delta=_GROWN),
    answer("", type=_fixed("content_block_stop"), index=WHOLE),
    answer("", type=_fixed("message_delta"), delta=answer("", (), **_STOP), usage=MESSAGE_USAGE),
    answer("", type=_fixed("message_stop")),
    answer("", type=_fixed("error"), error=OBJECT),
)  # fmt: skip


def _lines(title: str, optional: Many[str] = (), **piece: Schema) -> Schema:
    """Return the schema of a line of Ollama's: a piece, the last one with its counts, or an error."""
    line = either(
        answer("", optional, **OLLAMA_HEAD, **piece, done=_fixed(False)),
        answer("", optional, **OLLAMA_HEAD, **piece, done=_fixed(True), done_reason=OLLAMA_REASON, **OLLAMA_COUNTS),
        answer("", error=STRING),
    )  # fmt: skip
    return told(dict(line, title=title), "One line.")


_OLLAMA_CALL = answer("", function=answer("", name=STRING, arguments=OBJECT))
_OLLAMA_MESSAGE = answer(
    "", ("thinking", "tool_calls"), role=choice("assistant"), content=STRING, thinking=STRING,
    tool_calls=array(_OLLAMA_CALL),
)  # fmt: skip
OLLAMA_CHAT = _lines("OllamaChatLine", message=_OLLAMA_MESSAGE)
OLLAMA_GENERATE = _lines("OllamaGenerateLine", ("thinking",), response=STRING, thinking=STRING)

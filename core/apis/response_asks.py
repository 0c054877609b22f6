"""What a body of POST /v1/responses asks for, by OpenAI's API reference.

    body ── read_response ──> ResponseAsk(chat, items, told, …)

The body is translated to that of a chat (POST /v1/chat/completions), which openai_shapes.py reads: so a chat and a
response know the same fields, llama.cpp's included, and check them alike. Errors name the fields that the client sent.
"""

import dataclasses
import functools
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from core import fields
from core.apis.openai_shapes import effort_options, read_chat
from core.apis.response_items import Item, Messages, read_items
from core.apis.response_store import ID, Record, ResponseStore
from core.bounds import TOOLS
from core.chat.conversation import ChatAsk
from core.engine.defaults import Defaults
from core.errors import APIError, json_type

Body = Dict[str, Any]

# Fields of chats that have another name here: a client that sends one means something that would not happen.
_OF_CHATS = {
    "messages": "'input'",
    "max_tokens": "'max_output_tokens'",
    "max_completion_tokens": "'max_output_tokens'",
    "response_format": "'text.format'",
    "reasoning_effort": "'reasoning.effort'",
    "logprobs": "'include': [\"message.output_text.logprobs\"]",
    "n": "one request for each answer",
}
_NOT_SERVED = {
    "conversation": "no conversations are kept, but 'previous_response_id' works",
    "prompt": "no prompts are kept: send 'instructions' and 'input'",
    "context_management": "nothing is compacted",
    "moderation": "nothing is moderated",
}
_OWN = {"input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens", "stream_options"}
_INCLUDABLE = {
    "message.output_text.logprobs", "reasoning.encrypted_content", "message.input_image.image_url",
    "web_search_call.action.sources", "web_search_call.results", "file_search_call.results",
    "code_interpreter_call.outputs", "computer_call_output.output.image_url",
}  # fmt: skip


class ResponseAsk(NamedTuple):
    """What is asked for. `items`: all that the model is told; `told`: what the answer's object says of the request."""

    chat: ChatAsk
    items: List[Item]
    told: Body
    logprobs: Optional[int]
    store: bool
    stream: bool


class Caller(NamedTuple):
    """Who asks: what ids are made of (32 hexadecimal digits), and whose stored answers may be used."""

    nonce: str
    owner: str


def read_response(
    body: Body, caller: Caller, store: ResponseStore, defaults: Defaults = Defaults()
) -> ResponseAsk:
    """Return what a body asks for, with what `store` has of earlier answers. Raises APIError 400."""
    _refuse(body)
    before = _before(body, caller, store)
    own = read_items(body.get("input"), caller.nonce, _Finder(store, caller.owner))
    _refuse_repeated(before, own)
    translated, paths = _translated(body, before, own)
    back = functools.partial(fields.own_path, paths)
    with fields.named(back):
        chat, streaming, logprobs = read_chat(translated, defaults)
    chat = dataclasses.replace(chat, own=back)
    keep = fields.flag(body, "store", True)
    return ResponseAsk(chat, before + own, _told(body, chat, keep), logprobs, keep, streaming.on)


def _refuse(body: Body) -> None:
    """Raise APIError 400 for what is not served, by its name."""
    for name, instead in _OF_CHATS.items():
        if body.get(name) is not None:
            raise _wrong(name, "is no field of responses: here it is %s" % instead)
    for name, why in _NOT_SERVED.items():
        if body.get(name) is not None:
            raise APIError(400, "'%s' is not supported: %s." % (name, why), "unsupported", name)
    if fields.flag(body, "background", False):
        why = "an answer ends with its request"
        raise APIError(400, "'background' is not supported: %s." % why, "unsupported", "background")
    fields.mapping(body, "stream_options")  # its include_obfuscation is a hint: nothing needs to be obscured here
    if fields.text(body, "truncation", "disabled") != "disabled":
        why = "must be 'disabled': no items are dropped to make the others fit"
        raise APIError(400, "'truncation' %s." % why, "unsupported", "truncation")


# ------------------------------------------------------------------------------------------ earlier answers


def _before(body: Body, caller: Caller, store: ResponseStore) -> List[Item]:
    """Return the items that the answer to `previous_response_id` was told, and those that it gave."""
    id = fields.text(body, "previous_response_id", None)
    if id is None:
        return []
    record = store.find(id, caller.owner)
    if record is None:
        message = "Previous response with id '%s' not found: %s" % (id, WHY_NOT_FOUND)
        raise APIError(400, message, "previous_response_not_found", "previous_response_id")
    return _items_of(record)


WHY_NOT_FOUND = (
    "it was not stored, is deleted or too old, belongs to another API key, or is kept on another machine, which does "
    "not share its folder with this one."
)


def _items_of(record: Record) -> List[Item]:
    """Return what a model is told of an earlier answer: its probabilities are nothing to it."""
    return record.items + [_without_logprobs(item) for item in record.response.get("output", [])]


def _without_logprobs(item: Item) -> Item:
    if item["type"] != "message":
        return item
    return dict(item, content=[dict(part, logprobs=[]) for part in item["content"]])


def _refuse_repeated(before: List[Item], own: List[Item]) -> None:
    """Raise APIError 400 for an item that the earlier answer brings with it: the model would be told it twice."""
    known = {item["id"] for item in before}
    for index, item in enumerate(own):
        if item["id"] in known:
            raise _wrong("input[%d].id" % index, "is in the previous response already: '%s'" % item["id"])


class _Finder:
    """Finds stored items by their ids, which tell the answers that they are of. Reads each of these once."""

    def __init__(self, store: ResponseStore, owner: str):
        self._store = store
        self._owner = owner
        self._read: Dict[str, Dict[str, Item]] = {}  # an answer's id -> its items by their ids

    def __call__(self, id: str) -> Optional[Item]:
        answer = "resp_" + id.partition("_")[2][:32]
        if answer not in self._read and ID.fullmatch(answer):
            record = self._store.find(answer, self._owner)
            self._read[answer] = {item["id"]: item for item in _items_of(record)} if record else {}
        return self._read.get(answer, {}).get(id)


# --------------------------------------------------------------------------------------------- translation


def _translated(body: Body, before: List[Item], own: List[Item]) -> Tuple[Body, Dict[str, str]]:
    """Return the body of a chat that asks for the same, and where its fields stand in this one."""
    messages = Messages()
    instructions = fields.any_text(body, "instructions")
    if instructions:
        messages.instruct(instructions)
    for item in before:
        messages.add(item, "previous_response_id")
    for index, item in enumerate(own):
        messages.add(item, "input" if isinstance(body.get("input"), str) else "input[%d]" % index)
    paths = messages.paths
    chat = {name: value for name, value in body.items() if name not in _OWN}
    chat.update(messages=messages.messages, max_completion_tokens=body.get("max_output_tokens"))
    paths["max_completion_tokens"] = "max_output_tokens"
    chat.update(_logprobs(body))
    chat.update(_format(body))
    paths["response_format"] = "text.format"
    chat["chat_template_kwargs"] = _template_options(body)
    chat.update(_tools(body, paths))
    return chat, paths


def _logprobs(body: Body) -> Body:
    """Return the fields of a chat that ask for probabilities."""
    included = fields.texts(body, "include")
    for name in included:
        if name not in _INCLUDABLE:
            raise _wrong("include", "must hold names of what can be included: '%s' is none" % name)
    wanted = "message.output_text.logprobs" in included or bool(body.get("top_logprobs"))
    return {"logprobs": wanted}


def _format(body: Body) -> Body:
    """Return the field of a chat that says what form the answer has."""
    text = fields.mapping(body, "text") or {}
    if text.get("verbosity") not in (None, "low", "medium", "high"):
        raise _wrong("text.verbosity", "must be 'low', 'medium' or 'high'")
    given = text.get("format")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong("text.format", "must be an object, not %s" % json_type(given))
    kind = given.get("type")
    if kind == "json_schema":
        if not isinstance(given.get("schema"), dict):
            raise _wrong("text.format.schema", "must be a JSON schema, not %s" % json_type(given.get("schema")))
        return {"response_format": {"type": kind, "json_schema": given}}
    if kind not in ("text", "json_object"):
        raise _wrong("text.format.type", "must be 'text', 'json_object' or 'json_schema'")
    return {"response_format": {"type": kind}}


def _template_options(body: Body) -> Body:
    """Return what a template is told of the reasoning that is wanted."""
    reasoning = fields.mapping(body, "reasoning") or {}
    for name in ("summary", "generate_summary"):
        if reasoning.get(name) not in (None, "auto"):
            raise _wrong("reasoning." + name, "must be 'auto': thoughts are told as they are, without a summary")
    if reasoning.get("context") not in (None, "auto"):
        raise _wrong("reasoning.context", "must be 'auto': the model's template says which thoughts it is told again")
    if reasoning.get("mode") not in (None, "standard"):
        raise _wrong("reasoning.mode", "must be 'standard'")
    given = fields.mapping(body, "chat_template_kwargs") or {}
    return dict(effort_options(reasoning.get("effort"), "reasoning.effort"), **given)


def _tools(body: Body, paths: Dict[str, str]) -> Body:
    """Return the fields of a chat that offer tools."""
    offered, choice = body.get("tools"), body.get("tool_choice")
    if offered is not None and not isinstance(offered, list):
        raise _wrong("tools", "must be an array, not %s" % json_type(offered))
    TOOLS.check(len(offered or ()), "tools")
    every = tools = [_tool(tool, "tools[%d]" % index) for index, tool in enumerate(offered or ())]
    if isinstance(choice, dict):
        tools, choice = _choice(choice, every)
        paths["tool_choice.function"] = "tool_choice"
    paths.update(("tools[%d].function" % index, "tools[%d]" % every.index(tool)) for index, tool in enumerate(tools))
    return {"tools": tools, "tool_choice": choice if tools or choice != "auto" else None}


def _tool(tool: Any, place: str) -> Body:
    if not isinstance(tool, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(tool))
    if tool.get("type") != "function":
        raise _not_hosted(tool.get("type"), place + ".type")
    return {"type": "function", "function": {name: tool.get(name) for name in ("name", "description", "parameters")}}


def _choice(choice: Body, tools: List[Body]) -> Tuple[List[Body], Any]:
    """Return the tools that may be called, and the choice, as chats have it."""
    kind = choice.get("type")
    if kind == "function":
        return tools, {"type": "function", "function": {"name": choice.get("name")}}
    if kind != "allowed_tools":
        raise _not_hosted(kind, "tool_choice.type")
    mode, allowed = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise _wrong("tool_choice.mode", "must be 'auto' or 'required'")
    if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
        raise _wrong("tool_choice.tools", "must be an array of objects")
    known = {tool["function"]["name"]: tool for tool in tools if isinstance(tool["function"]["name"], str)}
    for index, tool in enumerate(allowed):
        if not isinstance(tool.get("name"), str) or tool["name"] not in known:
            raise _wrong("tool_choice.tools[%d].name" % index, "must be one of the functions in 'tools'")
    return [known[name] for name in dict.fromkeys(tool["name"] for tool in allowed)], mode


def _not_hosted(kind: Any, place: str) -> APIError:
    shown = "is '%s'" % kind if isinstance(kind, str) else "is no text"
    return _wrong(place, "%s, but this server hosts no tools: it takes 'function' only" % shown)


# ------------------------------------------------------------------------------- what the answer says of it


def _told(body: Body, chat: ChatAsk, store: bool) -> Body:
    """Return the fields of a response that repeat the request."""
    text, reasoning = body.get("text") or {}, body.get("reasoning") or {}
    names = ("type", "name", "description", "parameters")
    return {
        "background": False,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": fields.integer(body, "max_tool_calls", None, 1, 1 << 31),
        "metadata": _metadata(body),
        "parallel_tool_calls": fields.flag(body, "parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": fields.text(body, "prompt_cache_key", None),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "safety_identifier": fields.text(body, "safety_identifier", None),
        "service_tier": "default",
        "store": store,
        "temperature": chat.sampling.temperature,
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [
            dict({name: tool.get(name) for name in names}, strict=tool.get("strict", True))
            for tool in body.get("tools") or ()
        ],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": chat.sampling.top_p,
        "truncation": "disabled",
        "user": fields.text(body, "user", None),
    }


def _metadata(body: Body) -> Body:
    given = fields.mapping(body, "metadata") or {}
    if len(given) > 16:
        raise _wrong("metadata", "may hold at most 16 pairs, not %d" % len(given))
    for name, value in given.items():
        if len(name) > 64 or not isinstance(value, str) or len(value) > 512:
            raise _wrong("metadata", "must have names of at most 64 characters and texts of at most 512")
    return given


def _wrong(place: str, what: str) -> APIError:
    return APIError(400, "'%s' %s." % (place, what), "invalid_value", place)

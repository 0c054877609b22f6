"""Anthropic's Messages API (docs.anthropic.com/en/api/messages), translated to the same conversations.

POST /v1/messages                   messages in, blocks out: text, thinking, tool_use
POST /v1/messages/count_tokens      how many tokens they have

read_messages_body   a body to a ChatAsk; the checks of the OpenAI API do their work on its translation
message_body         an answer's body                _Blocks   the same as a stream of events
Messages             the dialect
"""

import functools
import json
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from core import fields
from core.apis.dialect import Body, Call, ChatDialect, Start
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.openai_shapes import DEFAULTS
from core.ask import UNLIMITED
from core.chat.conversation import ChatAsk, Message, arguments_of
from core.chat.messages import read_messages
from core.chat.parser import Delta
from core.chat.tools import read_tools
from core.engine.defaults import Defaults
from core.engine.outcome import Finished, Result
from core.errors import APIError, json_type
from core.http.messages import Request, json_reply
from core.http.routing import Route
from core.http.sse import Form, event
from core.jsonbody import read_json
from core.sampling import read_sampling

_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


# ----------------------------------------------------------------------------------------------- requests


def read_messages_body(body: Body, limited: bool = True, defaults: Defaults = Defaults()) -> ChatAsk:
    """Return what a body asks for; `limited`: it must say max_tokens. Raises APIError 400."""
    if limited and body.get("max_tokens") is None:
        raise APIError(400, "The field 'max_tokens' is missing.", "missing_field", "max_tokens")
    paths: Dict[str, str] = {}  # where the translation's fields stand in the body
    translated = {"messages": _messages(body, paths), **_tools(body, paths)}
    own = functools.partial(fields.own_path, paths)
    thinking = fields.mapping(body, "thinking") or {}
    options = {"enable_thinking": thinking.get("type") in ("enabled", "adaptive")} if thinking else {}
    with fields.named("thinking.{}".format):
        budget = fields.integer(thinking, "budget_tokens", None, 1, UNLIMITED - 1)
    with fields.named(own):
        messages, tools = read_messages(translated), read_tools(translated)
    return ChatAsk(
        messages=messages,
        model=fields.text(body, "model", None),
        tools=tools,
        sampling=read_sampling(body, defaults.over(DEFAULTS)),
        max_tokens=fields.integer(body, "max_tokens", 1, 1, 1 << 31),
        stop=tuple(fields.texts(body, "stop_sequences")),
        template_options=options,
        budget=budget if options.get("enable_thinking") else None,
        own=own,
    )


def _messages(body: Body, paths: Dict[str, str]) -> List[Body]:
    """Return the messages as the OpenAI API has them, the system's text first; note in `paths` where they stand."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise APIError(400, "'messages' must be an array that is not empty.", "invalid_value", "messages")
    system = body.get("system")
    messages = [{"role": "system", "content": _text(system, "system")}] if system not in (None, "", []) else []
    for index, each in enumerate(given):
        where = "messages[%d]" % index
        if not isinstance(each, dict) or each.get("role") not in ("user", "assistant", "system"):
            message = "'%s' must be an object with the role user or assistant." % where
            raise APIError(400, message, "invalid_value", where)
        for translated, own in _translate(each, where):
            paths.update(("messages[%d]%s" % (len(messages), name), path) for name, path in own.items())
            messages.append(translated)
    return messages


def _translate(message: Body, place: str) -> List[Tuple[Body, Dict[str, str]]]:
    """Return the messages that one of Anthropic's becomes: each tool's result is a message of its own there.

    With each comes where its fields stand in the body, by the ends of their paths.
    """
    where = place + ".content"
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise APIError(400, "'%s' must be a string or an array of blocks." % where, "invalid_value", where)
    texts: List[str] = []
    calls: List[Body] = []
    results: List[Tuple[Body, Dict[str, str]]] = []
    reasoning: List[str] = []
    paths = {"": place}
    for index, block in enumerate(blocks):
        kind = block.get("type")
        at = "%s[%d]" % (where, index)
        if kind == "text":
            texts.append(_text(block.get("text"), at))
        elif kind == "tool_use":
            path = ".tool_calls[%d]" % len(calls)
            paths.update({path: at, path + ".function": at, path + ".function.arguments": at + ".input"})
            calls.append(_call(block, at))
        elif kind == "tool_result":
            result = _text(block.get("content") or "", at)
            answer = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result}
            results.append((answer, {"": at, ".tool_call_id": at + ".tool_use_id"}))
        elif kind in ("thinking", "redacted_thinking"):
            reasoning.append(str(block.get("thinking", "")))
        else:
            message_text = "A block of type %r can't be used: this server takes text only." % (kind,)
            raise APIError(400, message_text, "unsupported", at)
    rest = _rest(message["role"], texts, calls, reasoning, bool(results))
    return results + [(each, paths) for each in rest]


def _rest(role: str, texts: List[str], calls: List[Body], reasoning: List[str], answered: bool) -> List[Body]:
    """Return what is left of a message beside tools' results, if anything is."""
    if answered and not texts:
        return []
    rest: Body = {"role": role, "content": "\n".join(texts) if texts or not calls else None}
    if calls:
        rest["tool_calls"] = calls
    if reasoning:
        rest["reasoning_content"] = "".join(reasoning)
    return [rest]


def _call(block: Body, where: str) -> Body:
    if not isinstance(block.get("input", {}), dict):
        raise APIError(400, "'%s.input' must be an object." % where, "invalid_value", where + ".input")
    function = {"name": block.get("name"), "arguments": json.dumps(block.get("input", {}), ensure_ascii=False)}
    return {"id": block.get("id"), "type": "function", "function": function}


def _text(value: Any, where: str) -> str:
    """Return a text that is given as one or as blocks of text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in value):
        return "\n".join(each["text"] for each in value)
    message = "'%s' must be a string or an array of text blocks, not %s." % (where, json_type(value))
    raise APIError(400, message, "invalid_value", where)


def _tools(body: Body, paths: Dict[str, str]) -> Body:
    """Return the fields tools, tool_choice and parallel_tool_calls of the OpenAI API."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise APIError(400, "'tools' must be an array of objects.", "invalid_value", "tools")
    for index in range(len(tools)):
        place = "tools[%d]" % index
        paths.update({place + ".function": place, place + ".function.parameters": place + ".input_schema"})
    paths["tool_choice.function"] = "tool_choice"
    translated: Body = {"tools": [{"type": "function", "function": _function(tool)} for tool in tools]}
    if choice is not None:
        translated["tool_choice"] = _choice(choice)
        translated["parallel_tool_calls"] = not choice.get("disable_parallel_tool_use", False)
    return translated


def _function(tool: Body) -> Body:
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    return dict(function, description=tool["description"]) if tool.get("description") else function


def _choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in _TOOL_CHOICES:
        message = "'tool_choice' must be of type auto, any, tool or none."
        raise APIError(400, message, "invalid_value", "tool_choice")
    return _TOOL_CHOICES[kind]


# ------------------------------------------------------------------------------------------------ answers


def stop_reason(reason: str, end: Finished) -> Tuple[str, Optional[str]]:
    """Return why an answer ended, and the stop sequence that ended it, as Anthropic names them."""
    if end.stop_word:
        return "stop_sequence", end.stop_word
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(reason, "end_turn"), None


def usage_body(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> Body:
    """Return the usage; cached tokens are not counted among the input's."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": completion_tokens,
    }


def message_body(id: str, model: str, message: Message, reason: str, end: Finished) -> Body:
    """Return a whole answer."""
    content: List[Body] = []
    if message.reasoning:
        content.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content or not message.calls:
        content.append({"type": "text", "text": message.content})
    for call in message.calls:
        content.append({"type": "tool_use", "id": call["id"], "name": call["name"], "input": arguments_of(call)})
    why, word = stop_reason(reason, end)
    usage = usage_body(end.prompt_tokens, end.cached_tokens, end.completion_tokens)
    return dict(_head(id, model), content=content, stop_reason=why, stop_sequence=word, usage=usage)


def _head(id: str, model: str) -> Body:
    return {"id": id, "type": "message", "role": "assistant", "model": model, "content": []}


class _Blocks:
    """An answer's blocks as events: each begins, grows and ends before the next one begins."""

    def __init__(self) -> None:
        self._index = -1
        self._open: Any = None  # what is open: "text", "thinking", or a call's number

    def push(self, delta: Delta) -> Iterator[Body]:
        """Yield the events that tell one delta."""
        if delta.call:
            yield from self._enter(
                delta.call.index, {"type": "tool_use", "id": delta.call.id, "name": delta.call.name, "input": {}}
            )
            if delta.call.arguments:
                yield self._grow({"type": "input_json_delta", "partial_json": delta.call.arguments})
        elif delta.reasoning:
            yield from self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._grow({"type": "thinking_delta", "thinking": delta.reasoning})
        else:
            yield from self._enter("text", {"type": "text", "text": ""})
            yield self._grow({"type": "text_delta", "text": delta.content})

    def close(self) -> Iterator[Body]:
        """Yield the end of the block that is open."""
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
            self._open = None

    def _enter(self, what: Any, block: Body) -> Iterator[Body]:
        if self._open != what:
            yield from self.close()
            self._open = what
            self._index += 1
            yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _grow(self, delta: Body) -> Body:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


# ----------------------------------------------------------------------------------------------- dialects


def _event(body: Body) -> bytes:
    return event(body, body["type"])


def _error_event(error: APIError) -> bytes:
    return event(dict(error.envelope(), type="error"), "error")


class Messages(ChatDialect):
    """A request of POST /v1/messages. Raises APIError 400, 404."""

    form = Form(render=_event, error=_error_event, done=b"")

    def __init__(self, call: Call, host: Host):
        conversation = host.conversation(read_messages_body(call.body, defaults=host.defaults))
        super().__init__(conversation, call, fields.flag(call.body, "stream", False))
        self._id = "msg_" + call.nonce[:24]
        self._blocks = _Blocks()

    def message(self, messages: List[Message], reasons: List[str], results: List[Result]) -> Body:
        """Return a message."""
        return message_body(self._id, self.model, messages[0], reasons[0], results[0].end)

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return the event that begins the message."""
        usage = usage_body(start.prompt_tokens, start.cached_tokens, 0)
        message = dict(_head(self._id, self.model), stop_reason=None, stop_sequence=None, usage=usage)
        return [{"type": "message_start", "message": message}]

    def changes(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> Iterable[Body]:
        """Return the events of blocks that begin, grow and end."""
        for delta in deltas:
            yield from self._blocks.push(delta)

    def close(self, index: int, reason: str, end: Finished) -> Iterable[Body]:
        """Return the events that end the message."""
        yield from self._blocks.close()
        why, word = stop_reason(reason, end)
        usage = usage_body(end.prompt_tokens, end.cached_tokens, end.completion_tokens)
        yield {"type": "message_delta", "delta": {"stop_reason": why, "stop_sequence": word}, "usage": usage}
        yield {"type": "message_stop"}


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    host = endpoint.host

    def count_tokens(request: Request) -> Any:
        """POST /v1/messages/count_tokens: how many tokens the model would read."""
        conversation = host.conversation(read_messages_body(read_json(request.body), limited=False))
        return json_reply({"input_tokens": host.count(conversation)})

    return [endpoint.route("/v1/messages", Messages), Route("POST", "/v1/messages/count_tokens", count_tokens)]

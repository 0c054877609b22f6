"""The items of OpenAI's Responses API: what a conversation is made of there, and the messages that they become.

    a request's `input` ── read_items ──> items ── Messages.add ──> messages, as POST /v1/chat/completions has them

An item is a message, a reasoning, a function_call or a function_call_output; an item_reference stands for one that is
stored. read_items() checks them and leaves out what it does not know, so that a stored one needs no second check. What
the model says in one turn is several items, but one message.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

from core import fields
from core.bounds import MESSAGES
from core.errors import APIError, json_type

Item = Dict[str, Any]
Reader = Callable[[Item, str], Item]
Finder = Callable[[str], Optional[Item]]  # returns the stored item with an id, if there is one

_ROLES = ("user", "assistant", "system", "developer")
_STATUSES = ("in_progress", "completed", "incomplete")


def read_items(value: Any, nonce: str, find: Finder) -> List[Item]:
    """Return the items of a request's `input`, which may be a text. Those without an id get one, made of `nonce`.

    Raises APIError 400 that names the place.
    """
    if value is None:
        raise APIError(400, "The field 'input' is missing.", "missing_field", "input")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise _wrong("input", "must be a string or an array of items, not %s" % json_type(value))
    MESSAGES.check(len(value), "input")
    return [_read_item(item, "input[%d]" % index, "%si%d" % (nonce, index), find) for index, item in enumerate(value)]


def _read_item(item: Any, place: str, name: str, find: Finder) -> Item:
    if not isinstance(item, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(item))
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if kind == "item_reference":
        return _referred(item, place, find)
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        what = "must be 'message', 'reasoning', 'function_call', 'function_call_output' or 'item_reference'"
        raise _wrong(place + ".type", what + ": this server has no other tools than functions")
    prefix, read = known
    id = prefix + name if item.get("id") is None else _text(item, "id", place)
    status = item.get("status") if item.get("status") in _STATUSES else "completed"
    return dict({"id": id, "type": kind, "status": status}, **read(item, place))


def _referred(item: Item, place: str, find: Finder) -> Item:
    id = _text(item, "id", place)
    found = find(id)
    if found is None:
        message = "'%s.id' names no item that is stored here: '%s'." % (place, id)
        raise APIError(400, message, "item_not_found", place + ".id")
    return found


def _read_message(item: Item, place: str) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        raise _wrong(place + ".role", "must be one of %s" % ", ".join("'%s'" % each for each in _ROLES))
    kind = "output_text" if role == "assistant" else "input_text"
    return {"role": role, "content": _read_parts(item.get("content"), place + ".content", kind)}


def _read_parts(content: Any, place: str, kind: str) -> List[Item]:
    """Return the parts of a message, each a text or, of the assistant's, a refusal."""
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    if not isinstance(content, list):
        raise _wrong(place, "must be a string or an array of parts, not %s" % json_type(content))
    if not content:
        raise _wrong(place, "must hold at least one part")
    return [_read_part(part, "%s[%d]" % (place, index), kind) for index, part in enumerate(content)]


def _read_part(part: Any, place: str, kind: str) -> Item:
    if not isinstance(part, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(part))
    given = part.get("type")
    if given == "refusal" and kind == "output_text":
        return {"type": "refusal", "refusal": _any_text(part, "refusal", place)}
    if given in ("input_image", "input_file", "input_audio"):
        raise _wrong(place, "is of type '%s', but this server takes text only" % given)
    if given not in ("input_text", "output_text", "text"):
        raise _wrong(place + ".type", "must be '%s': this server takes text only" % kind)
    text = {"type": kind, "text": _any_text(part, "text", place)}
    return dict(text, annotations=[], logprobs=[]) if kind == "output_text" else text


def _read_reasoning(item: Item, place: str) -> Item:
    """Return a reasoning. One that holds nothing but another server's `encrypted_content` tells the model nothing."""
    return {
        "summary": _read_thoughts(item, "summary", "summary_text", place),
        "content": _read_thoughts(item, "content", "reasoning_text", place),
        "encrypted_content": None,
    }


def _read_thoughts(item: Item, name: str, kind: str, place: str) -> List[Item]:
    place = "%s.%s" % (place, name)
    given = item.get(name) or []
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise _wrong(place, "must be an array of objects")
    return [
        {"type": kind, "text": _any_text(each, "text", "%s[%d]" % (place, index))} for index, each in enumerate(given)
    ]


def _read_call(item: Item, place: str) -> Item:
    names = {name: _text(item, name, place) for name in ("call_id", "name")}
    return dict(names, arguments=_any_text(item, "arguments", place))


def _read_output(item: Item, place: str) -> Item:
    output = item.get("output")
    if not isinstance(output, str):
        output = _read_parts(output, place + ".output", "input_text")
    return {"call_id": _text(item, "call_id", place), "output": output}


_KINDS: Dict[str, Tuple[str, Reader]] = {
    "message": ("msg_", _read_message),
    "reasoning": ("rs_", _read_reasoning),
    "function_call": ("fc_", _read_call),
    "function_call_output": ("fco_", _read_output),
}


def _text(holder: Item, name: str, place: str) -> str:
    place = "%s.%s" % (place, name)
    return str(fields.text({place: holder.get(name)}, place))


def _any_text(holder: Item, name: str, place: str) -> str:
    if not isinstance(holder.get(name), str):
        raise _wrong("%s.%s" % (place, name), "must be a string, not %s" % json_type(holder.get(name)))
    return str(holder[name])


def _wrong(place: str, what: str) -> APIError:
    return APIError(400, "'%s' %s." % (place, what), "invalid_value", place)


class Messages:
    """The messages that items become. `paths` say where a message's fields stand in the request (fields.own_path)."""

    def __init__(self) -> None:
        self.messages: List[Item] = []
        self.paths: Dict[str, str] = {"messages": "input"}
        self._calls = {""}  # the ids of the calls so far

    def instruct(self, text: str) -> None:
        """Begin with a request's instructions."""
        self._begin({"role": "system", "content": text}, {"": "instructions", ".content": "instructions"})

    def add(self, item: Item, place: str) -> None:
        """Add an item that stands at `place`. Raises APIError 400 for an output without its call."""
        kind = item["type"]
        if kind == "function_call_output":
            self._add_output(item, place)
        elif kind == "message" and item["role"] != "assistant":
            self._begin({"role": item["role"], "content": _parts(item["content"])}, {"": place})
        else:
            self._add_answer(item, place)

    def _begin(self, message: Item, paths: Dict[str, str]) -> None:
        start = "messages[%d]" % len(self.messages)
        self.paths.update((start + name, path) for name, path in paths.items())
        self.messages.append(message)

    def _add_output(self, item: Item, place: str) -> None:
        if item["call_id"] not in self._calls:
            raise _wrong(place + ".call_id", "names no function_call before it: '%s'" % item["call_id"])
        content = item["output"] if isinstance(item["output"], str) else _parts(item["output"])
        message = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
        self._begin(message, {"": place, ".content": place + ".output", ".tool_call_id": place + ".call_id"})

    def _add_answer(self, item: Item, place: str) -> None:
        """Add what the assistant has said: to its last message, where that is in the order of one turn."""
        kind = item["type"]
        thought = "".join(each["text"] for each in item["content"] or item["summary"]) if kind == "reasoning" else ""
        if kind == "reasoning" and not thought:
            return
        last = self.messages[-1] if self.messages else {}
        before = {"reasoning": {"role"}, "message": {"role", "reasoning_content"}}.get(kind, set(last))
        if last.get("role") != "assistant" or not set(last) <= before:
            self._begin({"role": "assistant"}, {"": place})
        message, start = self.messages[-1], "messages[%d]" % (len(self.messages) - 1)
        if kind == "reasoning":
            message["reasoning_content"] = thought
        elif kind == "message":
            message["content"] = _parts(item["content"])
            self.paths[start + ".content"] = place + ".content"
        else:
            self._add_call(item, place, message, start)

    def _add_call(self, item: Item, place: str, message: Item, start: str) -> None:
        calls = message.setdefault("tool_calls", [])
        path = "%s.tool_calls[%d]" % (start, len(calls))
        self.paths.update({path: place, path + ".function": place, path + ".id": place + ".call_id"})
        self.paths[start + ".tool_calls"] = "input"
        function = {"name": item["name"], "arguments": item["arguments"]}
        calls.append({"id": item["call_id"], "type": "function", "function": function})
        self._calls.add(item["call_id"])


def _parts(parts: List[Item]) -> List[Item]:
    """Return a message's parts as chats have them."""
    return [
        part if part["type"] == "refusal" else {"type": "text", "text": part["text"]} for part in parts
    ]

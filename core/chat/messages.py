"""A request's messages, checked, in the one form that templates are given.

    a request's body ── read_messages ──> messages

Source: the OpenAI API reference.
"""

from typing import Any, Dict, List

from core import fields
from core.bounds import CALLS, MESSAGES
from core.errors import APIError, json_type

Message = Dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_OTHER_MEDIA = ("image_url", "input_audio", "file")
_LEGACY_ID = "function0"  # of the one call that a message of OpenAI's older API may hold


def read_messages(body: Dict[str, Any]) -> List[Message]:
    """Return a request's `messages`, checked, in the one form that templates are given.

    A message has `role` ("system", "user", "assistant" or "tool"), `content` (a string) and what it came with of
    `name`, `reasoning_content`, `tool_call_id` and `tool_calls`, each {"id", "type": "function", "function": {"name",
    "arguments"}} with the arguments as JSON text. The role "developer" is a system's, "function" and `function_call`
    are the older API's tool and tool_calls; unknown fields are left out. The parts of a content are joined by a line
    break; those of an assistant's message at the end, which may be continued, by two, as llama-server does. Raises
    APIError 400 that names the place.
    """
    messages = body.get("messages")
    if messages is None:
        raise APIError(400, "The field 'messages' is missing.", "missing_field", "messages")
    if not isinstance(messages, list):
        raise _wrong("messages", "must be an array, not %s" % json_type(messages))
    if not messages:
        raise _wrong("messages", "must hold at least one message")
    MESSAGES.check(len(messages), "messages")
    last = len(messages) - 1
    return [_read_message(message, "messages[%d]" % index, index == last) for index, message in enumerate(messages)]


def _read_message(given: Any, place: str, is_last: bool) -> Message:
    if not isinstance(given, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(given))
    role = _text(given, "role", place)
    if role not in _ROLES:
        raise _wrong(place + ".role", "must be one of %s" % ", ".join("'%s'" % each for each in _ROLES))
    message: Message = {"role": {"developer": "system", "function": "tool"}.get(role, role)}
    if role == "assistant":
        message.update(_read_answer(given, place, "\n\n" if is_last else "\n"))
    else:
        message["content"] = _read_content(given.get("content"), place + ".content")
    if role in ("tool", "function"):
        message["tool_call_id"] = _text(given, "tool_call_id", place) if role == "tool" else _LEGACY_ID
    if given.get("name") is not None:
        message["name"] = _text(given, "name", place)
    return message


def _read_answer(given: Message, place: str, joint: str) -> Message:
    """Return what an assistant's message holds; its content may be missing where there is something else.

    `joint` stands between the content's parts.
    """
    answer: Message = {}
    calls = _read_calls(given, place)
    reasoning = given.get("reasoning_content")
    if not isinstance(reasoning, (str, type(None))):
        raise _wrong(place + ".reasoning_content", "must be a string, not %s" % json_type(reasoning))
    content = given.get("content")
    if content is None:
        content = given.get("refusal")
    missing = content is None and (calls or reasoning)
    answer["content"] = "" if missing else _read_content(content, place + ".content", joint)
    if reasoning:
        answer["reasoning_content"] = reasoning
    if calls:
        answer["tool_calls"] = calls
    return answer


def _read_content(content: Any, place: str, joint: str = "\n") -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise APIError(400, "The field '%s' is missing." % place, "missing_field", place)
    if not isinstance(content, list):
        raise _wrong(place, "must be a string or an array of parts, not %s" % json_type(content))
    if not content:
        raise _wrong(place, "must hold at least one part")
    return joint.join(_read_part(part, "%s[%d]" % (place, index)) for index, part in enumerate(content))


def _read_part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(part))
    kind = _text(part, "type", place)
    if kind in _OTHER_MEDIA:
        raise _wrong(place, "is of type '%s', but this server takes text only" % kind)
    if kind not in ("text", "refusal"):
        raise _wrong(place + ".type", "must be 'text': this server takes text only")
    text = part.get(kind)
    if not isinstance(text, str):
        raise _wrong("%s.%s" % (place, kind), "must be a string, not %s" % json_type(text))
    return text


def _read_calls(given: Message, place: str) -> List[Dict[str, Any]]:
    calls = given.get("tool_calls")
    if calls is None:
        legacy = given.get("function_call")
        return [] if legacy is None else [_call(_LEGACY_ID, legacy, place + ".function_call")]
    if not isinstance(calls, list):
        raise _wrong(place + ".tool_calls", "must be an array, not %s" % json_type(calls))
    CALLS.check(len(calls), place + ".tool_calls")
    return [_read_call(call, "%s.tool_calls[%d]" % (place, index)) for index, call in enumerate(calls)]


def _read_call(call: Any, place: str) -> Dict[str, Any]:
    if not isinstance(call, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(call))
    if call.get("type", "function") != "function":
        raise _wrong(place + ".type", "must be 'function'")
    return _call(_text(call, "id", place), call.get("function"), place + ".function")


def _call(id: str, function: Any, place: str) -> Dict[str, Any]:
    if not isinstance(function, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(function))
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise _wrong(place + ".arguments", "must be a string of JSON, not %s" % json_type(arguments))
    name = _text(function, "name", place)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _text(holder: Dict[str, Any], name: str, place: str) -> str:
    name, value = "%s.%s" % (place, name), holder.get(name)
    return fields.text({name: value}, name)


def _wrong(place: str, what: str) -> APIError:
    return APIError(400, "'%s' %s." % (place, what), "invalid_value", place)

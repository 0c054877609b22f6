"""Prompts, and texts to embed, as llama-server and OpenAI take them in a request's field.

    a text                                   one prompt
    token ids, or ids and texts in turns     one prompt
    {"prompt_string": text}                  one prompt
    {"content": [{"type": "text", …}, …]}    one prompt, of the texts joined
    an array of any of these                 so many prompts

Source: llama.cpp's server, tokenize_input_prompts; the OpenAI API reference.
"""

from typing import Any, Dict, List, NamedTuple, Tuple

from core.ask import Prompt
from core.bounds import PROMPTS
from core.errors import APIError

Body = Dict[str, Any]


class Prompts(NamedTuple):
    """The prompts of a request, and whether they stood in an array."""

    each: Tuple[Prompt, ...]
    several: bool


def read_prompts(body: Body, name: str) -> Prompts:
    """Return the prompts in a field. Raises APIError 400."""
    value = body.get(name)
    if value is None:
        raise APIError(400, "The field '%s' is missing." % name, "missing_field", name)
    if not isinstance(value, list) or any(_is_token(each) for each in value):
        return Prompts((_prompt(value, name),), False)
    if not value:
        raise _wrong(name)
    PROMPTS.check(len(value), name)
    return Prompts(tuple(_prompt(each, name) for each in value), True)


def _prompt(value: Any, name: str) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _of_object(value, name)
    if isinstance(value, list) and value and all(_is_token(each) or isinstance(each, str) for each in value):
        return tuple(value)
    raise _wrong(name)


def _of_object(value: Body, name: str) -> str:
    """Return the text of a prompt that is an object. Raises APIError 400 where it holds images or sound."""
    text, content = value.get("prompt_string"), value.get("content")
    if value.get("multimodal_data"):
        raise _no_text("%s.multimodal_data" % name)
    if isinstance(text, str):
        return text
    if not isinstance(content, list) or not content:
        raise _wrong(name)
    return "".join(_part(part, "%s.content[%d]" % (name, index)) for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise _no_text(place)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _no_text(place: str) -> APIError:
    return APIError(400, "'%s' can't be used: this server takes text only." % place, "unsupported", place)


def _wrong(name: str) -> APIError:
    forms: List[str] = ["a string", "token ids and strings in an array", '{"prompt_string": …}']
    message = "'%s' must be %s, or an array of these that is not empty." % (name, ", ".join(forms))
    return APIError(400, message, "invalid_value", name)

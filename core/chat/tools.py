"""The tools that a request offers, and which of them the model may or must call.

    a request's body ── read_tools ──> Tools

Source: the OpenAI API reference.
"""

import re
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

from core import fields
from core.bounds import TOOLS
from core.errors import APIError, json_type

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tools:
    """The tools that a request offers and what it asks for.

    `choice` is "auto" (the model may call), "none" (it may not), "required" (it must), or "function": it must call the
    one with this `name`. Without `parallel` an answer holds one call at most. A `strict` function whose parameters no
    grammar can follow is refused.
    """

    tools: List[Dict[str, Any]]  # each {"type": "function", "function": {"name", "description", "parameters"}}
    choice: str = "auto"
    name: str = ""
    parallel: bool = True
    strict: FrozenSet[str] = frozenset()

    @property
    def names(self) -> Tuple[str, ...]:
        """The functions' names."""
        return tuple(tool["function"]["name"] for tool in self.tools)


def read_tools(body: Dict[str, Any]) -> Optional[Tools]:
    """Return what a request's `tools`, `tool_choice` and `parallel_tool_calls` ask for; None where it offers no tools.

    Every function is given a description and parameters, if only empty ones: templates count on them. What else a tool
    holds is left out, since templates would show it to the model. Raises APIError 400.
    """
    parallel = fields.flag(body, "parallel_tool_calls", True)
    offered = body.get("tools")
    if offered is not None and not isinstance(offered, list):
        raise _wrong("tools", "must be an array, not %s" % json_type(offered))
    if not offered:
        if body.get("tool_choice") not in (None, "none"):
            raise _wrong("tool_choice", "is only allowed where 'tools' holds at least one tool")
        return None
    TOOLS.check(len(offered), "tools")
    tools = [_read_tool(tool, "tools[%d]" % index) for index, tool in enumerate(offered)]
    names = [tool["function"]["name"] for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _wrong("tools[%d].function.name" % index, "repeats the name '%s'" % name)
    choice, name = _read_choice(body.get("tool_choice"), names)
    strict = {name for index, name in enumerate(names) if _is_strict(offered[index], "tools[%d].function" % index)}
    return Tools(tools, choice, name, parallel, frozenset(strict))


def _read_tool(tool: Any, place: str) -> Dict[str, Any]:
    function = _read_function(tool, place)
    place += ".function"
    name = fields.text({place + ".name": function.get("name")}, place + ".name")
    if not _NAME.fullmatch(name):
        raise _wrong(place + ".name", "must be 1 to 64 letters, digits, underscores and dashes")
    description = function.get("description")
    if not isinstance(description, (str, type(None))):
        raise _wrong(place + ".description", "must be a string, not %s" % json_type(description))
    parameters = _read_parameters(function.get("parameters"), place + ".parameters")
    return {
        "type": "function",
        "function": {"name": name, "description": description or "", "parameters": parameters},
    }


def _is_strict(tool: Dict[str, Any], place: str) -> bool:
    strict = tool["function"].get("strict")
    if not isinstance(strict, (bool, type(None))):
        raise _wrong(place + ".strict", "must be true or false, not %s" % json_type(strict))
    return bool(strict)


def _read_parameters(schema: Any, place: str) -> Dict[str, Any]:
    """Return a function's parameters: a schema of an object, by default of one without members."""
    if schema is None:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, dict):
        raise _wrong(place, "must be a JSON schema, an object, not %s" % json_type(schema))
    if schema.get("type", "object") != "object":
        raise _wrong(place, "must be a JSON schema of type 'object': a function's arguments are an object")
    return schema if "type" in schema else dict({"type": "object"}, **schema)


def _read_choice(choice: Any, names: Sequence[str]) -> Tuple[str, str]:
    """Return tool_choice as a kind and, where it names one, a function's name."""
    if choice is None:
        return "auto", ""
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise _wrong("tool_choice", "must be 'auto', 'none', 'required' or an object that names a function")
        return choice, ""
    function = _read_function(choice, "tool_choice")
    place = "tool_choice.function.name"
    name = fields.text({place: function.get("name")}, place)
    if name not in names:
        raise _wrong(place, "must be one of the tools: %s" % ", ".join("'%s'" % each for each in names))
    return "function", name


def _read_function(holder: Any, place: str) -> Dict[str, Any]:
    """Return the `function` of an object of type "function": that of a tool, or of a choice."""
    if not isinstance(holder, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(holder))
    kind = holder.get("type", "function")
    if kind != "function":
        raise _wrong(place + ".type", "must be 'function': this server knows no other tools")
    function = holder.get("function")
    if not isinstance(function, dict):
        raise _wrong(place + ".function", "must be an object, not %s" % json_type(function))
    return function


def _wrong(place: str, what: str) -> APIError:
    return APIError(400, "'%s' %s." % (place, what), "invalid_value", place)

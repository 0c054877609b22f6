"""The grammar that makes the model call a tool, where the request says that it must.

    Syntax, Tools ── forced_grammar ──> GBNF: what stands around a call by the syntax, and arguments by their schemas
"""

import dataclasses
from typing import Any, Dict, Sequence, Tuple

from core.chat.syntaxes import END_THINK, Syntax
from core.chat.tools import Tools
from core.errors import APIError
from core.grammar.rules import literal
from core.grammar.schema import Grammar, kept_text

_MOST_CALLS = 16  # a forced answer ends, even if the model would go on calling

Offered = Sequence[Tuple[int, Dict[str, Any]]]  # functions that may be called, with their places among the tools


def forced_grammar(syntax: Syntax, tools: Tools, thinking: bool = False) -> str:
    """Return the GBNF grammar that makes the model call one of the tools, or the one that is named.

    The arguments follow the function's parameters. Where `parallel` and the syntax allow it the model may go on to
    further calls, except of a named function, which is wanted once. With `thinking`, for a prompt that ends in an open
    <think>, the thoughts come first, up to </think>. The grammar for the same request as before is kept. Raises
    APIError 400 for parameters that no grammar can follow.
    """
    functions = [tool["function"] for tool in tools.tools]
    named = tools.choice == "function"
    offered = [each for each in enumerate(functions) if not named or each[1]["name"] == tools.name]
    several = tools.parallel and syntax.several and not named
    schemas = [[index, function["name"], function["parameters"]] for index, function in offered]
    wanted = [dataclasses.astuple(syntax), several, thinking, schemas]
    return kept_text("calls", wanted, lambda: _grammar(syntax, offered, several, thinking))


def _grammar(syntax: Syntax, offered: Offered, several: bool, thinking: bool) -> str:
    grammar = Grammar("tools")
    root = [_thoughts(grammar)] if thinking else []
    calls = [_call_rule(grammar, syntax, index, function) for index, function in offered]
    call = grammar.rule("call", " | ".join(calls))
    root += [literal(syntax.before)] if syntax.before else []
    root.append(call)
    if several:
        further = (literal(syntax.between) + " " if syntax.between else "") + call
        root.append("(%s){0,%d}" % (further, _MOST_CALLS - 1))
    root += [literal(syntax.after)] if syntax.after else []
    return grammar.text(grammar.rule("calls", " ".join(root)))


def _call_rule(grammar: Grammar, syntax: Syntax, index: int, function: Dict[str, Any]) -> str:
    try:
        arguments = grammar.schema(_closed(function["parameters"]), "arguments-%d" % index)
    except APIError as error:
        place = "tools[%d].function.parameters" % index
        raise APIError(error.status, "%s: %s" % (place, error.message), error.code, place)
    parts = [literal(syntax.head % function["name"]), arguments] + ([literal(syntax.tail)] if syntax.tail else [])
    return grammar.rule("function-%d" % index, " ".join(parts))


_PLAIN = frozenset(("$schema", "$defs", "definitions", "type", "title", "description", "properties", "required"))


def _closed(schema: Dict[str, Any]) -> Dict[str, Any]:
    """Return parameters without room for members that they don't name, where they are a plain list of members.

    JSON schemas leave such room unless they say otherwise; functions have no use for arguments that they don't know.
    """
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not set(schema) <= _PLAIN or not isinstance(properties, dict) or not isinstance(required, list):
        return schema
    known = all(isinstance(name, str) and name in properties for name in required)
    return dict(schema, additionalProperties=False) if known else schema


def _thoughts(grammar: Grammar) -> str:
    """Add rules for any text up to and with the first </think>, one for each part of it that may have come.

    "<" is the one character that may begin it, so it is also the one that leads back to the second rule.
    """
    name = "thought-%d"
    for size, char in enumerate(END_THINK):
        rest = [literal(char) + (" " + name % (size + 1) if size + 1 < len(END_THINK) else ' "\\n"{0,2}')]
        rest += ['"<" ' + name % 1] if size else []
        other = "[^<]" if char == "<" else "[^<%s]" % char
        grammar.rule(name % size, " | ".join(rest + ["%s %s" % (other, name % 0)]))
    return name % 0

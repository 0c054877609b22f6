"""The grammar of an answer: where it is free, where it must be a call, and where it must follow a schema.

    Style, Tools, a schema ── answer_grammar ──> GBNF

    tools, of which the model may call any    thoughts, then free text, in which calls may come (core/grammar/free.py)
    tools, of which it must call one          thoughts, then calls
    a schema                                  thoughts, then a value of the schema
    both, and no call is demanded             thoughts, then either

Thoughts are free up to where they end. Between calls stands what the syntax has there, and arguments follow their
schemas.
"""

import dataclasses
import enum
import re
from typing import Any, Dict, List, Optional

from core.chat.arguments import any_arguments, arguments
from core.chat.calls import Envelope
from core.chat.syntaxes import Style
from core.chat.tools import Tools
from core.errors import APIError
from core.grammar.free import Free
from core.grammar.gbnf import MAX_BYTES
from core.grammar.rules import json_literal, literal
from core.grammar.schema import Grammar, kept_text

_MOST_CALLS = 16  # a forced answer ends, even if the model would go on calling
_NUMBER, _GAP = "\0", "\1"  # in a head: where the call's number stands, and what may differ


class Thinking(enum.Enum):
    """Whether an answer has thoughts."""

    OPEN = "it begins within one"
    POSSIBLE = "it may begin with one"
    NONE = "it has none"


def answer_grammar(style: Style, tools: Optional[Tools], schema: Any, thinking: Thinking) -> str:
    """Return the GBNF grammar of an answer that may, or must, call a tool, or follows a schema (None: there is none).

    Where `parallel` and the syntax allow it, the model may go on to further calls, except of a named function, which is
    wanted once. The grammar for the same request as before is kept. Raises APIError 400 for what no grammar can follow:
    parameters too, where a call is demanded or the function is strict. Other functions get any arguments then, as all
    of them do where the grammar would be too large.
    """
    wanted = [dataclasses.astuple(style), thinking.name, schema is not None, schema]
    if tools:
        functions = [tool["function"] for tool in tools.tools]
        wanted += [tools.choice, tools.name, tools.parallel, sorted(tools.strict)]
        wanted += [[function["name"], function["parameters"]] for function in functions]

    def make() -> str:
        may_be_loose = tools is not None and tools.choice == "auto"
        try:
            text = _Answer(style, tools, schema, thinking).text()
            if len(text) <= MAX_BYTES or not may_be_loose:
                return text
        except APIError:
            if not may_be_loose:
                raise
        return _Answer(style, tools, schema, thinking, loose=True).text()

    return kept_text("answer", wanted, make)


class _Answer:
    """One grammar under construction."""

    def __init__(
        self, style: Style, tools: Optional[Tools], schema: Any, thinking: Thinking, loose: bool = False
    ):  # fmt: skip
        """`loose`: functions that are not strict get any arguments."""
        self._style = style
        self._syntax = style.syntax
        self._tools = tools
        self._schema = schema
        self._thinking = thinking
        self._loose = loose
        self._grammar = Grammar("tools" if tools else "response_format")
        self._forced = tools is not None and tools.choice in ("required", "function")
        named = tools is not None and tools.choice == "function"
        self._several = tools is not None and tools.parallel and self._syntax.several and not named

    def text(self) -> str:
        """Return the grammar."""
        if self._tools is None:
            return self._grammar.text(self._thoughts() + self._final())
        functions = self._functions(self._tools)
        if self._forced or self._schema is not None:
            ways = [self._calls(functions)] + ([] if self._forced else [self._final()])
            return self._grammar.text(self._thoughts() + self._grammar.rule("answer", " | ".join(ways)))
        return self._grammar.text(self._free(functions))

    # ---- calls

    def _functions(self, tools: Tools) -> Dict[str, str]:
        """Return the rules for arguments, by the names of the functions that may be called."""
        functions = [tool["function"] for tool in tools.tools]
        wanted = [each for each in enumerate(functions) if tools.choice != "function" or each[1]["name"] == tools.name]
        return {function["name"]: self._arguments(tools, index, function) for index, function in wanted}

    def _arguments(self, tools: Tools, index: int, function: Dict[str, Any]) -> str:
        parameters, name = function["parameters"], "arguments-%d" % index
        if self._loose and function["name"] not in tools.strict:
            return any_arguments(self._grammar, self._syntax)
        try:
            return self._grammar.attempt(lambda: arguments(self._grammar, self._syntax, parameters, name))
        except APIError as error:
            if self._forced or function["name"] in tools.strict:
                place = "tools[%d].function.parameters" % index
                raise APIError(error.status, "%s: %s" % (place, error.message), error.code, place)
            return any_arguments(self._grammar, self._syntax)

    def _calls(self, functions: Dict[str, str]) -> str:
        """Return the body for calls and nothing else."""
        syntax = self._syntax
        call = self._call(syntax.head, functions, "call")
        return " ".join([*_literals(syntax.before), call, *self._further(call), *_literals(syntax.after)])

    def _call(self, head: str, functions: Dict[str, str], name: str) -> str:
        """Return the rule for one call, of which the head, or the rest of it, is still to come."""
        ways = []
        for function, rule in functions.items():
            text = head % {"name": function, "number": _NUMBER, "gap": _GAP}
            ways.append(" ".join(self._head(text) + [rule] + _literals(self._syntax.tail)))
        return self._grammar.rule(name, " | ".join(ways))

    def _head(self, text: str) -> List[str]:
        gaps = '(%s)' % " | ".join(literal(gap) for gap in self._syntax.gaps)
        special = {_NUMBER: "[0-9]{1,3}", _GAP: gaps}
        return [special.get(part) or literal(part) for part in re.split("([%s%s])" % (_NUMBER, _GAP), text) if part]

    def _further(self, call: str) -> List[str]:
        further = " ".join(_literals(self._syntax.between) + [call])
        return ["(%s){0,%d}" % (further, _MOST_CALLS - 1)] if self._several else []

    # ---- what is free

    def _free(self, functions: Dict[str, str]) -> str:
        """Return the body for free text in which calls may come."""
        syntax, thoughts = self._syntax, self._style.thoughts
        called, thought = self._grammar.reserve("called"), self._grammar.reserve("thought-begun")
        triggers = {syntax.opener: called, **({thoughts.opener: thought} if thoughts.often else {})}
        free = Free(self._grammar, "free", triggers, True)
        self._grammar.define(called, self._called(functions, free))
        content = free.start({"{": self._bare(functions, free)} if syntax.bare else {})
        self._grammar.define(thought, self._thought(free.text() if thoughts.often else content))
        if self._thinking is Thinking.OPEN:
            return thought
        words = {thoughts.opener.strip(): thought}
        return free.start({"{": self._bare(functions, free), **words} if syntax.bare else words)

    def _called(self, functions: Dict[str, str], free: Free) -> str:
        """Return the body for what follows an opener: the rest of the call, then free text where calls may go on."""
        syntax = self._syntax
        _, _, rest = (syntax.before + syntax.head).partition(syntax.opener)
        parts = [self._call(rest, functions, "call-begun")]
        if syntax.before:
            parts += self._further(self._call(syntax.head, functions, "call"))
        return " ".join(parts + _literals(syntax.after) + ([free.text()] if self._several else []))

    def _bare(self, functions: Dict[str, str], free: Free) -> str:
        """Return the rule for what follows a brace at the beginning: a call, or what plainly is none."""
        grammar = self._grammar
        colon, space = grammar.basic("json-colon"), grammar.basic("json-space")
        member = '("\\"parameters\\"" | "\\"arguments\\"")'
        ways = [
            '%s %s "," %s %s %s %s %s "}"' % (colon, json_literal(name), space, member, colon, rule, space)
            for name, rule in functions.items()
        ]
        named = grammar.rule("named", " | ".join(ways))
        typed = grammar.rule("typed", '%s "\\"function\\"," %s "\\"name\\"" %s' % (colon, space, named))
        return free.start(dict(zip(['"%s"' % member for member in Envelope.FIRST], [named, typed])))

    def _thought(self, following: str) -> str:
        """Return the body for the rest of a thought, and what follows it."""
        closer = self._style.thoughts.closer.strip()
        return Free(self._grammar, "thought", {closer: following}, False).text()

    # ---- what an answer must be

    def _thoughts(self) -> str:
        """Return the body for what comes before an answer that must be something."""
        thoughts = self._style.thoughts
        end = " ".join([self._thought(""), '"\\n"{0,2}', *_literals(self._style.after_thoughts)])
        again = "(%s %s)%s " % (literal(thoughts.opener), end, "*" if thoughts.often else "?")
        if self._thinking is Thinking.OPEN:
            return "%s %s" % (end, again if thoughts.often else "")
        return again if self._thinking is Thinking.POSSIBLE else ""

    def _final(self) -> str:
        """Return the body for a value of the schema."""
        value = self._grammar.schema(self._schema)
        return " ".join([*_literals(self._style.content), value, *_literals(self._style.content_end)])


def _literals(text: str) -> List[str]:
    return [literal(text)] if text else []

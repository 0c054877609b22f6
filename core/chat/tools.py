"""Tool calls: what a request asks for, how each family of models writes a call, and how an answer is taken apart.

    a request's body ── read_tools ──> Tools ── forced_grammar ──> GBNF, where the request forces a call
    a chat template ─── syntax_of ───> Syntax
    an answer's text ── AnswerParser ──> Deltas: reasoning, content, tool calls

From the bottom up, which is also the order of this file:

    Syntax          how a family writes calls; HERMES, LLAMA, MISTRAL, MISTRAL_ARGS
    Tools           the tools that a request offers, and which of them the model may or must call
    forced_grammar  the grammar that makes the model call one
    _Object         reads one JSON object as it comes
    _Envelope       reads {"name": ..., "arguments": {...}};  _Named reads name[ARGS]{...}
    AnswerParser    splits an answer, as it comes

A model that is free to call (tool_choice "auto") may write anything: whatever is not wholly a call of a known function
is content, as the client would have got it without tools. Nothing here knows a model; all of it is pure.

Sources: the OpenAI API reference for the fields and the deltas, RFC 8259 for JSON, the chat templates that the models'
makers ship for the syntaxes.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence, Tuple

from core import fields
from core.bounds import TOOLS
from core.errors import APIError, json_type
from core.grammar.rules import literal
from core.grammar.schema import Grammar

# ---------------------------------------------------------------------------------------------- syntaxes

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Syntax:
    """How a family of models writes tool calls.

    `markers` are strings that may be special tokens of the model, which the engine must show as text. `opener` begins a
    call and `closer`, if there is one, ends it. Written out, calls are `before`, then each call as `head` (%s is the
    function's name), its arguments and `tail`, with `between` between two of them, then `after`.
    """

    name: str
    markers: Tuple[str, ...]
    opener: str
    head: str
    tail: str = ""
    before: str = ""
    between: str = ""
    after: str = ""
    closer: str = ""
    bare: bool = False  # a JSON object at the beginning of the content may be a call, too, without the opener
    several: bool = True  # an answer may hold more than one call

    def write(self, calls: Sequence[Tuple[str, str]]) -> str:
        """Return calls, each a name and the JSON text of its arguments, as the model would write them."""
        written = [self.head % json.dumps(name)[1:-1] + arguments + self.tail for name, arguments in calls]
        return self.before + self.between.join(written) + self.after


HERMES = Syntax(  # Hermes, Qwen 2.5 and 3, and many others
    name="hermes",
    markers=("<tool_call>", "</tool_call>", THINK, END_THINK),
    opener="<tool_call>",
    head='<tool_call>\n{"name": "%s", "arguments": ',
    tail="}\n</tool_call>",
    between="\n",
    closer="</tool_call>",
)
LLAMA = Syntax(  # Llama 3.x; its template refuses a message with two calls, so it must not write two
    name="llama",
    markers=("<|python_tag|>", THINK, END_THINK),
    opener="<|python_tag|>",
    head='{"name": "%s", "parameters": ',
    tail="}",
    bare=True,
    several=False,
)
MISTRAL = Syntax(  # Mistral 7B v0.3, Nemo, Large, Small up to 3.1
    name="mistral",
    markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", THINK, END_THINK),
    opener="[TOOL_CALLS]",
    head='{"name": "%s", "arguments": ',
    tail="}",
    before="[TOOL_CALLS][",
    between=", ",
    after="]",
)
MISTRAL_ARGS = Syntax(  # Mistral Small 3.2, Devstral, Magistral, Ministral 3
    name="mistral-args",
    markers=MISTRAL.markers,
    opener="[TOOL_CALLS]",
    head="[TOOL_CALLS]%s[ARGS]",
)


def syntax_of(template_source: str) -> Syntax:
    """Return the syntax that a chat template speaks of; Hermes' where it speaks of none that is known."""
    if "[TOOL_CALLS]" in template_source:
        return MISTRAL_ARGS if "[ARGS]" in template_source else MISTRAL
    if "<tool_call>" in template_source:
        return HERMES
    if "ipython" in template_source and '"parameters":' in template_source:  # Llama 3.2's does without <|python_tag|>
        return LLAMA
    return HERMES


# ------------------------------------------------------------------------------------------------- tools

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tools:
    """The tools that a request offers and what it asks for.

    `choice` is "auto" (the model may call), "none" (it may not), "required" (it must), or "function": it must call the
    one with this `name`. Without `parallel` an answer holds one call at most where a call is forced.
    """

    tools: List[Dict[str, Any]]  # each {"type": "function", "function": {"name", "description", "parameters"}}
    choice: str = "auto"
    name: str = ""
    parallel: bool = True

    @property
    def names(self) -> Tuple[str, ...]:
        """The functions' names."""
        return tuple(tool["function"]["name"] for tool in self.tools)


def read_tools(body: Dict[str, Any]) -> Optional[Tools]:
    """Return what a request's `tools`, `tool_choice` and `parallel_tool_calls` ask for; None where it offers no tools.

    Every function is given a description and parameters, if only empty ones: templates count on them. What else a tool
    holds (`strict`) is left out, since templates would show it to the model. Raises APIError 400.
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
    return Tools(tools, choice, name, parallel)


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


# ----------------------------------------------------------------------------------------------- grammar

_MOST_CALLS = 16  # a forced answer of a model that knows no end has one all the same


def forced_grammar(syntax: Syntax, tools: Tools, thinking: bool = False) -> str:
    """Return the GBNF grammar that makes the model call one of the tools, or the one that is named.

    The arguments follow the function's parameters. Where `parallel` and the syntax allow it the model may go on to
    further calls, except of a named function, which is wanted once. With `thinking`, for a prompt that ends in an open
    <think>, the thoughts come first, up to </think>. Raises APIError 400 for parameters that no grammar can follow.
    """
    grammar = Grammar("tools")
    root = [_thoughts(grammar)] if thinking else []
    calls = [
        _call_rule(grammar, syntax, index, tool["function"])
        for index, tool in enumerate(tools.tools)
        if tools.choice != "function" or tool["function"]["name"] == tools.name
    ]
    call = grammar.rule("call", " | ".join(calls))
    root += [literal(syntax.before)] if syntax.before else []
    root.append(call)
    if tools.parallel and syntax.several and tools.choice != "function":
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


# ------------------------------------------------------------------------------------------ JSON, as it comes

_SPACE = " \t\n\r"
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_CHARS = frozenset("-+.0123456789eEtrufalsn")


class _Object:
    """Reads one JSON object, a character at a time (RFC 8259): a pushdown automaton whose states are its methods.

    `member` is the outermost member whose value the last character belongs to, None between the values. A control
    character in a string, which JSON forbids and models write (mostly line breaks), is taken as its escape.
    """

    def __init__(self) -> None:
        self.done = False
        self.member: Optional[str] = None
        self._key = ""  # the outermost member's name: what was read of it, still escaped
        self._in_key = False
        self._due: List[str] = []  # the brackets that must close
        self._scalar_text = ""
        self._digits = 0  # of a \u escape, still to come
        self._state: Callable[[str], Optional[str]] = self._start

    def push(self, char: str) -> str:
        """Take a character and return it as JSON has it. Raises ValueError where no object goes on like this."""
        return self._state(char) or char

    def _start(self, char: str) -> None:
        if char in _SPACE:
            return
        if char != "{":
            raise ValueError("not an object")
        self._open(char)

    def _open(self, char: str) -> None:
        self._due.append("}" if char == "{" else "]")
        self._state = self._first_key if char == "{" else self._first_item

    def _close(self, char: str) -> None:
        if char != self._due.pop():
            raise ValueError("the wrong bracket")
        self.done = not self._due
        self._state = self._next

    def _first_key(self, char: str) -> None:
        if char == "}":
            self._close(char)
        else:
            self._before_key(char)

    def _before_key(self, char: str) -> None:
        if char in _SPACE:
            return
        if char != '"':
            raise ValueError("not a key")
        self._in_key = True
        if len(self._due) == 1:
            self._key = ""
        self._state = self._string

    def _colon(self, char: str) -> None:
        if char in _SPACE:
            return
        if char != ":":
            raise ValueError("no colon")
        self._state = self._value

    def _first_item(self, char: str) -> None:
        if char == "]":
            self._close(char)
        else:
            self._value(char)

    def _value(self, char: str) -> None:
        if char in _SPACE:
            return
        if len(self._due) == 1:
            self.member = json.loads('"%s"' % self._key)
        if char in "{[":
            self._open(char)
        elif char == '"':
            self._state = self._string
        elif char in _SCALAR_CHARS:
            self._scalar_text = char
            self._state = self._scalar
        else:
            raise ValueError("not a value")

    def _string(self, char: str) -> Optional[str]:
        if char == '"':
            self._state = self._colon if self._in_key else self._next
            self._in_key = False
            return None
        shown = json.dumps(char)[1:-1] if char < " " else char
        self._note_key(shown)
        if char == "\\":
            self._state = self._escape
        return shown

    def _escape(self, char: str) -> None:
        if char not in '"\\/bfnrtu':
            raise ValueError("not an escape")
        self._note_key(char)
        self._digits = 4
        self._state = self._hex if char == "u" else self._string

    def _hex(self, char: str) -> None:
        if char not in "0123456789abcdefABCDEF":
            raise ValueError("not a hexadecimal digit")
        self._note_key(char)
        self._digits -= 1
        if not self._digits:
            self._state = self._string

    def _note_key(self, text: str) -> None:
        if self._in_key and len(self._due) == 1:
            self._key += text

    def _scalar(self, char: str) -> None:
        if char in _SCALAR_CHARS:
            self._scalar_text += char
            return
        if not _SCALAR.fullmatch(self._scalar_text):
            raise ValueError("neither a number nor true, false or null")
        self._next(char)

    def _next(self, char: str) -> None:
        """After a value: a comma, or the bracket that is due."""
        if len(self._due) == 1:
            self.member = None
        self._state = self._next
        if char in _SPACE:
            return
        if char != ",":
            self._close(char)
        else:
            self._state = self._before_key if self._due[-1] == "}" else self._value


class _Envelope:
    """Reads a call as {"name": ..., "arguments": {...}}; Llama's word for the arguments is "parameters".

    `name` is set once it is certain, and `ready` once the arguments have begun, too: from then on it is a call; `done`
    says that it has ended. With `strict` no unknown member may come before it is ready, so that an answer which is only
    JSON soon shows itself as content.
    """

    _ARGUMENTS = ("arguments", "parameters")
    _MEMBERS = ("name", "type", "id") + _ARGUMENTS

    def __init__(self, names: Collection[str], strict: bool):
        self.name = ""
        self.done = False
        self.arguments = ""  # what has come of them and was not taken yet
        self._begun = False
        self._names = names
        self._strict = strict
        self._object = _Object()
        self._name_text = ""

    @property
    def ready(self) -> bool:
        """Whether it is certain that this is a call."""
        return bool(self.name) and self._begun

    def push(self, char: str) -> None:
        """Take a character. Raises ValueError where this is no call of a known function."""
        before = self._object.member
        shown = self._object.push(char)
        member = self._object.member
        if before == "name" and member is None:
            self._end_name()
        if before is None and member is not None:
            self._begin(member, char)
        if member == "name":
            self._name_text += shown
        elif member in self._ARGUMENTS:
            self.arguments += shown
        if self._object.done:
            self._end()

    def _begin(self, member: str, char: str) -> None:
        """A member's value begins with this character."""
        if self._strict and not self.ready and member not in self._MEMBERS:
            raise ValueError("not a call's member")
        if member == "name" and (self.name or char != '"'):
            raise ValueError("the name is one string")
        if member in self._ARGUMENTS:
            if self._begun or char != "{":
                raise ValueError("the arguments are one object")
            self._begun = True

    def _end_name(self) -> None:
        name = json.loads(self._name_text)
        if name not in self._names:
            raise ValueError("not a known function's name")
        self.name = name

    def _end(self) -> None:
        if not self.name:
            raise ValueError("no name")
        if not self._begun:  # models leave out the arguments of a function that has none
            self._begun, self.arguments = True, "{}"
        self.done = True


class _Named:
    """Reads a call as name[ARGS]{...}, or with an id: name[CALL_ID]id[ARGS]{...}. Has _Envelope's attributes."""

    _ARGS, _ID, _LONGEST_ID = "[ARGS]", "[CALL_ID]", 64

    def __init__(self, names: Collection[str]):
        self.name = ""
        self.done = False
        self.arguments = ""
        self.ready = False
        self._names = names
        self._head = ""
        self._object = _Object()

    def push(self, char: str) -> None:
        """Take a character. Raises ValueError where this is no call of a known function."""
        if not self.name:
            self._push_head(char)
            return
        shown = self._object.push(char)
        if self.ready or char not in _SPACE:
            self.ready = True
            self.arguments += shown
        self.done = self._object.done

    def _push_head(self, char: str) -> None:
        self._head += char
        name, bracket, rest = self._head.partition("[")
        name, rest = name.strip(), bracket + rest
        if not bracket:
            if not any(each.startswith(name) for each in self._names):
                raise ValueError("not the beginning of a known function's name")
        elif name not in self._names or not self._may_follow(rest):
            raise ValueError("not a known function's call")
        elif rest.endswith(self._ARGS):
            self.name = name

    def _may_follow(self, rest: str) -> bool:
        if rest.startswith(self._ID):
            return len(rest) <= self._LONGEST_ID
        return self._ID.startswith(rest) or self._ARGS.startswith(rest)


# ----------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class CallDelta:
    """A part of a tool call, as OpenAI streams them: the first has an id and a name, the others parts of the arguments.

    Put together, the arguments of a call that came to its end are the JSON text of an object.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """What has become certain of an answer; exactly one of these is set."""

    content: str = ""
    reasoning: str = ""
    call: Optional[CallDelta] = None


class AnswerParser:
    """Splits an answer, as it comes, into reasoning, content and tool calls.

    `syntax` is None where there are no tools: then only the reasoning is told apart. `names` are the known functions; a
    call of any other stays content. `thinking` says that the prompt ends in an open <think>; `new_id` makes calls' ids.

    Only what is not certain yet is held back: what may be the beginning of a marker, white space that goes with a
    marker that may follow, and a call up to where its arguments begin. How the text is cut into pieces changes nothing
    in the whole.
    """

    def __init__(
        self, syntax: Optional[Syntax], names: Collection[str], thinking: bool, new_id: Callable[[], str]
    ) -> None:
        self.calls = 0  # complete ones and begun ones
        self._syntax = syntax
        self._names = names
        self._thinking = thinking
        self._new_id = new_id
        self._held = ""  # the text that no state has taken yet
        self._final = False  # no more text will come
        self._out: List[Delta] = []
        self._state: Callable[[], bool] = self._start
        self._trim = False  # white space is dropped until something else comes
        self._said = False  # content has come, since the beginning or since the last call
        self._raw = ""  # a call's text, while it may still turn out to be content
        self._in_array = False  # Mistral's [{...}, {...}]
        self._reader: Any = None  # an _Envelope or a _Named
        self._sent = False  # the call that is being read has been told of

    def push(self, text: str) -> List[Delta]:
        """Take a piece of the answer and return what has become certain."""
        self._held += text
        return self._run()

    def finish(self) -> List[Delta]:
        """Return what was held back, now that nothing more comes.

        A call that did not come to its end is given back as content, or has been told of already as far as it came.
        """
        self._final = True
        return self._run()

    def _run(self) -> List[Delta]:
        while self._state():  # a state returns whether there may be more to do with what is held
            pass
        out, self._out = self._out, []
        return out

    # --- reasoning and content

    def _start(self) -> bool:
        text = self._held.lstrip()
        if not self._final and len(text) < len(THINK) and THINK.startswith(text):
            return False
        if text.startswith(THINK):
            self._held, self._thinking = text[len(THINK) :], True
        self._trim = self._thinking
        self._state = self._think if self._thinking else self._content
        return True

    def _think(self) -> bool:
        if END_THINK not in self._held:
            self._release("reasoning", END_THINK)
            return False
        thought, _, self._held = self._held.partition(END_THINK)
        self._say("reasoning", thought.rstrip())
        self._trim = True
        self._state = self._content
        return True

    def _content(self) -> bool:
        if self._syntax is None:
            self._say("content", self._held)
            self._held = ""
            return False
        if self._syntax.bare and not self._said and self._held.lstrip().startswith("{"):
            self._raw, self._held = self._cut_space()
            return self._read(_Envelope(self._names, strict=True))
        before, opener, after = self._held.partition(self._syntax.opener)
        if not opener:
            self._release("content", self._syntax.opener)
            return False
        sure = before.rstrip()
        self._say("content", sure)
        self._raw, self._held = before[len(sure) :] + opener, after
        self._state = self._opened
        return True

    def _release(self, kind: str, marker: str) -> None:
        """Say what is held, but for an end that may belong to the marker or be the white space before it."""
        sure = self._held if self._final else self._held[: len(self._held) - _begun(marker, self._held)].rstrip()
        self._say(kind, sure)
        self._held = self._held[len(sure) :]

    def _say(self, kind: str, text: str) -> None:
        text = text.lstrip() if self._trim else text
        if text:
            self._trim = False
            self._said = self._said or kind == "content"
            self._out.append(Delta(**{kind: text}))

    def _cut_space(self) -> Tuple[str, str]:
        """Return what is held as the white space that it begins with, and the rest."""
        rest = self._held.lstrip()
        return self._held[: len(self._held) - len(rest)], rest

    # --- calls

    def _opened(self) -> bool:
        """After an opener, or a comma in Mistral's array."""
        space, self._held = self._cut_space()
        self._raw += space
        if not self._held:
            return self._final and self._give_back(0)
        if self._held[0] == "{":
            return self._read(_Envelope(self._names, strict=False))
        if self._syntax.opener != MISTRAL.opener or self._in_array:
            return self._give_back(0)
        if self._held[0] != "[":
            return self._read(_Named(self._names))
        self._raw, self._held, self._in_array = self._raw + "[", self._held[1:], True
        return True

    def _read(self, reader: Any) -> bool:
        self._reader, self._sent = reader, False
        self._state = self._call
        return True

    def _call(self) -> bool:
        for index, char in enumerate(self._held):
            try:
                self._reader.push(char)
            except ValueError:
                return self._broken(index)
            if self._reader.done:
                self._tell()
                self._held = self._held[index + 1 :]
                self._state = self._after
                return True
        self._tell()
        if self._final and not self._sent:
            return self._give_back(len(self._held))
        self._raw, self._held = "" if self._sent else self._raw + self._held, ""
        return False

    def _tell(self) -> None:
        """Say what is new of the call."""
        if not self._reader.ready:
            return
        if not self._sent:
            self._sent = True
            self.calls += 1
            self._out.append(Delta(call=CallDelta(self.calls - 1, self._new_id(), self._reader.name)))
        arguments, self._reader.arguments = self._reader.arguments, ""
        if arguments:
            self._out.append(Delta(call=CallDelta(self.calls - 1, arguments=arguments)))

    def _broken(self, index: int) -> bool:
        """The call does not go on like this; `index` is the character that shows it."""
        self._tell()
        if not self._sent:
            return self._give_back(index)
        self._held = self._held[index:]
        self._state = self._rest_of_broken
        return True

    def _rest_of_broken(self) -> bool:
        """Drop what belongs to a call that was told of and broke: a half of it is no content."""
        closer = self._syntax.closer
        _, found, rest = self._held.partition(closer) if closer else ("", "", "")
        if found:
            self._held = rest
            return self._to_content()
        self._held = self._held[len(self._held) - _begun(closer, self._held) :]
        return False

    def _give_back(self, size: int) -> bool:
        """It was no call: say its text, and `size` characters of what is held, as content."""
        self._say("content", self._raw + self._held[:size])
        self._held = self._held[size:]
        self._in_array = False
        self._state = self._content
        return True

    def _after(self) -> bool:
        """After a call: what may close it, or part it from the next."""
        self._held = self._held.lstrip()
        ends = (",", "]") if self._in_array else (self._syntax.closer or ";",)
        for end in ends:
            if self._held.startswith(end):
                self._held = self._held[len(end) :]
                return self._to_next_item() if end == "," else self._to_content()
            if not self._final and end.startswith(self._held):
                return False
        return self._to_content()

    def _to_next_item(self) -> bool:
        self._raw = ","
        self._state = self._opened
        return True

    def _to_content(self) -> bool:
        self._in_array, self._said, self._trim = False, False, True
        self._state = self._content
        return True


def _begun(marker: str, text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0

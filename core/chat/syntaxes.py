"""How models write their answers: thoughts, content and tool calls. The families that are known are in families.py.

    Style       all of it for one family
    Thoughts    what its thoughts stand between
    Syntax      how it writes calls
    Tags        how it writes arguments, where they are not one JSON object

A call is written as `head`, arguments and `tail`. What stands around it differs:

    {"name": "f", "arguments": {...}}               the call is one JSON object (Syntax.envelope)
    f[ARGS]{...}                                    the name stands before the arguments, a JSON object
    <function=f><parameter=a>1</parameter>...       each argument has tags of its own (Tags)
    call:f{a:1,b:<|"|>x<|"|>}                       Gemma's own notation (Syntax.notation)
    f(a=1, b="x")                                   Python's (Syntax.keywords)
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Thoughts:
    """What thoughts stand between. With `often` they may come again, further on in the answer."""

    opener: str = THINK
    closer: str = END_THINK
    often: bool = False


JSON_TYPES = ("string", "number", "boolean", "null", "array", "object")


def _type_of(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", type(None): "null", list: "array", dict: "object"}
    return kinds.get(type(value), "number")


@dataclass(frozen=True)
class Tags:
    """How arguments with tags are written: `key`, the argument's name, `value`, its value, and `close`.

    Texts stand there as they are, other values as JSON. `text_value` is `value` before a text, where that differs. With
    `typed`, a %s in `value` is the value's type, by one of JSON_TYPES.
    """

    key: str
    value: str
    close: str
    text_value: str = ""
    typed: bool = False

    def befores(self) -> List[Tuple[str, Optional[bool]]]:
        """Return what may stand before a value, each with whether that is a text; None where it does not tell."""
        if self.typed:
            return [(self.value % kind, kind == "string") for kind in JSON_TYPES]
        if self.text_value:
            return [(self.value, False), (self.text_value, True)]
        return [(self.value, None)]

    def before(self, kind: str) -> str:
        """Return what stands before a value of a type of JSON's."""
        if self.typed:
            return self.value % kind
        return self.text_value if kind == "string" and self.text_value else self.value

    def write(self, arguments: str) -> str:
        """Return arguments, the JSON text of an object, as the model would write them."""
        written = []
        for name, value in json.loads(arguments).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            written.append(self.key + name + self.before(_type_of(value)) + text + self.close)
        return "".join(written)


@dataclass(frozen=True)
class Notation:
    """Gemma's notation for values: JSON, but for names without quotes, and `quote` on both sides of texts."""

    quote: str

    def write(self, arguments: str) -> str:
        """Return arguments, the JSON text of an object, as the model would write them."""
        return self._value(json.loads(arguments))

    def _value(self, value: Any) -> str:
        if isinstance(value, str):
            return self.quote + value + self.quote
        if isinstance(value, dict):
            return "{%s}" % ",".join("%s:%s" % (name, self._value(each)) for name, each in value.items())
        if isinstance(value, list):
            return "[%s]" % ",".join(map(self._value, value))
        return json.dumps(value)


@dataclass(frozen=True)
class Keywords:
    """Python's notation for arguments: a=1, b="x". Values are written as JSON has them; models mix the two."""

    def write(self, arguments: str) -> str:
        """Return arguments, the JSON text of an object, as the model would write them."""
        values = json.loads(arguments).items()
        return ", ".join("%s=%s" % (name, json.dumps(value, ensure_ascii=False)) for name, value in values)


@dataclass(frozen=True)
class Syntax:
    """How a family of models writes tool calls.

    `opener` begins calls, wherever it comes in the content. Written out, calls are `before`, then each call as `head`,
    its arguments and `tail`, with `between` between two of them, then `after`. In a head, %(name)s is the function's
    name, %(number)s the call's number in the answer, and %(gap)s one of `gaps`; the first is the usual one.

    For reading: `closers` may follow a call and say nothing; `again` begins a further call where `opener` need not
    come again. A head that is not in a JSON object ends in `head_end`, and `named` is a regular expression that finds
    the name in it.
    """

    name: str
    opener: str
    head: str
    tail: str = ""
    before: str = ""
    between: str = ""
    after: str = ""
    closers: Tuple[str, ...] = ()
    again: str = ""
    named: str = ""
    head_end: str = ""
    gaps: Tuple[str, ...] = ("",)
    specials: Tuple[str, ...] = ()  # special tokens that a head may hold, too
    tags: Optional[Tags] = None
    notation: Optional[Notation] = None
    keywords: Optional[Keywords] = None
    envelope: bool = True  # a call is one JSON object, or may be
    arrays: bool = False  # such objects may stand in an array
    bare: bool = False  # a JSON object at the beginning of the content may be a call, too, without the opener
    first: int = 0  # the number of an answer's first call
    several: bool = True  # an answer may hold more than one call

    def write(self, calls: Sequence[Tuple[str, str]]) -> str:
        """Return calls, each a name and the JSON text of its arguments, as the model would write them."""
        written = []
        for number, (name, arguments) in enumerate(calls):
            head = self.head % {"name": json.dumps(name)[1:-1], "number": self.first + number, "gap": self.gaps[0]}
            form = self.tags or self.notation or self.keywords
            written.append(head + (form.write(arguments) if form else arguments) + self.tail)
        return self.before + self.between.join(written) + self.after


@dataclass(frozen=True)
class Style:
    """How a family of models writes answers.

    `thinks`: its template speaks of thoughts. `frames` are special tokens around content that say nothing to a client.
    `content` stands before the content where an answer must follow a schema, and `content_end` after it.
    """

    syntax: Syntax
    thoughts: Thoughts = Thoughts()
    thinks: bool = False
    frames: Tuple[str, ...] = ()
    content: str = ""
    content_end: str = ""
    after_thoughts: str = ""

    @property
    def markers(self) -> Tuple[str, ...]:
        """The texts that may be special tokens of the model, which the engine must show as text."""
        texts = list(_texts(dataclasses.astuple(dataclasses.replace(self, syntax=_without_patterns(self.syntax)))))
        found = {special for text in texts for special in _SPECIAL.findall(text)}
        return tuple(sorted(found | {self.thoughts.opener.strip(), self.thoughts.closer, self.syntax.opener}))


# What looks like a special token: <|tool_call|>, [TOOL_CALLS], and DeepSeek's ｜DSML｜, which stands within a tag.
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]|｜[^｜<>\s]+｜")


def _without_patterns(syntax: Syntax) -> Syntax:
    return dataclasses.replace(syntax, named="")


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in tuples within tuples."""
    if isinstance(value, str):
        yield value
    for each in value if isinstance(value, tuple) else ():
        yield from _texts(each)

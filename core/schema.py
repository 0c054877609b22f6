"""From a JSON schema to a grammar: what a constrained answer may look like, in GBNF, llama.cpp's grammar language.

    schema ── _Converter ── rules ── Grammar.text ── llama.cpp's grammar sampler
                  │
                  ├── strings by pattern, format, excluded names ── _Machine (a deterministic automaton)
                  └── numbers within bounds, multiples           ── _Machine

The one law: every text that the grammar accepts is JSON and valid against the schema. A schema that can not be held to
gets APIError 400 that names the keyword and its place; never is a keyword of validation overlooked. The other way round
the grammar may be narrower than the schema, where JSON Schema is wider than anybody means:

- Properties come in the order they are declared in, additional ones after them. An object that declares properties is
  closed unless `additionalProperties` or `patternProperties` open it; one that declares none is open.
- A tuple (`prefixItems`) comes whole, and is closed unless `items` says how it goes on.
- Without `type`, the keywords tell: `properties` speaks of an object, `pattern` of a string.
- Numbers have at most 15 digits before the point (more where a bound has more), 15 after it and an exponent of two: a
  weak model would go on for ever. Numbers with bounds or `multipleOf` have no exponent.
- Between tokens stands nothing, a blank, or a line's end and an indent of at most 20. Nothing else.
- Texts and arrays hold at most 500,000 characters or items more than they must, where they have an upper bound.
- `uniqueItems` is held for enumerated items, which then come in the order of the enumeration.
- `oneOf`: what two branches may share is left out, strings exactly, other values by whole types or by leaving out an
  optional property. A branch of which nothing remains is refused: `anyOf` is what such a schema means. `not` likewise.

Patterns have ECMA-262's meaning, without flags, by code points; a lookahead is understood where a pattern begins.

From the top down: Grammar, GBNF's words, machines, patterns, formats, digits, and the converter.
Sources: JSON Schema 2020-12 (and what draft 4, draft 7 and OpenAPI 3.0 write otherwise), RFC 8259, RFC 3339, RFC 3986,
ECMA-262 chapter 22.2, llama.cpp's grammars/README.md and the limits in src/llama-grammar.cpp.
"""

import functools
import json
import math
import re
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import (
    Any, Callable, Deque, Dict, FrozenSet, Hashable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set,
    Tuple,
)  # fmt: skip
from urllib.parse import unquote

from core.service import APIError

JSON_OBJECT: Dict[str, Any] = {"type": "object"}  # what response_format json_object asks for

_MAX_DEPTH = 100  # levels of brackets in a schema
_MAX_NODES = 50000  # values in a schema
_MAX_RULES = 20000
_MAX_STATES = 4000  # of one machine
_MAX_ALL_STATES = 40000  # of all machines made for one grammar, and comparisons of branches
_MAX_BRANCHES = 300  # of one value, once unions within unions are multiplied out
_MAX_REFERENCES = 60  # in a row
_MAX_REPEATS = 100000  # llama.cpp makes a rule of each optional repetition
_MOST_OVER = 500000  # characters or items beyond the least number: more than any answer holds
_BLOCK = 1000  # llama.cpp refuses to repeat anything more than 2,000 times
_MAX_DIGITS = 40  # of a bound
_DIGITS = 15  # that a double holds, whatever they are

Ranges = Tuple[Tuple[int, int], ...]  # of code points, ascending, both ends included


# ----------------------------------------------------------------------------------------------- the grammar


class Grammar:
    """GBNF rules under construction. `param` is the request's field that errors name."""

    def __init__(self, param: str = "response_format") -> None:
        self.param = param
        self._rules: Dict[str, str] = {}
        self._names: Dict[Tuple[str, str], str] = {}  # by wished name and body
        self._counts: Dict[str, int] = {}  # of rules by wished name
        self._machines: Dict[Hashable, str] = {}
        self._states = 0
        self._repeats = 0

    def rule(self, name: str, body: str) -> str:
        """Add a rule and return its name, made valid and unique; the same body under the same name is one rule.

        Raises APIError 400 where the grammar becomes too large.
        """
        key = (_plain_name(name), body)
        if key not in self._names:
            self._names[key] = self.reserve(name)
            self._rules[self._names[key]] = body
        return self._names[key]

    def schema(self, schema: Any, name: str = "value") -> str:
        """Add the rules for a JSON schema, which is the root that its references point into; returns the rule's name.

        Raises APIError 400 unsupported_schema.
        """
        return _Converter(self, schema, name).convert()

    def text(self, root: str) -> str:
        """Return the whole grammar; an answer is what `root`, a rule's name or a body, describes."""
        rules = ["root ::= " + root] + ["%s ::= %s" % pair for pair in self._rules.items()]
        return "\n".join(rules) + "\n"

    def reserve(self, name: str) -> str:
        """Return a name for a rule that may refer to itself; define() gives the body."""
        plain = _plain_name(name)
        count = self._counts.get(plain, 0)
        while not count or self._numbered(plain, count) in self._rules:
            count += 1
        self._counts[plain] = count
        self._rules[self._numbered(plain, count)] = ""
        if len(self._rules) > _MAX_RULES:
            raise self.refuse("The schema is too large: it takes more than %d grammar rules." % _MAX_RULES)
        return self._numbered(plain, count)

    def define(self, name: str, body: str) -> None:
        """Give a reserved rule its body."""
        self._rules[name] = body

    def basic(self, name: str) -> str:
        """Add one of the basic rules of JSON with all that it needs; returns its name."""
        body, needed = _BASICS[name]
        if name not in self._rules:
            self._rules[name] = body
            for each in needed:
                self.basic(each)
        return name

    def repeat(self, rule: str, low: int, high: Optional[int]) -> str:
        """Return the body for `low` to `high` (None: any number of) times a rule.

        Blocks keep the counts within what llama.cpp takes. A text stands in at most three places of it at once.
        """
        if high is None:
            return (self._exactly(rule, low) + " " + rule + "*").strip()
        most = min(high - low, _MOST_OVER)
        if most <= _BLOCK:
            self._count(most)
            optional = rule + "{0,%d}" % most if most else ""
            return (self._exactly(rule, low) + " " + optional).strip()
        blocks, over = divmod(most - (_BLOCK - 1), _BLOCK)
        rest = "%s{0,%d} %s{0,%d}" % (self._block(rule), blocks, rule, _BLOCK - 1)
        self._count(blocks + over + _BLOCK)
        if over:
            rest = "(%s{0,%d} | %s{%d} %s)" % (rule, over - 1, rule, over, rest)
        return (self._exactly(rule, low) + " " + rest).strip()

    def machine(self, name: str, machine: "_Machine", quoted: bool) -> str:
        """Add the rules for a machine's texts, as they are or as JSON strings; returns the first one's name."""
        key = (machine.key(), quoted)
        if key not in self._machines:
            self._machines[key] = _machine_rules(self, name, machine, quoted)
        return self._machines[key]

    def spend(self, states: int) -> None:
        """Count states of machines, or other costly steps. Raises APIError 400 where they become too many."""
        self._states += states
        if self._states > _MAX_ALL_STATES:
            raise self.refuse("The schema is too large: its patterns, formats, bounds or branches take too much.")

    def refuse(self, message: str) -> APIError:
        """Return the error for a schema that can not be honoured."""
        return APIError(400, message, "unsupported_schema", self.param)

    def _exactly(self, rule: str, count: int) -> str:
        blocks, rest = divmod(count, _BLOCK)
        self._count(blocks + rest)
        words = [self._block(rule) + "{%d}" % blocks] if blocks else []
        return " ".join(words + ([rule + "{%d}" % rest] if rest > 1 else [rule] * rest))

    def _block(self, rule: str) -> str:
        self._count(_BLOCK)
        return self.rule(rule + "-block", rule + "{%d}" % _BLOCK)

    def _count(self, repeats: int) -> None:
        self._repeats += repeats
        if self._repeats > _MAX_REPEATS:
            raise self.refuse("The schema is too large: its lengths and counts add up to too many repetitions.")

    @staticmethod
    def _numbered(name: str, number: int) -> str:
        return name if number == 1 else "%s-%d" % (name, number)


def json_grammar(schema: Any, param: str = "response_format") -> str:
    """Return the whole grammar for one schema. Raises APIError 400 unsupported_schema that names `param`."""
    grammar = Grammar(param)
    return grammar.text(grammar.schema(schema))


def literal(text: str) -> str:
    """Return a text as a GBNF literal, with its quotes."""
    return '"%s"' % "".join(_LITERAL_ESCAPES.get(char, char) for char in text)


_LITERAL_ESCAPES = {chr(code): "\\x%02X" % code for code in list(range(0x20)) + [0x7F]}
_LITERAL_ESCAPES.update({"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"})


def _plain_name(name: str) -> str:
    """Return a name made of what GBNF allows; `root` is text()'s."""
    plain = re.sub(r"[^a-zA-Z0-9]+", "-", name)[:40].strip("-") or "rule"
    return "root-rule" if plain == "root" else plain


_RAW_CHAR = r"[\x20-\x21\x23-\x5B\x5D-\x7E\x80-\uD7FF\uE000-\U0010FFFF]"
_UNICODE_ESCAPE = (  # a character of the basic plane, or a surrogate pair; half of one is no character
    "[0-9A-CE-Fa-ce-f] json-hex{3} | [Dd] [0-7] json-hex{2}"
    r' | [Dd] [89ABab] json-hex{2} "\\u" [Dd] [C-Fc-f] json-hex{2}'
)
_BASICS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    # Nothing, a blank, or a new line: enough to write naturally, too little to get lost in.
    "json-space": (r'(" " | "\n" [ \t]{0,20})?', ()),
    "json-colon": ('":" " "?', ()),
    "json-hex": ("[0-9A-Fa-f]", ()),
    "json-unicode": (_UNICODE_ESCAPE, ("json-hex",)),
    "json-char": (_RAW_CHAR + r' | "\\" (["\\/bfnrt] | "u" json-unicode)', ("json-unicode",)),
    "json-string": (r'"\"" json-char* "\""', ("json-char",)),
    "json-integer": ('"0" | "-"? [1-9] [0-9]{0,14}', ()),
    "json-number": ('"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?', ()),
    "json-member": ("json-string json-colon json-value", ("json-string", "json-colon", "json-value")),
    "json-object": (
        '"{" json-space (json-member ("," json-space json-member)* json-space)? "}"',
        ("json-space", "json-member"),
    ),
    "json-array": (
        '"[" json-space (json-value ("," json-space json-value)* json-space)? "]"',
        ("json-space", "json-value"),
    ),
    "json-value": (
        'json-object | json-array | json-string | json-number | "true" | "false" | "null"',
        ("json-object", "json-array", "json-string", "json-number"),
    ),
}


def _char_class(ranges: Ranges) -> str:
    return "[%s]" % "".join(_class_char(a) + ("-" + _class_char(b) if b > a else "") for a, b in ranges)


def _class_char(code: int) -> str:
    if chr(code).isalnum() and code < 0x80:
        return chr(code)
    if code < 0x100:
        return "\\x%02X" % code
    return "\\u%04X" % code if code < 0x10000 else "\\U%08X" % code


# ------------------------------------------------------------------------------------------------- machines

_ALL: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # every character; surrogates are none
Row = Sequence[Tuple[int, int, int]]  # (first code point, last one, next state), ascending and apart


class _TooLarge(Exception):
    """A machine would have too many states."""


class _Machine:
    """A deterministic automaton over characters. It starts in state 0; from every state some end can be reached."""

    def __init__(self, rows: Sequence[Row], ends: Sequence[bool]):
        self.rows, self.ends = rows, ends

    @property
    def empty(self) -> bool:
        """Whether no text at all is accepted."""
        return not any(self.ends)

    def key(self) -> Hashable:
        """Return what tells two machines apart."""
        return (tuple(map(tuple, self.rows)), tuple(self.ends))

    def accepts(self, text: str) -> bool:
        """Tell whether the machine accepts a text."""
        state = 0
        for char in text:
            following = [to for first, last, to in self.rows[state] if first <= ord(char) <= last]
            if not following:
                return False
            state = following[0]
        return self.ends[state]


def _explore(
    start: Hashable, edges: Callable[[Any], Iterable[Tuple[int, int, Hashable]]], ends: Callable[[Any], bool]
) -> _Machine:
    """Make a machine of all that can be reached from a start. Raises _TooLarge."""
    numbers: Dict[Hashable, int] = {start: 0}
    found: List[Hashable] = [start]
    rows: List[List[Tuple[int, int, int]]] = []
    for state in found:  # which grows
        row: List[Tuple[int, int, int]] = []
        for first, last, following in edges(state):
            to = numbers.setdefault(following, len(found))
            if to == len(found):
                found.append(following)
            if row and row[-1][1] == first - 1 and row[-1][2] == to:
                row[-1] = (row[-1][0], last, to)
            else:
                row.append((first, last, to))
        rows.append(row)
        if len(found) > _MAX_STATES:
            raise _TooLarge()
    return _trimmed(rows, [ends(state) for state in found])


def _trimmed(rows: Sequence[Row], ends: Sequence[bool]) -> _Machine:
    """Return a machine without the states that lead nowhere: in such a one, an answer could never be finished."""
    sources: List[List[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for _, _, to in row:
            sources[to].append(state)
    alive = {state for state, end in enumerate(ends) if end}
    todo = list(alive)
    while todo:
        fresh = set(sources[todo.pop()]) - alive
        alive |= fresh
        todo += fresh
    if 0 not in alive:
        return _Machine([[]], [False])
    kept = sorted(alive)
    number = {state: index for index, state in enumerate(kept)}
    lived = [[(first, last, number[to]) for first, last, to in rows[state] if to in alive] for state in kept]
    return _Machine(lived, [ends[state] for state in kept])


def _repeated(ranges: Ranges) -> _Machine:
    """Return the machine for texts of certain characters."""
    return _Machine([[(first, last, 0) for first, last in ranges]], [True])


_ANY_TEXT = _repeated(_ALL)


def _words(words: Iterable[str]) -> _Machine:
    """Return the machine for a finite set of texts."""
    steps: List[Dict[int, int]] = [{}]
    ends = [False]
    for word in words:
        state = 0
        for char in word:
            if ord(char) not in steps[state]:
                steps[state][ord(char)] = len(steps)
                steps.append({})
                ends.append(False)
            state = steps[state][ord(char)]
        ends[state] = True
    return _Machine([[(code, code, to) for code, to in sorted(each.items())] for each in steps], ends)


def _product(one: _Machine, other: _Machine, wanted: bool) -> _Machine:
    """Return the machine for `one`'s texts that are `other`'s, too (`wanted`), or that are not. Raises _TooLarge."""

    def edges(state: Tuple[int, Optional[int]]) -> Iterator[Tuple[int, int, Hashable]]:
        row = () if state[1] is None else other.rows[state[1]]
        for first, last, to in one.rows[state[0]]:
            for begin, end, beside in _split(first, last, row):
                if beside is not None or not wanted:
                    yield begin, end, (to, beside)

    def ends(state: Tuple[int, Optional[int]]) -> bool:
        return one.ends[state[0]] and (state[1] is not None and other.ends[state[1]]) == wanted

    return _explore((0, 0), edges, ends)


def _split(first: int, last: int, row: Row) -> Iterator[Tuple[int, int, Optional[int]]]:
    """Cut a range where a row's edges begin and end; yields the parts with the row's next states, None for none."""
    for begin, end, to in row:
        if end >= first and begin <= last:
            if begin > first:
                yield first, begin - 1, None
            yield max(first, begin), min(last, end), to
            first = end + 1
    if first <= last:
        yield first, last, None


def _within(machine: _Machine, low: int, high: Optional[int]) -> _Machine:
    """Return the machine for the texts of `low` to `high` characters (None: any number). Raises _TooLarge."""
    most = low if high is None else high

    def edges(state: Tuple[int, int]) -> Iterator[Tuple[int, int, Hashable]]:
        count = state[1] + 1
        if count <= most or high is None:
            for first, last, to in machine.rows[state[0]]:
                yield first, last, (to, min(count, most))

    return _explore((0, 0), edges, lambda state: machine.ends[state[0]] and state[1] >= low)


def _machine_rules(grammar: Grammar, name: str, machine: _Machine, quoted: bool) -> str:
    """Write a machine as rules, one for each state that is not the only way on from a single other one."""
    ways_in = [0] * len(machine.rows)
    for row in machine.rows:
        for _, _, to in row:
            ways_in[to] += 1
    spelled = _json_chars if quoted else (lambda ranges: [_char_class(ranges)])
    choices = [_choices(row, spelled) for row in machine.rows]
    chained = [
        index > 0 and ways_in[index] == 1 and len(choices[index]) == 1 and not end
        for index, end in enumerate(machine.ends)
    ]
    names = {index: grammar.reserve(name) for index, inside in enumerate(chained) if not inside}

    def path(text: str, to: int) -> str:
        while chained[to]:
            further, to = choices[to][0]
            text += " " + further
        return text + " " + names[to]

    finish = ['"\\""' if quoted else '""']
    for index, rule in names.items():
        bodies = [path(*choice) for choice in choices[index]] + (finish if machine.ends[index] else [])
        grammar.define(rule, " | ".join(bodies))
    return grammar.rule(name, '"\\"" ' + names[0]) if quoted else names[0]


def _choices(row: Row, spelled: Callable[[Ranges], List[str]]) -> List[Tuple[str, int]]:
    targets: Dict[int, List[Tuple[int, int]]] = {}
    for first, last, to in row:
        targets.setdefault(to, []).append((first, last))
    return [(text, to) for to, ranges in targets.items() for text in spelled(tuple(ranges))]


_CONTROL: Ranges = ((0, 0x1F),)
_ESCAPED: Ranges = _CONTROL + ((0x22, 0x22), (0x5C, 0x5C))
_UNESCAPED: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))
_SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}


def _json_chars(ranges: Ranges) -> List[str]:
    """Return the alternatives for a set of characters within a JSON string: as they are where that may be, else
    escaped. Two at most, for llama.cpp follows all of them at once."""
    plain = _common(ranges, _UNESCAPED)
    special = [code for first, last in _common(ranges, _ESCAPED) for code in range(first, last + 1)]
    short = sorted(ord(_SHORT_ESCAPES[code]) for code in special if code in _SHORT_ESCAPES)
    words = [_char_class(_union((code, code) for code in short))] if short else []
    if _common(ranges, _CONTROL) == _CONTROL:
        words.append('"u00" [01] [0-9a-f]')
    else:
        words += [literal("u%04x" % code) for code in special if code not in _SHORT_ESCAPES]
    escaped = ['"\\\\" ' + (words[0] if len(words) == 1 else "(%s)" % " | ".join(words))] if words else []
    return ([_char_class(plain)] if plain else []) + escaped


def _common(some: Ranges, others: Ranges) -> Ranges:
    both = ((max(a, c), min(b, d)) for a, b in some for c, d in others)
    return tuple(sorted((first, last) for first, last in both if first <= last))


def _union(ranges: Iterable[Tuple[int, int]]) -> Ranges:
    merged: List[Tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _others(ranges: Ranges) -> Ranges:
    """Return all characters that are not in `ranges`."""
    edges = [-1] + [edge for first, last in ranges for edge in (first - 1, last + 1)] + [0x110000]
    bounds = [edges[0] + 1] + edges[1:-1] + [edges[-1] - 1]
    return _common(tuple(zip(bounds[::2], bounds[1::2])), _ALL)


# ------------------------------------------------------------------------------------------------- patterns

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANKS: Ranges = (
    (9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _BLANKS, "D": _others(_DIGIT), "W": _others(_WORD), "S": _others(_BLANKS)}
_DOT = _others(((10, 10), (13, 13), (0x2028, 0x2029)))
_ONE_LINE = _repeated(_DOT)
_CONTROLS = {"n": 10, "r": 13, "t": 9, "v": 11, "f": 12, "0": 0}
_QUANTIFIER = re.compile(r"([*+?]|\{(\d+)(,(\d*))?\})(\??)")
_MAX_GROUPS = 50  # within one another
_MAX_PLACES = 20000  # of a pattern with its repetitions written out

Tree = Tuple[
    Any, ...
]  # ("set", ranges), ("row", trees), ("any of", trees), ("repeat", tree, low, high), ("^",), ("$",)


class _BadPattern(Exception):
    """A pattern that is wrong, or that no grammar can hold."""


class _Lookahead(NamedTuple):
    """What a pattern says about its text before it begins: that it starts with a tree, or that it does not."""

    tree: Tree
    wanted: bool


class _PatternReader:
    """Reads a regular expression (ECMA-262, 22.2.1, with what its annex B tolerates) into a tree."""

    def __init__(self, text: str):
        self._text = text
        self._at = 0
        self._depth = 0

    def read(self) -> Tuple[List[_Lookahead], Tree]:
        """Return the lookaheads at the start, and the rest. Raises _BadPattern."""
        anchored = self._text.startswith("^(?=") or self._text.startswith("^(?!")
        ahead: List[_Lookahead] = []
        if anchored:
            self._at = 1
            while self._text.startswith(("(?=", "(?!"), self._at):
                wanted = self._text[self._at + 2] == "="
                self._at += 3
                ahead.append(_Lookahead(("row", [("^",), self._group()]), wanted))
        tree = self._choice()
        if self._at < len(self._text):
            raise _BadPattern("it has a ')' too many")
        if anchored and tree[0] == "any of":
            raise _BadPattern("its lookahead is beside '|'; put the alternatives in a group")
        return ahead, ("row", [("^",), tree]) if anchored else tree

    def _choice(self) -> Tree:
        trees = [self._row()]
        while self._take("|"):
            trees.append(self._row())
        return trees[0] if len(trees) == 1 else ("any of", trees)

    def _row(self) -> Tree:
        trees: List[Tree] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            trees.append(self._quantified(self._atom()))
        return ("row", trees)

    def _quantified(self, tree: Tree) -> Tree:
        match = _QUANTIFIER.match(self._text, self._at)
        if not match:
            return tree
        if tree[0] in "^$":
            raise _BadPattern("it repeats '%s'" % tree[0])
        self._at = match.end()
        sign, low, ranged, high = match.group(1), match.group(2), match.group(3), match.group(4)
        if low is None:
            return ("repeat", tree, 1 if sign == "+" else 0, 1 if sign == "?" else None)
        if len(low) > 5 or len(high or "") > 5:
            raise _BadPattern("it repeats too often")
        most = int(low) if not ranged else int(high) if high else None
        if most is not None and most < int(low):
            raise _BadPattern("its repetition %s is the wrong way round" % sign)
        return ("repeat", tree, int(low), most)

    def _atom(self) -> Tree:
        char = self._next()
        if char in "^$":
            return (char,)
        if char == ".":
            return ("set", _DOT)
        if char == "(":
            return self._open()
        if char == "[":
            return ("set", self._class())
        if char == "\\":
            return ("set", self._escape(False))
        if char in "*+?" or _QUANTIFIER.match(self._text, self._at - 1):
            raise _BadPattern("it repeats nothing")
        return ("set", _one(ord(char)))

    def _open(self) -> Tree:
        kind = re.compile(r"\?(:|=|!|<=|<!|<[A-Za-z_$][\w$]*>|.?)").match(self._text, self._at)
        if kind:
            if kind.group(1) in ("=", "!", "<=", "<!"):
                raise _BadPattern("a lookaround stands elsewhere than right after a leading '^'")
            if kind.group(1) != ":" and not kind.group(1).endswith(">"):
                raise _BadPattern("it has a group of an unknown kind")
            self._at = kind.end()
        return self._group()

    def _group(self) -> Tree:
        self._depth += 1
        if self._depth > _MAX_GROUPS:
            raise _BadPattern("its groups are nested too deeply")
        tree = self._choice()
        self._depth -= 1
        if not self._take(")"):
            raise _BadPattern("a group is not closed")
        return tree

    def _class(self) -> Ranges:
        inverted = self._take("^")
        ranges: List[Tuple[int, int]] = []
        while not self._take("]"):
            first = self._member()
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                ranges += self._range(first, self._member())
            else:
                ranges += first
        found = _union(ranges)
        return _others(found) if inverted else _common(found, _ALL)

    def _range(self, first: Ranges, last: Ranges) -> Ranges:
        low, high = first[0][0], last[0][0]
        if _one(low) != first or _one(high) != last:  # "[\w-.]": annex B takes the hyphen for itself
            return first + _one(ord("-")) + last
        if low > high:
            raise _BadPattern("a range in a class is the wrong way round")
        return ((low, high),)

    def _member(self) -> Ranges:
        char = self._next()
        return self._escape(True) if char == "\\" else _one(ord(char))

    def _escape(self, in_class: bool) -> Ranges:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char == "0" and not self._text[self._at : self._at + 1].isdigit():
            return _one(0)
        if char in _CONTROLS and char != "0":
            return _one(_CONTROLS[char])
        if char in "xuc":
            return _one(self._code(char))
        if char == "b" and in_class:
            return _one(8)
        if char.isdigit() or char == "k":
            raise _BadPattern("it refers back to a group")
        if char.isalpha():
            raise _BadPattern("the escape \\%s is not supported" % char)
        return _one(ord(char))

    def _code(self, kind: str) -> int:
        forms = {"x": r"([0-9A-Fa-f]{2})", "u": r"\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{4})", "c": r"([A-Za-z])"}
        match = re.compile(forms[kind]).match(self._text, self._at)
        if not match:
            raise _BadPattern("the escape \\%s is incomplete" % kind)
        self._at = match.end()
        digits = match.group(match.lastindex or 1)
        if kind == "c":
            return ord(digits) % 32
        code = int(digits, 16)
        low = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})").match(self._text, self._at)
        if 0xD800 <= code < 0xDC00 and low:
            self._at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + int(low.group(1), 16) - 0xDC00
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise _BadPattern("\\%s%s is no character" % (kind, digits))
        return code

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise _BadPattern("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found


def _one(code: int) -> Ranges:
    return ((code, code),)


class _Places:
    """A pattern as a nondeterministic automaton (Thompson's): places, joined by characters and by free steps.

    A free step is "" or an anchor, "^" or "$", which can be passed only where the text begins or ends.
    """

    def __init__(self, tree: Tree):
        self._moves: List[List[Tuple[int, int, int]]] = []
        self._steps: List[List[Tuple[str, int]]] = []
        before, after = self._place(), self._place()
        for place in (before, after):  # a pattern may match anywhere
            self._moves[place] = [(first, last, place) for first, last in _ALL]
        self._before, self._after = before, after
        self._steps[self._add(tree, before)].append(("", after))

    def machine(self) -> _Machine:
        """Return the deterministic machine of the same texts. Raises _TooLarge."""
        start = (True, self._reach([self._before], "^"))
        return _explore(start, self._edges, lambda state: self._after in self._reach(state[1], "^$"[not state[0] :]))

    def _edges(self, state: Tuple[bool, FrozenSet[int]]) -> Iterator[Tuple[int, int, Hashable]]:
        moves = [move for place in state[1] for move in self._moves[place]]
        cuts = sorted({first for first, _, _ in moves} | {last + 1 for _, last, _ in moves})
        starting: Dict[int, List[int]] = {}
        ending: Dict[int, List[int]] = {}
        for first, last, to in moves:
            starting.setdefault(first, []).append(to)
            ending.setdefault(last + 1, []).append(to)
        active: Dict[int, int] = {}
        for begin, end in zip(cuts, cuts[1:]):
            for to in starting.get(begin, ()):
                active[to] = active.get(to, 0) + 1
            for to in ending.get(begin, ()):
                active[to] -= 1
            goals = [to for to, count in active.items() if count]
            if goals:
                yield begin, end - 1, (False, self._reach(goals, ""))

    def _reach(self, places: Iterable[int], anchors: str) -> FrozenSet[int]:
        """Return the places that free steps lead to. Once all is matched, nothing else makes a difference."""
        reached = set(places)
        todo = list(reached)
        while todo:
            for anchor, to in self._steps[todo.pop()]:
                if anchor in anchors and to not in reached:
                    reached.add(to)
                    todo.append(to)
        return frozenset([self._after]) if self._after in reached else frozenset(reached)

    def _place(self) -> int:
        if len(self._moves) >= _MAX_PLACES:
            raise _TooLarge()
        self._moves.append([])
        self._steps.append([])
        return len(self._moves) - 1

    def _add(self, tree: Tree, place: int) -> int:
        """Add a tree's places after a place; returns the last one."""
        kind = tree[0]
        if kind == "row":
            for each in tree[1]:
                place = self._add(each, place)
            return place
        if kind == "repeat":
            return self._repeat(tree[1], tree[2], tree[3], place)
        end = self._place()
        if kind == "set":
            self._moves[place] += [(first, last, end) for first, last in tree[1]]
        elif kind == "any of":
            for each in tree[1]:
                begin = self._place()
                self._steps[place].append(("", begin))
                self._steps[self._add(each, begin)].append(("", end))
        else:
            self._steps[place].append((kind, end))
        return end

    def _repeat(self, tree: Tree, low: int, high: Optional[int], place: int) -> int:
        for _ in range(low):
            place = self._add(tree, self._fresh_after(place))
        if high is None:
            place = self._fresh_after(place)
            self._steps[self._add(tree, place)].append(("", place))
            return self._fresh_after(place)
        end = self._place()
        for _ in range(high - low):
            self._steps[place].append(("", end))
            place = self._add(tree, self._fresh_after(place))
        self._steps[place].append(("", end))
        return end

    def _fresh_after(self, place: int) -> int:
        """Add a place of its own after another one, so that a loop to it does not begin earlier."""
        fresh = self._place()
        self._steps[place].append(("", fresh))
        return fresh


@functools.lru_cache(maxsize=256)
def _pattern(text: str) -> _Machine:
    """Return the machine for the texts that a pattern matches somewhere. Raises _BadPattern, _TooLarge."""
    ahead, tree = _PatternReader(text).read()
    machine = _Places(tree).machine()
    for each in ahead:
        machine = _product(machine, _Places(each.tree).machine(), each.wanted)
    return machine


def _without(machine: Optional[_Machine], pattern: _Machine) -> _Machine:
    """Return the machine for the texts of `machine` (None: all) that a pattern does not match. Raises _TooLarge.

    Only texts of one line: Python and others let '$' match before a last line's end, and '.' some of ECMA's line ends.
    """
    return _product(_product(machine or _ANY_TEXT, _ONE_LINE, True), pattern, False)


# -------------------------------------------------------------------------------------------------- formats

_DATE = (
    r"([1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    r"|([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"  # leap years
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_CLOCK = r"T(\d{1,4}H(\d{1,4}M(\d{1,4}S)?)?|\d{1,4}M(\d{1,4}S)?|\d{1,4}S)"
_DAYS = r"(\d{1,4}Y(\d{1,4}M(\d{1,4}D)?)?|\d{1,4}M(\d{1,4}D)?|\d{1,4}D)"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9]|-[A-Za-z0-9]){0,12}"
_HOST = r"%s(\.%s){0,4}" % (_LABEL, _LABEL)
_OCTET = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_GROUP = r"[0-9A-Fa-f]{1,4}"
_URL_CHAR = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_IPV6 = "|".join(
    ["(G:){7}G", "(G:){1,7}:", ":(:G){1,7}", "::"] + ["(G:){1,%d}(:G){1,%d}" % (7 - n, n) for n in range(1, 7)]
).replace("G", _GROUP)

# Each is a part of what its standard allows, wherever that is wider than what people write: years of four digits,
# hosts of at most five labels, URLs of the usual shape.
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": _DATE + "T" + _TIME,
    "duration": "P(%s(%s)?|%s|\\d{1,4}W)" % (_DAYS, _CLOCK, _CLOCK),
    "email": r"[A-Za-z0-9_+-]{1,32}(\.[A-Za-z0-9_+-]{1,12}){0,2}@%s\.[A-Za-z]{2,12}" % _HOST,
    "hostname": _HOST,
    "ipv4": r"(%s\.){3}%s" % (_OCTET, _OCTET),
    "ipv6": _IPV6,
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": "[A-Za-z][A-Za-z0-9+.-]{0,19}:(//HOST(:[0-9]{1,4})?(/C*)*|C+(/C*)*)([?]Q)?(#Q)?".replace(
        "Q", "[/?]*(C[/?]*)*"
    )
    .replace("C", _URL_CHAR)
    .replace("HOST", _HOST),
    "json-pointer": r"(/([^~/]|~[01])*)*",
}


# --------------------------------------------------------------------------------------------------- digits


class _Bounds(NamedTuple):
    """Where a number must lie, both ends included, None for open; and of what it must be a multiple, 0 for anything."""

    low: Optional[Fraction]
    high: Optional[Fraction]
    step: Fraction


Span = Optional[Tuple[int, int]]


class _Digits:
    """The decimal writings of the numbers from `low` to `high` that are multiples of `step`, all of them counted in
    units of ten to the minus `places`, not negative.

    A state is what the digits still to come may amount to. Before the point: for each number of further digits a
    span, and the rest that is left of dividing by the step. After it: the digits still allowed, one span, the rest.
    """

    def __init__(self, low: int, high: int, step: int, places: int):
        self._unit = 10**places
        self._places = places
        self._step = step
        self._cycle = step // math.gcd(step, 10) if places == 0 else step
        digits = max(1, len(str(high // self._unit)))
        self._start = ((None,) + tuple(self._clip((low, high), count) for count in range(1, digits + 1)), 0)

    def machine(self) -> _Machine:
        """Return the machine for the writings. Raises _TooLarge."""
        return _explore(("start",) + self._start, self._edges, self._ends)

    def _clip(self, span: Tuple[int, int], digits: int) -> Span:
        low, high = max(span[0], 0), min(span[1], 10**digits * self._unit - 1)
        return (low, high) if low <= high else None

    def _ends(self, state: Tuple[Any, ...]) -> bool:
        span = state[2] if state[0] == "fraction" else state[1][0]
        started = state[0] != "fraction" or state[1] < self._places
        return started and span is not None and span[0] == 0 and state[-1] == 0

    def _edges(self, state: Tuple[Any, ...]) -> Iterator[Tuple[int, int, Hashable]]:
        if state[0] == "fraction":
            return self._after_the_point(*state[1:])
        return self._before_the_point(*state)

    def _before_the_point(self, kind: str, spans: Tuple[Span, ...], rest: int) -> Iterator[Tuple[int, int, Hashable]]:
        if self._places and spans[0]:
            yield 0x2E, 0x2E, ("fraction", self._places, spans[0], rest)
        for digit in range(10):
            following = tuple(self._cut(span, digit, 10**count * self._unit) for count, span in enumerate(spans[1:]))
            if kind == "start" and digit == 0:
                following = following[:1]  # 0 stands alone before the point
            if any(following):
                yield 0x30 + digit, 0x30 + digit, ("whole", following, self._rest(rest * 10 + digit * self._unit))

    def _after_the_point(self, left: int, span: Span, rest: int) -> Iterator[Tuple[int, int, Hashable]]:
        unit = 10 ** (left - 1) if left else 0
        for digit in range(10 if left else 0):
            following = self._cut(span, digit, unit)
            if following:
                over = (rest + digit * unit) % self._step if self._step else 0
                yield 0x30 + digit, 0x30 + digit, ("fraction", left - 1, following, over)

    def _cut(self, span: Span, digit: int, unit: int) -> Span:
        """Return what is left of a span after a digit that is worth `unit`."""
        if span is None:
            return None
        low, high = max(span[0] - digit * unit, 0), min(span[1] - digit * unit, unit - 1)
        return (low, high) if low <= high else None

    def _rest(self, value: int) -> int:
        """Return the rest of dividing by the step, or a smaller one after which the same digits can follow."""
        rest = value % self._step if self._step else 0
        return rest and (rest % self._cycle or self._cycle)


def _number_rule(grammar: Grammar, name: str, bounds: _Bounds, places: int) -> Optional[str]:
    """Add the rules for numbers with at most `places` decimals; None where there are no such numbers.

    Raises _TooLarge.
    """
    unit = 10**places
    step = bounds.step * unit
    low = None if bounds.low is None else math.ceil(bounds.low * unit)
    high = None if bounds.high is None else math.floor(bounds.high * unit)
    parts = []
    for sign, first, last in (("", low, high), ('"-" ', _negated(high), _negated(low))):
        first = max(first if first is not None else 0, 1 if sign else 0)
        cap = (10 ** max(_DIGITS, len(str(first // unit)) + 1)) * unit - 1
        last = cap if last is None or last >= 10**_MAX_DIGITS * unit else last
        if first <= last:
            machine = _Digits(first, last, int(step), places).machine()
            grammar.spend(len(machine.rows))
            if not machine.empty:
                parts.append(sign + grammar.machine(name, machine, False))
    return " | ".join(parts) or None


def _negated(value: Optional[int]) -> Optional[int]:
    return None if value is None else -value


# ---------------------------------------------------------------------------- the converter: what it reads


class _Node(NamedTuple):
    """A schema within the whole one, and its place there as a JSON pointer."""

    schema: Any
    where: str

    def at(self, *path: Any) -> "_Node":
        """Return the node below this one."""
        schema, where = self.schema, self.where
        for key in path:
            schema = schema[key]
            where += "/" + str(key).replace("~", "~0").replace("/", "~1")
        return _Node(schema, where)


class _Flat(NamedTuple):
    """A conjunction: a value must satisfy the keywords of all nodes, and none of the rivals as a whole.

    References, allOf, anyOf and oneOf have been resolved; a value that may be one of several has several of these.
    """

    nodes: Tuple[_Node, ...]
    rivals: Tuple[_Node, ...] = ()

    def key(self) -> Hashable:
        """Return what tells two conjunctions of one schema apart."""
        return (tuple(node.where for node in self.nodes), frozenset(node.where for node in self.rivals))

    def all(self, keyword: str) -> List[Any]:
        """Return a keyword's values in all nodes that have it."""
        return [node.schema[keyword] for node in self.nodes if keyword in node.schema]

    def both(self, other: "_Flat", rivals: Iterable[_Node]) -> "_Flat":
        """Return the conjunction of this, another one and further rivals."""
        nodes = self.nodes + tuple(node for node in other.nodes if node not in self.nodes)
        return _Flat(nodes, self.rivals + other.rivals + tuple(rivals))


Need = List[List[str]]  # the rules that a value can't do without: for each alternative of its rule
_KINDS = ("object", "array", "string", "integer", "number", "boolean", "null")
_SPEAKS_OF = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames",
               "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
_REFUSED = (
    "if", "contains", "dependentSchemas", "dependentRequired", "dependencies",
    "propertyDependencies", "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy",
)  # fmt: skip
_OWN = sum(_SPEAKS_OF.values(), ("type", "enum", "const", "additionalItems", "unevaluatedProperties"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_types(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _KINDS for name in names)


_SHAPES: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "type": (_are_types, "one of %s, or an array of them" % ", ".join(_KINDS)),
    "enum": (lambda value: isinstance(value, list) and bool(value), "an array with at least one value"),
    "$ref": (lambda value: isinstance(value, str), "a string"),
    "pattern": (lambda value: isinstance(value, str), "a string"),
    "format": (lambda value: isinstance(value, str), "a string"),
    "required": (_are_names, "an array of strings"),
    "properties": (_is_map, "an object of schemas"),
    "patternProperties": (_is_map, "an object of schemas"),
    "items": (lambda value: _is_schema(value) or value == [] or _are_schemas(value), "a schema or an array of them"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "nullable": (lambda value: isinstance(value, bool), "true or false"),
    "unevaluatedItems": (lambda value: value is True, "true; anything else is not supported"),
    "unevaluatedProperties": (lambda value: isinstance(value, bool), "true or false; schemas are not supported"),
}
_SHAPES.update({each: (_are_schemas, "an array of schemas") for each in ("allOf", "anyOf", "oneOf", "prefixItems")})
_SHAPES.update(
    {each: (_is_schema, "a schema") for each in ("not", "additionalProperties", "additionalItems", "propertyNames")}
)
_SHAPES.update(
    {
        each: (_is_count, "a whole number, not negative")
        for each in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
    }
)
_SHAPES.update({each: (_is_number, "a number") for each in ("minimum", "maximum")})
_SHAPES.update(
    {
        each: (lambda value: _is_number(value) or isinstance(value, bool), "a number (or true or false, as in draft 4)")
        for each in ("exclusiveMinimum", "exclusiveMaximum")
    }
)


def _kind(value: Any) -> str:
    """Return a JSON value's type; a number without decimals is an integer, as JSON Schema counts it."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    kinds = ((bool, "boolean"), (int, "integer"), (str, "string"), (list, "array"), (dict, "object"))
    return next(kind for type_, kind in kinds if isinstance(value, type_))


def _plain(value: Any) -> Hashable:
    """Return something that is equal for two JSON values just where JSON Schema takes them for equal."""
    if isinstance(value, dict):
        return frozenset((key, _plain(each)) for key, each in value.items())
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return ("boolean", value) if isinstance(value, bool) else value


def _exact(value: Any) -> Fraction:
    """Return a number as it was written."""
    return Fraction(Decimal(repr(value)) if isinstance(value, float) else value)


class _Reader:
    """A whole schema: finds its parts, refuses what is wrong or not supported, and validates values."""

    def __init__(self, grammar: Grammar, root: Any):
        self._grammar = grammar
        self._root = root
        self._patterns: Set[str] = set()  # that have been counted
        self._enumerations: Dict[int, Tuple[Set[Hashable], List[Any]]] = {}  # by the list's identity, which it keeps
        self._check_size()

    # ---- errors

    def refuse(self, node: _Node, keyword: str, what: str) -> APIError:
        """Return the error that names a keyword and its place."""
        place = node.where + ("/" + keyword.replace("~", "~0").replace("/", "~1") if keyword else "")
        return self._grammar.refuse("The schema can't be honoured: at %s, %s." % (place, what))

    def check(self, node: _Node) -> None:
        """Refuse a node with a keyword that is malformed or not supported."""
        for keyword, value in node.schema.items():
            if keyword in _REFUSED:
                raise self.refuse(node, keyword, "'%s' is not supported" % keyword)
            if keyword in _SHAPES and not _SHAPES[keyword][0](value):
                raise self.refuse(node, keyword, "'%s' must be %s" % (keyword, _SHAPES[keyword][1]))

    def _check_size(self) -> None:
        """Refuse what would exhaust Python's stack or patience, before anything walks through it recursively."""
        level, count, depth = [self._root], 0, 0
        while level:
            count += len(level)
            depth += 1
            if depth > _MAX_DEPTH or count > _MAX_NODES:
                limit = "more than %d levels deep" % _MAX_DEPTH if depth > _MAX_DEPTH else "too large"
                raise self._grammar.refuse("The schema can't be honoured: it is %s." % limit)
            inner = (each.values() if isinstance(each, dict) else each for each in level)
            level = [
                value for values in inner if not isinstance(values, (str, int, float, type(None))) for value in values
            ]
        if not _is_schema(self._root):
            raise self._grammar.refuse("The schema must be an object, or true.")

    # ---- references

    def target(self, node: _Node) -> _Node:
        """Return what a node's $ref points to. Raises APIError 400."""
        reference = node.schema["$ref"]
        base, _, fragment = reference.partition("#")
        known = self._root.get("$id") if isinstance(self._root, dict) else None
        if (base and base != known) or (fragment and not fragment.startswith("/")):
            raise self.refuse(node, "$ref", "only references within the schema, like #/$defs/name, are supported")
        found = _Node(self._root, "#")
        for key in unquote(fragment).split("/")[1:]:
            found = self._step(node, found, key.replace("~1", "/").replace("~0", "~"))
        if not _is_schema(found.schema):
            raise self.refuse(node, "$ref", "'%s' is not a schema" % reference[:200])
        return found

    def _step(self, node: _Node, found: _Node, key: str) -> _Node:
        try:
            return found.at(int(key) if isinstance(found.schema, list) and key.isdigit() else key)
        except (KeyError, IndexError, ValueError, TypeError):
            raise self.refuse(node, "$ref", "'%s' points to nothing" % node.schema["$ref"][:200])

    # ---- patterns

    def pattern(self, node: _Node, keyword: str, text: str) -> _Machine:
        """Return a pattern's machine. Raises APIError 400."""
        try:
            machine = _pattern(text)
        except _BadPattern as error:
            raise self.refuse(node, keyword, "the pattern is not supported: " + str(error))
        except _TooLarge:
            raise self.refuse(node, keyword, "the pattern takes too many states; make its repetitions shorter")
        if text not in self._patterns:
            self._patterns.add(text)
            self._grammar.spend(len(machine.rows))
        return machine

    # ---- validating

    def holds(self, value: Any, node: _Node, level: int = 0) -> bool:
        """Tell whether a value is valid. `format` is not looked at: it is an annotation by the standard."""
        if isinstance(node.schema, bool):
            return node.schema
        if level > _MAX_REFERENCES + _MAX_DEPTH:
            raise self.refuse(node, "", "it refers to itself with nothing in between")
        self.check(node)
        if node.schema.get("nullable") is True and value is None:
            return True
        valid = lambda some, below: self.holds(some, below, level + 1)  # noqa: E731
        checks = (_Reader._holds_any, _Reader._holds_logic, _CHECKS_OF[_kind(value)])
        return all(check(self, value, node, valid) for check in checks)

    def _holds_any(self, value: Any, node: _Node, valid: Callable[[Any, _Node], bool]) -> bool:
        schema = node.schema
        if "type" in schema:
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if _kind(value) not in types and not (_kind(value) == "integer" and "number" in types):
                return False
        if "const" in schema and _plain(schema["const"]) != _plain(value):
            return False
        return "enum" not in schema or _plain(value) in self._enumerated(schema["enum"])

    def _enumerated(self, values: List[Any]) -> Set[Hashable]:
        if id(values) not in self._enumerations:
            self._enumerations[id(values)] = (set(map(_plain, values)), values)
        return self._enumerations[id(values)][0]

    def _holds_logic(self, value: Any, node: _Node, valid: Callable[[Any, _Node], bool]) -> bool:
        schema = node.schema
        if "$ref" in schema and not valid(value, self.target(node)):
            return False
        counts = {
            keyword: sum(valid(value, node.at(keyword, index)) for index in range(len(schema[keyword])))
            for keyword in ("allOf", "anyOf", "oneOf")
            if keyword in schema
        }
        if counts.get("allOf", 0) < len(schema.get("allOf", ())) or counts.get("anyOf", 1) < 1:
            return False
        return counts.get("oneOf", 1) == 1 and not ("not" in schema and valid(value, node.at("not")))

    def _holds_string(self, value: str, node: _Node, valid: Callable[[Any, _Node], bool]) -> bool:
        schema = node.schema
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return False
        return "pattern" not in schema or self.pattern(node, "pattern", schema["pattern"]).accepts(value)

    def _holds_number(self, value: Any, node: _Node, valid: Callable[[Any, _Node], bool]) -> bool:
        low, high, above, below = _limits([node])
        number = _exact(value)
        if (low is not None and number < low) or (high is not None and number > high):
            return False
        if (above and number == low) or (below and number == high):
            return False
        return "multipleOf" not in node.schema or (number / _exact(node.schema["multipleOf"])).denominator == 1

    def _holds_array(self, value: List[Any], node: _Node, valid: Callable[[Any, _Node], bool]) -> bool:
        schema = node.schema
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        if schema.get("uniqueItems") and len(set(map(_plain, value))) < len(value):
            return False
        return all(valid(each, rule) for index, each in enumerate(value) for rule in _item(node, index))

    def _holds_object(self, value: Dict[str, Any], node: _Node, valid: Callable[[Any, _Node], bool]) -> bool:
        schema = node.schema
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        if not set(schema.get("required", ())) <= set(value):
            return False
        if "propertyNames" in schema and not all(valid(name, node.at("propertyNames")) for name in value):
            return False
        return all(valid(value[name], rule) for name in value for rule in self.member(node, name))

    # ---- what a node says about an object's members

    def member(self, node: _Node, name: str) -> List[_Node]:
        """Return what a node says about the value under a name."""
        found = [node.at("properties", name)] if name in node.schema.get("properties", ()) else []
        for text in node.schema.get("patternProperties", ()):
            if self.pattern(node.at("patternProperties"), text, text).accepts(name):
                found.append(node.at("patternProperties", text))
        if not found and "additionalProperties" in node.schema:
            found.append(node.at("additionalProperties"))
        return found


_CHECKS_OF: Dict[str, Callable[..., bool]] = {
    "string": _Reader._holds_string,
    "array": _Reader._holds_array,
    "object": _Reader._holds_object,
    "integer": _Reader._holds_number,
    "number": _Reader._holds_number,
    "boolean": lambda *_: True,
    "null": lambda *_: True,
}


def _prefix(node: _Node) -> Tuple[str, int]:
    """Return the keyword that lists an array's first items one by one, and how many it lists."""
    keyword = "items" if isinstance(node.schema.get("items"), list) else "prefixItems"
    return keyword, len(node.schema.get(keyword, ()))


def _item(node: _Node, index: int) -> List[_Node]:
    """Return what a node says about an array's item."""
    keyword, count = _prefix(node)
    if index < count:
        return [node.at(keyword, index)]
    others = "additionalItems" if keyword == "items" else "items"
    return [node.at(others)] if others in node.schema else []


def _limits(nodes: Iterable[_Node]) -> Tuple[Optional[Fraction], Optional[Fraction], bool, bool]:
    """Return the lowest and the highest number that nodes allow, and whether these themselves are left out."""
    lows: List[Tuple[Fraction, bool]] = []
    highs: List[Tuple[Fraction, bool]] = []
    for node in nodes:
        for limits, keyword, excluding in (
            (lows, "minimum", "exclusiveMinimum"),
            (highs, "maximum", "exclusiveMaximum"),
        ):
            exclusive = node.schema.get(excluding, False)
            if keyword in node.schema:
                limits.append((_exact(node.schema[keyword]), exclusive is True))
            if not isinstance(exclusive, bool):
                limits.append((_exact(exclusive), True))
    low = max(lows) if lows else (None, False)
    high = min(highs, key=lambda limit: (limit[0], not limit[1])) if highs else (None, False)
    return low[0], high[0], low[1], high[1]


# --------------------------------------------------------------------- the converter: what a value may be


class _Converter(_Reader):
    """Adds the rules for one schema to a grammar.

    Rules are named at once and written later, from a queue: however long a chain of references is, nothing recurses.
    """

    def __init__(self, grammar: Grammar, root: Any, name: str):
        super().__init__(grammar, root)
        self._name = name
        self._rules: Dict[Hashable, str] = {}
        self._pending: Deque[Tuple[str, List[_Flat]]] = deque()
        self._needs: Dict[str, Need] = {}
        self._places: Dict[str, _Node] = {}
        self._expanded: Dict[Hashable, List[_Flat]] = {}
        self._valid: Dict[Hashable, Optional[List[Any]]] = {}

    def convert(self) -> str:
        """Add the rules and return the first one's name. Raises APIError 400."""
        root = _Node(self._root, "#")
        flats = self._expand([root])
        if not flats:
            raise self.refuse(root, "", "no value can be valid")
        first = self._rule(flats)
        while self._pending:
            name, flats = self._pending.popleft()
            try:
                body, self._needs[name] = self._body(name, flats)
            except _TooLarge:
                raise self.refuse(self._places[name], "", "pattern, format, lengths or bounds take too many states")
            self._grammar.define(name, body)
        self._check_finite()
        return first

    def _check_finite(self) -> None:
        """Refuse a rule without finite values: one that needs itself, at once or through others."""
        finite: Set[str] = set()
        waiting = list(self._needs)
        while waiting:
            for name in reversed(waiting):  # what was written later is mostly what was needed earlier
                if any(finite.issuperset(needs) for needs in self._needs[name]):
                    finite.add(name)
            rest = [name for name in waiting if name not in finite]
            if len(rest) == len(waiting):
                raise self.refuse(
                    self._places[rest[0]], "", "a value that is valid would never end: it requires itself"
                )
            waiting = rest

    def _rule(self, flats: List[_Flat]) -> str:
        """Return the name of the rule for a value that is one of `flats`, to be written later."""
        key = tuple(flat.key() for flat in flats)
        if key not in self._rules:
            place = next((node for flat in flats for node in flat.nodes), _Node(True, "#"))
            if not any(flat.nodes or flat.rivals for flat in flats):
                name = self._grammar.basic("json-value")
                self._needs[name] = [[]]
            else:
                words = [word for word in place.where.split("/")[1:] if not word.isdigit()]
                name = self._grammar.reserve(words[-1] if words else self._name)
                self._pending.append((name, flats))
            self._rules[key] = name
            self._places[name] = place
        return self._rules[key]

    # ---- conjunctions

    def _expand(self, nodes: Sequence[_Node]) -> List[_Flat]:
        """Return what a value that satisfies all of `nodes` may be: conjunctions, none of them plainly impossible."""
        key = tuple(node.where for node in nodes)
        if key not in self._expanded:
            unique = {flat.key(): flat for flat in self._unfold([(node, frozenset()) for node in nodes])}
            self._expanded[key] = [flat for flat in unique.values() if self._possible(flat)]
        return self._expanded[key]

    def _unfold(self, nodes: Iterable[Tuple[_Node, FrozenSet[str]]]) -> List[_Flat]:
        """Resolve references and the keywords of logic. With each node comes the path that led to it."""
        base: Dict[str, _Node] = {}
        rivals: List[_Node] = []
        unions: List[Tuple[List[_Node], bool, FrozenSet[str]]] = []
        todo = deque(nodes)
        while todo:
            node, path = todo.popleft()
            if node.schema is False:
                return []
            if node.schema is True:
                continue
            self._check_path(node, path)
            path = path | {node.where}
            node = self._without_null(node, path, unions)
            if node is not None:
                todo.extendleft((each, path) for each in reversed(self._conjuncts(node)))
                unions += [
                    (self._children(node, each), each == "oneOf", path)
                    for each in ("anyOf", "oneOf")
                    if each in node.schema
                ]
                rivals += [node.at("not")] if "not" in node.schema else []
                own = {keyword: value for keyword, value in node.schema.items() if keyword in _OWN}
                if own:
                    base.setdefault(node.where, _Node(own, node.where))
        return self._multiply(_Flat(tuple(base.values()), tuple(rivals)), unions)

    def _check_path(self, node: _Node, path: FrozenSet[str]) -> None:
        self.check(node)
        if node.where in path or len(path) > _MAX_REFERENCES:
            raise self.refuse(node, "", "it refers to itself, or on and on, with nothing in between")

    def _without_null(self, node: _Node, path: FrozenSet[str], unions: List[Any]) -> Optional[_Node]:
        """Read OpenAPI's nullable as a union with null; the node itself is then a branch of it."""
        if node.schema.get("nullable") is not True:
            return node
        rest = {keyword: value for keyword, value in node.schema.items() if keyword != "nullable"}
        null = _Node({"type": "null"}, node.where + "/nullable")
        unions.append(([_Node(rest, node.where), null], False, path - {node.where}))
        return None

    def _conjuncts(self, node: _Node) -> List[_Node]:
        targets = [self.target(node)] if "$ref" in node.schema else []
        return targets + self._children(node, "allOf")

    @staticmethod
    def _children(node: _Node, keyword: str) -> List[_Node]:
        return [node.at(keyword, index) for index in range(len(node.schema.get(keyword, ())))]

    def _multiply(self, base: _Flat, unions: Sequence[Tuple[List[_Node], bool, FrozenSet[str]]]) -> List[_Flat]:
        """Return one conjunction for each choice of branches; for oneOf, the other branches become rivals."""
        flats = [base]
        for children, exclusive, path in unions:
            branches = []
            for child in children:
                rivals = [other for other in children if exclusive and other is not child]
                branches += [(flat, rivals) for flat in self._unfold([(child, path)])]
            flats = [flat.both(branch, rivals) for flat in flats for branch, rivals in branches]
            flats = [flat for flat in flats if self._possible(flat)]
            if len(flats) > _MAX_BRANCHES:
                raise self._grammar.refuse(
                    "The schema can't be honoured: its unions have more than %d branches." % _MAX_BRANCHES
                )
        return flats

    def _possible(self, flat: _Flat) -> bool:
        return bool(self._kinds(flat)) and self._values(flat) != []

    @staticmethod
    def _kinds(flat: _Flat) -> List[str]:
        """Return the types that the keyword `type` leaves; `number` means any, integers included."""
        kinds = set(_KINDS)
        for types in flat.all("type"):
            names = set(types if isinstance(types, list) else [types])
            kinds &= names | ({"integer"} if "number" in names else set())
        if "number" in kinds:
            kinds.discard("integer")
        return [kind for kind in _KINDS if kind in kinds]

    def _values(self, flat: _Flat) -> Optional[List[Any]]:
        """Return the values of an enumeration that are valid; None for anything else."""
        if not any("enum" in node.schema or "const" in node.schema for node in flat.nodes):
            return None
        key = flat.key()
        if key not in self._valid:
            lists = flat.all("enum") + [[value] for value in flat.all("const")]
            unique = {_plain(value): value for value in min(lists, key=len)}
            self._valid[key] = [value for value in unique.values() if self._fits(value, flat)]
        return self._valid[key]

    def _fits(self, value: Any, flat: _Flat) -> bool:
        if not all(self.holds(value, node) for node in flat.nodes):
            return False
        return not any(self.holds(value, rival) for rival in flat.rivals)

    # ---- bodies

    def _body(self, name: str, flats: List[_Flat]) -> Tuple[str, Need]:
        """Return a rule's body, and what it needs. Raises APIError 400, _TooLarge."""
        if len(flats) > 1:
            rules = list(dict.fromkeys(self._rule([flat]) for flat in flats))
            return " | ".join(rules), [[rule] for rule in rules]
        values = self._values(flats[0])
        if values is not None:
            return self._enumeration(name, values), [[]]
        writers = {
            "object": self._object, "array": self._array, "string": self._string, "integer": self._number,
            "number": self._number, "boolean": self._constant, "null": self._constant,
        }  # fmt: skip
        found = [writers[kind](name, flats[0], kind) for kind in self._written_kinds(flats[0])]
        possible = [pair for pair in found if pair]
        if not possible:
            raise self._impossible(flats[0], self._places[name])
        return " | ".join(body for body, _ in possible), [needs for _, needs in possible]

    def _impossible(self, flat: _Flat, place: _Node) -> APIError:
        if not flat.rivals:
            return self.refuse(place, "", "no value can be valid")
        rival = flat.rivals[0]
        if rival.where.endswith("/not"):
            return self.refuse(rival, "", "nothing but what 'not' forbids would be left, or it can't be told apart")
        return self.refuse(rival, "", "this branch of 'oneOf' can't be told apart from another one; use 'anyOf'")

    def _written_kinds(self, flat: _Flat) -> List[str]:
        """Return the types to write: those that are allowed, or where none are named, those that keywords speak of."""
        kinds = self._kinds(flat)
        spoken = [kind for kind in _SPEAKS_OF if any(flat.all(keyword) for keyword in _SPEAKS_OF[kind])]
        return kinds if flat.all("type") or not spoken else [kind for kind in kinds if kind in spoken]

    def _enumeration(self, name: str, values: List[Any]) -> str:
        texts = [_dumps(value) for value in values]
        if len(texts) <= 16:
            return " | ".join(map(literal, texts))
        machine = _words(texts)  # one path through many words is faster than many words side by side
        self._grammar.spend(len(machine.rows))
        return self._grammar.machine(name + "-text", machine, False)

    def _constant(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        values = [value for value in ((True, False) if kind == "boolean" else (None,)) if self._fits(value, flat)]
        return (" | ".join(literal(_dumps(value)) for value in values), []) if values else None

    # ---- strings

    def _string(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        low, high = _counts(flat, "minLength", "maxLength")
        if high is not None and low > high:
            return None
        machine = self._texts(flat)
        for rival in self._rivals(flat, "string"):
            machine = _without(machine, self._texts_at_most(rival))
        if machine is None:
            if (low, high) == (0, None):
                return self._grammar.basic("json-string"), []
            char = self._grammar.basic("json-char")
            body = '"\\"" %s "\\""' % self._grammar.repeat(char, low, high)
            return self._grammar.rule("string-%d-%s" % (low, "" if high is None else high), body), []
        if (low, high) != (0, None):
            machine = _within(machine, low, high)
        self._grammar.spend(len(machine.rows))
        return None if machine.empty else (self._grammar.machine(name + "-text", machine, True), [])

    def _texts(self, flat: _Flat, formats: bool = True) -> Optional[_Machine]:
        """Return the machine for the texts that patterns and formats allow; None for all."""
        machines = [
            self.pattern(node, "pattern", node.schema["pattern"]) for node in flat.nodes if "pattern" in node.schema
        ]
        known = [each for each in flat.all("format") if each in _FORMATS and formats]
        machines += [_pattern("^(%s)$" % _FORMATS[each]) for each in known]
        return functools.reduce(lambda one, other: _product(one, other, True), machines) if machines else None

    def _texts_at_most(self, flat: _Flat) -> _Machine:
        """Return a machine for all texts that are valid, and perhaps some more."""
        values = self._values(flat)
        if values is not None:
            return _words(value for value in values if isinstance(value, str))
        machine = self._texts(flat, False) or _ANY_TEXT
        low, high = _counts(flat, "minLength", "maxLength")
        return _within(machine, low, high) if (low, high) != (0, None) else machine

    # ---- numbers

    def _number(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        if not all(self._apart(flat, rival, "number", 0) for rival in self._rivals(flat, "number")):
            return None
        low, high, above, below = _limits(flat.nodes)
        steps = [_exact(step) for step in flat.all("multipleOf")] + ([Fraction(1)] if kind == "integer" else [])
        if low is None and high is None and steps in ([], [1]):
            return self._grammar.basic("json-" + ("integer" if steps else "number")), []
        step = functools.reduce(_common_multiple, steps) if steps else Fraction(0)
        places = self._decimals(name, [limit for limit in (low, high) if limit is not None], step, above or below)
        unit = 10**places
        if above:
            low = Fraction(math.floor(low * unit) + 1, unit)
        if below:
            high = Fraction(math.ceil(high * unit) - 1, unit)
        body = _number_rule(self._grammar, name + "-digits", _Bounds(low, high, step), places)
        return (body, []) if body else None

    def _decimals(self, name: str, limits: List[Fraction], step: Fraction, exclusive: bool) -> int:
        """Return how many digits after the point to write."""
        whole = max([len(str(int(abs(limit)))) for limit in limits] + [1])
        if step and _places(step) is not None:
            return _places(step)
        if whole > _MAX_DIGITS and all(abs(limit) >= 10**_MAX_DIGITS for limit in limits):
            return 0
        needed = max([_places(limit) for limit in limits] + [0])
        if exclusive and whole + needed > _DIGITS:
            # Numbers beyond 15 digits may be read as the bound itself, which is left out.
            raise self.refuse(self._places[name], "", "an exclusive bound has more than %d digits" % _DIGITS)
        return max(needed, _DIGITS - whole, 0)

    # ---- arrays

    def _array(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        if not all(self._apart(flat, rival, "array", 0) for rival in self._rivals(flat, "array")):
            return None
        low, high = _counts(flat, "minItems", "maxItems")
        first, rest, high = self._items(flat, low, high)
        if high is not None and low > high:
            return None
        if any(flat.all("uniqueItems")) and high not in (0, 1):
            return self._unique(name, flat, first, rest, low, high)
        rules = [self._rule(flats) for flats in first]
        further = self._rule(rest) if rest else None
        needs = rules + ([further] if further and low > len(rules) else [])
        return self._sequence(name, rules, further, low, high), needs

    def _items(
        self, flat: _Flat, low: int, high: Optional[int]
    ) -> Tuple[List[List[_Flat]], List[_Flat], Optional[int]]:
        """Return what an array's first items may be, one by one, what all others may be, and how many there may be."""
        count = max(_prefix(node)[1] for node in flat.nodes) if flat.nodes else 0
        first: List[List[_Flat]] = []
        while len(first) < count and len(first) != high:
            flats = self._expand([each for node in flat.nodes for each in _item(node, len(first))])
            if not flats:
                return first, [], len(first)
            first.append(flats)
        others = [each for node in flat.nodes for each in _item(node, count)]
        if len(first) == high or (count and not others and low <= count):
            return first, [], len(first)
        rest = self._expand(others)
        return first, rest, high if rest else len(first)

    def _sequence(self, name: str, first: List[str], rest: Optional[str], low: int, high: Optional[int]) -> str:
        """Return the body for an array: all of `first`, and as many of `rest` as bring it within the bounds."""
        space = self._grammar.basic("json-space")
        comma = ' "," %s ' % space
        start = '"[" %s ' % space
        if rest is None or high == 0:
            return start + comma.join(first) + (" " + space + ' "]"' if first else ' "]"')
        further = self._grammar.rule(name + "-further", comma.strip() + " " + rest)
        left = max(low - max(len(first), 1), 0), None if high is None else high - max(len(first), 1)
        body = "%s %s %s" % (comma.join(first or [rest]), self._grammar.repeat(further, *left), space)
        return start + (body if first or low else "(%s)?" % body) + ' "]"'

    def _unique(
        self, name: str, flat: _Flat, first: List[List[_Flat]], rest: List[_Flat], low: int, high: Optional[int]
    ) -> Optional[Tuple[str, List[str]]]:
        """Return the body for different items: some of an enumeration, in its order."""
        lists = [values for values in map(self._finite, rest) if values is not None]
        if first or len(lists) < len(rest):
            place = next(node for node in flat.nodes if node.schema.get("uniqueItems"))
            raise self.refuse(place, "uniqueItems", "'uniqueItems' is supported for enumerated items only")
        unique = {_plain(value): value for values in lists for value in values}
        pairs = [(literal(_dumps(value)), False) for value in unique.values()]
        inner = self._some_of(name, pairs, None, low, high)
        return None if inner is None else ('"[" %s %s "]"' % (self._grammar.basic("json-space"), inner), [])

    def _finite(self, flat: _Flat) -> Optional[List[Any]]:
        """Return all values where there are but few; None otherwise."""
        kinds = self._kinds(flat)
        if self._values(flat) is None and set(kinds) <= {"boolean", "null"}:
            return [value for value in (False, True, None) if _kind(value) in kinds and self._fits(value, flat)]
        return self._values(flat)

    # ---- objects

    def _object(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        forbidden = self._forbidden(flat)
        if forbidden is None:
            return None
        names = list(
            dict.fromkeys(key for keyword in ("properties", "required") for each in flat.all(keyword) for key in each)
        )
        required = {key for keys in flat.all("required") for key in keys}
        members: List[Tuple[str, str, bool]] = []
        for key in names:
            flats = [] if key in forbidden else self._member_flats(flat, key)
            if flats:
                members.append((key, self._rule(flats), key in required))
            elif key in required:
                return None
        extra = self._extra(name, flat, set(names) | forbidden)
        low, high = _counts(flat, "minProperties", "maxProperties")
        if not members and extra == "json-member" and (low, high) == (0, None):
            return self._grammar.basic("json-object"), []
        colon = self._grammar.basic("json-colon")
        pairs = [("%s %s %s" % (literal(_dumps(key)), colon, rule), needed) for key, rule, needed in members]
        if extra and low > len(pairs) + 1 and (high is None or high >= low):
            raise self.refuse(
                self._places[name], "minProperties", "more than one member without a name can't be required"
            )
        needs = [rule for _, rule, needed in members if needed]
        if low > len(needs):  # one of the others, at least
            needs.append(
                self._need_one(name, [rule for _, rule, needed in members if not needed] + ([extra] if extra else []))
            )
        inner = self._some_of(name, pairs, extra, low, high)
        return None if inner is None else ('"{" %s %s "}"' % (self._grammar.basic("json-space"), inner), needs)

    def _need_one(self, name: str, rules: List[str]) -> str:
        """Return what stands for needing one of some rules: no rule's name has a blank in it."""
        need = name + " one of " + " ".join(rules)
        self._needs[need] = [[rule] for rule in rules]
        self._places[need] = self._places[name]
        return need

    def _member_flats(self, flat: _Flat, key: str) -> List[_Flat]:
        for node in flat.nodes:
            if "propertyNames" in node.schema and not self.holds(key, node.at("propertyNames")):
                return []
        return self._expand([each for node in flat.nodes for each in self.member(node, key)])

    def _extra(self, name: str, flat: _Flat, excluded: Set[str]) -> Optional[str]:
        """Return the rule for a member that is not declared; None where there may be none."""
        patterns = [
            (self.pattern(node.at("patternProperties"), text, text), node, text)
            for node in flat.nodes
            for text in node.schema.get("patternProperties", ())
        ]
        rules = []
        for index, (machine, owner, text) in enumerate(patterns):
            others = [each for number, (each, _, _) in enumerate(patterns) if number != index]
            below = [node.at("additionalProperties") for node in flat.nodes
                     if node is not owner and "additionalProperties" in node.schema]  # fmt: skip
            nodes = [owner.at("patternProperties", text)] + below
            rules.append(self._extra_rule(name, flat, machine, others, excluded, nodes))
        if self._is_open(flat):
            nodes = [node.at("additionalProperties") for node in flat.nodes if "additionalProperties" in node.schema]
            rules.append(self._extra_rule(name, flat, None, [each for each, _, _ in patterns], excluded, nodes))
        found = [rule for rule in rules if rule]
        if len(found) < 2:
            return found[0] if found else None
        extra = self._grammar.rule(name + "-extra", " | ".join(found))
        self._needs[extra] = [[rule] for rule in found]
        self._places[extra] = self._places[name]
        return extra

    @staticmethod
    def _is_open(flat: _Flat) -> bool:
        """Tell whether there may be members that nothing declares: see the policy at the top of this file."""
        if flat.all("additionalProperties"):
            return all(each is not False for each in flat.all("additionalProperties"))
        closed = flat.all("patternProperties") or False in flat.all("unevaluatedProperties")
        return not closed and not any(flat.all("properties"))

    def _extra_rule(
        self, name: str, flat: _Flat, machine: Optional[_Machine], others: List[_Machine], excluded: Set[str],
        nodes: List[_Node],
    ) -> Optional[str]:  # fmt: skip
        """Return the rule for members named as `machine` (None: any) says, and not as `others` or `excluded` do."""
        flats = self._expand(nodes)
        if not flats:
            return None
        for each in flat.nodes:
            if "propertyNames" in each.schema:
                machine = self._names(machine or _ANY_TEXT, each.at("propertyNames"))
        for other in others:
            machine = _without(machine, other)
        if excluded:
            machine = _product(machine or _ANY_TEXT, _words(sorted(excluded)), False)
        if machine is None:
            key = self._grammar.basic("json-string")
        elif machine.empty:
            return None
        else:
            self._grammar.spend(len(machine.rows))
            key = self._grammar.machine(name + "-key", machine, True)
        value = self._rule(flats)
        if (key, value) == ("json-string", "json-value"):
            member = self._grammar.basic("json-member")
        else:
            body = "%s %s %s" % (key, self._grammar.basic("json-colon"), value)
            member = self._grammar.rule(name + "-member", body)
        self._needs[member] = [[value]]
        self._places[member] = self._places[name]
        return member

    def _names(self, machine: _Machine, node: _Node) -> _Machine:
        """Return the machine for those names that are valid. Raises APIError 400, _TooLarge."""
        flats = [flat for flat in self._expand([node]) if "string" in self._kinds(flat)]
        if len(flats) > 1 or any(flat.rivals for flat in flats):
            raise self.refuse(node, "", "'propertyNames' with several alternatives is not supported")
        valid = self._texts_at_most(flats[0]) if flats else _words([])
        for each in flats[0].all("format") if flats else []:
            valid = _product(valid, _pattern("^(%s)$" % _FORMATS[each]), True) if each in _FORMATS else valid
        return _product(machine, valid, True)

    def _some_of(
        self, name: str, pairs: List[Tuple[str, bool]], extra: Optional[str], low: int, high: Optional[int]
    ) -> Optional[str]:
        """Return the body for members (or items) in their order, each needed or not, then extra ones; None for nothing.

        The rules are as many as the members, times the count where that matters: `chosen[count]` holds what begins
        with one of the members from an index on when `count` have come before, or None where nothing would be valid.
        """
        space = self._grammar.basic("json-space")
        most = len(pairs) + low if high is None else high
        cap = min(len(pairs), most) if low or high is not None else 0
        needed = 0
        chosen = [self._extras(name, extra, count if cap else None, low, high) for count in range(cap + 1)]
        for index in range(len(pairs) - 1, -1, -1):
            text, must = pairs[index]
            shared = index > 0 and (not pairs[index - 1][1] or cap > 0)
            here: List[Optional[str]] = []
            for count in range(cap + 1):
                after = min(count + 1, cap)
                tail = self._tail(
                    chosen[after], not needed and (cap == 0 or count + 1 >= low), cap == 0 or count < most
                )
                ways = [text + tail] if tail is not None else []
                ways += [way for way in [chosen[count]] if way is not None and not must]
                body = " | ".join(ways)
                simple = len(ways) < 2 and not shared
                here.append((body if simple else self._grammar.rule(name + "-some", body)) if ways else None)
            chosen = here
            needed += must
        start = chosen[0] if high != 0 else None
        if not needed and low == 0:
            return "" if start is None else "(%s %s)?" % (start, space)
        return None if start is None else "%s %s" % (start, space)

    def _tail(self, following: Optional[str], may_end: bool, fits: bool) -> Optional[str]:
        """Return what follows a member; None where it can't stand there."""
        if not fits:
            return None
        comma = '"," ' + self._grammar.basic("json-space")
        if following is None:
            return "" if may_end else None
        return (" (%s %s)?" if may_end else " %s %s") % (comma, following)

    def _extras(
        self, name: str, extra: Optional[str], count: Optional[int], low: int, high: Optional[int]
    ) -> Optional[str]:
        """Return the body for one or more extra members after `count` others (None: it makes no difference).

        Of extra members only one is sure to have a name of its own, so no more are relied on to reach the least.
        """
        if extra is None:
            return None
        before = count or 0
        if before + 1 < low or (high is not None and before >= high):
            return None
        further = self._grammar.rule(name + "-further", '"," %s %s' % (self._grammar.basic("json-space"), extra))
        return "%s %s" % (extra, self._grammar.repeat(further, 0, None if high is None else high - before - 1))

    # ---- rivals: what a value must not be

    def _rivals(self, flat: _Flat, kind: str) -> List[_Flat]:
        """Return those conjunctions that a value of a type must not satisfy."""
        flats = [each for rival in flat.rivals for each in self._expand([rival])]
        return [
            each for each in flats if set(self._kinds(each)) & ({"integer", "number"} if kind == "number" else {kind})
        ]

    def _forbidden(self, flat: _Flat) -> Optional[Set[str]]:
        """Return the optional members that an object must leave out, so that it is none of the rivals; None where that
        is not enough."""
        forbidden: Set[str] = set()
        own = {key for keys in flat.all("required") for key in keys}
        for rival in self._rivals(flat, "object"):
            theirs = [key for keys in rival.all("required") for key in keys]
            if not forbidden & set(theirs) and not self._apart(flat, rival, "object", 0):
                optional = [key for key in theirs if key not in own]
                if not optional:
                    return None
                forbidden.add(optional[0])
        return forbidden

    def _apart(self, flat: _Flat, rival: _Flat, kind: str, level: int) -> bool:
        """Tell whether it is sure that no written value of `flat`, of one type, satisfies `rival`."""
        self._grammar.spend(1)
        values = self._values(rival)
        if values is not None:
            return not any(self._fits(value, _Flat(flat.nodes)) for value in values)
        tests = {"object": self._objects_apart, "array": self._arrays_apart, "string": self._strings_apart,
                 "number": self._numbers_apart, "integer": self._numbers_apart}  # fmt: skip
        return kind in tests and tests[kind](flat, rival, level)

    def _numbers_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        both = _limits(flat.nodes + rival.nodes)
        if both[0] is None or both[1] is None:
            return False
        return both[0] > both[1] or (both[0] == both[1] and (both[2] or both[3]))

    def _strings_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        try:
            return _product(self._texts_at_most(flat), self._texts_at_most(rival), True).empty
        except _TooLarge:
            return False

    def _arrays_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        low, high = _counts(_Flat(flat.nodes + rival.nodes), "minItems", "maxItems")
        return high is not None and low > high

    def _objects_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        names = dict.fromkeys(
            key for keyword in ("properties", "required") for each in flat.all(keyword) for key in each
        )
        own = {key for keys in flat.all("required") for key in keys}
        theirs = {key for keys in rival.all("required") for key in keys}
        if not self._is_open(flat) and not flat.all("patternProperties") and theirs - set(names):
            return True
        return any(self._members_apart(flat, rival, key, level) for key in names if key in own)

    def _members_apart(self, flat: _Flat, rival: _Flat, key: str, level: int) -> bool:
        theirs = [each for node in rival.nodes for each in self.member(node, key)]
        if not theirs or level > 5:
            return False
        here = self._expand([each for node in flat.nodes for each in self.member(node, key)])
        return all(self._values_apart(one, other, level + 1) for one in here for other in self._expand(theirs))

    def _values_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        values = self._finite(flat)
        if values is not None:
            return not any(self._fits(value, _Flat(rival.nodes)) for value in values)
        shared = {"integer" if kind == "number" else kind for kind in self._kinds(flat)}
        shared &= {"integer" if kind == "number" else kind for kind in self._kinds(rival)}
        return all(self._apart(flat, rival, kind, level) for kind in shared)


def _counts(flat: _Flat, least: str, most: str) -> Tuple[int, Optional[int]]:
    """Return the bounds of a length; None for no upper one."""
    return int(max(flat.all(least), default=0)), (int(min(flat.all(most))) if flat.all(most) else None)


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    top, bottom = one.numerator * other.denominator, other.numerator * one.denominator
    return Fraction(top * bottom // math.gcd(top, bottom), one.denominator * other.denominator)


def _places(value: Fraction) -> int:
    """Return how many decimals it takes to write a number that was read from a decimal writing."""
    return next(places for places in range(400) if (value * 10**places).denominator == 1)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

"""GBNF, llama.cpp's grammar language: rules under construction, and the literals they are made of.

    Rules ── rule, reserve and define   rules with names of their own
          ── basic                      JSON's own rules, each with those it needs
          ── repeat                     counts, however large
          ── machine                    a deterministic automaton, as it is or within a JSON string
          ── text                       the whole grammar

Every grammar is bounded: in its repetitions, and in the steps that are spent on making it.
Sources: RFC 8259, llama.cpp's grammars/README.md and the limits in src/llama-grammar.cpp.
"""

import json
import re
from typing import Any, Callable, Dict, Hashable, List, Optional, Tuple

from core.errors import APIError
from core.grammar.automata import Machine, Ranges, Row, common, union

_MAX_STEPS = 200000  # in making one grammar; a step is what takes some 3 microseconds
_STEPS_OF_RULE = 15
_STEPS_OF_STATE = 8  # to write it
_MAX_REPEATS = 100000  # llama.cpp makes a rule of each optional repetition
_MOST_OVER = 500000  # characters or items beyond the least number: more than any answer holds
_BLOCK = 1000  # llama.cpp refuses to repeat anything more than 2,000 times


class Rules:
    """GBNF rules under construction. `param` is the request's field that errors name."""

    def __init__(self, param: str = "response_format") -> None:
        self.param = param
        self._rules: Dict[str, str] = {}
        self._names: Dict[Tuple[str, str], str] = {}  # by wished name and body
        self._counts: Dict[str, int] = {}  # of rules by wished name
        self._machines: Dict[Hashable, str] = {}
        self._steps = 0
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
        self.spend(_STEPS_OF_RULE)
        return self._numbered(plain, count)

    def define(self, name: str, body: str) -> None:
        """Give a reserved rule its body."""
        self._rules[name] = body

    def attempt(self, make: Callable[[], str]) -> str:
        """Return the rule that `make` adds; where that raises APIError, no rule of its is left."""
        before = dict(self._rules), dict(self._names), dict(self._counts), dict(self._machines)
        try:
            return make()
        except APIError:
            self._rules, self._names, self._counts, self._machines = before
            raise

    def has(self, name: str) -> bool:
        """Whether there is a rule of this name."""
        return name in self._rules

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

        Blocks keep the counts within what llama.cpp takes. At most three places of the body fit the same text.
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

    def machine(self, name: str, machine: Machine, quoted: bool) -> str:
        """Add the rules for a machine's texts, as they are or as JSON strings; returns the first one's name."""
        key = (machine.key(), quoted)
        if key not in self._machines:
            self.spend(_STEPS_OF_STATE * len(machine.rows))
            self._machines[key] = _machine_rules(self, name, machine, quoted)
        return self._machines[key]

    def spend(self, steps: int) -> None:
        """Count steps of work of any kind. Raises APIError 400 where they become too many.

        Everything that may take long is counted in one sum, so that no schema takes much longer than a second. It is
        counted and not timed, so that a schema is refused on every machine or on none.
        """
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise self.refuse(
                "The schema is too large: its properties, patterns, formats, bounds, values or branches take too much."
            )

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


def json_text(value: Any) -> str:
    """Return a JSON value as an answer has it in one line."""
    return json.dumps(value, ensure_ascii=False)


def json_literal(value: Any) -> str:
    """Return a JSON value as a GBNF literal."""
    return literal(json_text(value))


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


def characters(ranges: Ranges) -> str:
    """Return a GBNF class of characters."""
    return "[%s]" % "".join(_class_char(a) + ("-" + _class_char(b) if b > a else "") for a, b in ranges)


def _class_char(code: int) -> str:
    if chr(code).isalnum() and code < 0x80:
        return chr(code)
    if code < 0x100:
        return "\\x%02X" % code
    return "\\u%04X" % code if code < 0x10000 else "\\U%08X" % code


# ------------------------------------------------------------------------------------- machines as rules


def _machine_rules(grammar: Rules, name: str, machine: Machine, quoted: bool) -> str:
    """Write a machine as rules, one for each state that is not the only way on from a single other one."""
    ways_in = [0] * len(machine.rows)
    for row in machine.rows:
        for _, _, to in row:
            ways_in[to] += 1
    spelled = _json_chars if quoted else (lambda ranges: [characters(ranges)])
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
    """Return the ways out of a state: what to write for some of its characters, and the next state."""
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
    plain = common(ranges, _UNESCAPED)
    special = [code for first, last in common(ranges, _ESCAPED) for code in range(first, last + 1)]
    short = sorted(ord(_SHORT_ESCAPES[code]) for code in special if code in _SHORT_ESCAPES)
    words = [characters(union((code, code) for code in short))] if short else []
    if common(ranges, _CONTROL) == _CONTROL:
        words.append('"u00" [01] [0-9a-f]')
    else:
        words += [literal("u%04x" % code) for code in special if code not in _SHORT_ESCAPES]
    escaped = ['"\\\\" ' + (words[0] if len(words) == 1 else "(%s)" % " | ".join(words))] if words else []
    return ([characters(plain)] if plain else []) + escaped

"""A small reader of GBNF: it recognises texts and makes up random ones, to see what a schema's grammar accepts.

It shares nothing with core/grammar/gbnf.py, so that neither hides the other's mistakes.
"""

import json
import random
import re

import pytest

from core.errors import APIError
from core.grammar.schema import json_grammar

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])|(?P<name>[a-zA-Z0-9-]+)'
    r"|(?P<count>[*+?]|\{\d+(?:,\d*)?\})|(?P<mark>[()|]))"
)
_CHAR = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|(.)", re.DOTALL)


def codes(text):
    """The code points that the inside of a literal or of a class stands for, each with whether it was escaped."""
    for two, four, eight, escaped, plain in _CHAR.findall(text):
        digits = two or four or eight
        if digits:
            yield int(digits, 16), True
        else:
            yield ord({"n": "\n", "r": "\r", "t": "\t"}.get(escaped, escaped) or plain), bool(escaped)


def ranges(text):
    """The ranges of a class, which is never a negated one."""
    chars, found = list(codes(text)), []
    while chars:
        first, last = chars.pop(0)[0], None
        if len(chars) > 1 and chars[0] == (ord("-"), False):
            chars.pop(0)
            last = chars.pop(0)[0]
        found.append((first, first if last is None else last))
    return tuple(found)


def tokens(body):
    found, at = [], 0
    while at < len(body.rstrip()):
        match = _TOKEN.match(body, at)
        assert match, "not GBNF: " + body[at:]
        found.append((match.lastgroup, match.group(match.lastgroup)))
        at = match.end()
    return found + [("end", "")]


def times(text):
    """The least and the most (None: any number) that a quantifier stands for."""
    if text in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
    low, comma, high = text[1:-1].partition(",")
    assert int(low) <= 2000 and int(high or 0) <= 2000, "llama.cpp takes no more"
    return int(low), int(high) if high else None if comma else int(low)


def some_char(rng, allowed):
    """A random character of some ranges, mostly an easy one."""
    first, last = rng.choice(allowed)
    return chr(rng.randint(first, min(last, first + 25) if rng.random() < 0.9 else last))


class Reader:
    """A grammar's rules. Items are ("set", ranges), ("rule", name), ("choice", rows), ("repeat", item, low, high)."""

    def __init__(self, grammar):
        self.rules = {}
        for line in grammar.splitlines():
            name, _, body = line.partition(" ::= ")
            assert name not in self.rules
            self._tokens = tokens(body)
            self.rules[name] = self._rows()
            assert self._tokens == [("end", "")]
        self._depths = self._shallowest()

    def _rows(self):
        rows = [self._row()]
        while self._tokens[0] == ("mark", "|"):
            self._tokens.pop(0)
            rows.append(self._row())
        return tuple(rows)

    def _row(self):
        items = []
        while self._tokens[0][0] in ("text", "set", "name", "count") or self._tokens[0] == ("mark", "("):
            kind, text = self._tokens.pop(0)
            if kind == "text":
                items.append(("choice", (tuple(("set", ((code, code),)) for code, _ in codes(text[1:-1])),)))
            elif kind == "set":
                items.append(("set", ranges(text[1:-1])))
            elif kind == "name":
                items.append(("rule", text))
            elif kind == "mark":
                items.append(("choice", self._rows()))
                assert self._tokens.pop(0) == ("mark", ")")
            else:
                items.append(("repeat", items.pop()) + times(text))
        return tuple(items)

    # ---- recognising: the sets of stacks that llama.cpp goes through

    def accepts(self, text):
        stacks = self._settled({(("rule", "root"), None)})
        for char in text:
            taken = {rest for item, rest in filter(None, stacks) if any(a <= ord(char) <= b for a, b in item[1])}
            stacks = self._settled(taken)
        return None in stacks

    def _settled(self, stacks):
        """Expand stacks until each begins with a set of characters, or is empty."""
        seen, settled, todo = set(stacks), set(), list(stacks)
        while todo:
            stack = todo.pop()
            if stack is None or stack[0][0] == "set":
                settled.add(stack)
            else:
                fresh = {push(row, stack[1]) for row in self._ways(stack[0])} - seen
                seen |= fresh
                todo += fresh
        return settled

    def _ways(self, item):
        if item[0] == "rule":
            return self.rules[item[1]]
        if item[0] == "choice":
            return item[1]
        _, inner, low, high = item
        if low:
            return [[inner, ("repeat", inner, low - 1, high and high - 1)]]
        return [[]] + ([[inner, ("repeat", inner, 0, high and high - 1)]] if high != 0 else [])

    # ---- making up texts

    def sentence(self, rng, patience=60):
        """A random text of the grammar; once `patience` choices are made, the shallowest way out is taken."""
        out, todo = [], [("rule", "root")]
        while todo:
            item = todo.pop()
            if item[0] == "set":
                out.append(some_char(rng, item[1]))
            elif item[0] == "repeat":
                _, inner, low, high = item
                more = rng.choice([0, 0, 1, 2, 5]) if patience > 0 else 0
                patience -= more
                todo += [inner] * (low + (more if high is None else min(more, high - low)))
            else:
                rows = self._ways(item)
                patience -= len(rows) > 1
                row = rng.choice(rows) if patience > 0 else min(rows, key=self._depth)
                todo += reversed(row)
        return "".join(out)

    def _depth(self, row):
        return max((self._item_depth(item) for item in row), default=0)

    def _item_depth(self, item):
        if item[0] == "set":
            return 0
        if item[0] == "rule":
            return self._depths[item[1]]
        if item[0] == "choice":
            return min(map(self._depth, item[1]))
        return self._item_depth(item[1]) if item[2] else 0

    def _shallowest(self):
        """How deep each rule's shallowest text is; every rule must have a text."""
        self._depths = {name: float("inf") for name in self.rules}
        for _ in self.rules:
            depths = {name: 1 + min(map(self._depth, rows)) for name, rows in self.rules.items()}
            if depths == self._depths:
                break
            self._depths = depths
        assert max(self._depths.values()) < float("inf"), "a rule has no finite text"
        return self._depths


def push(row, rest):
    for item in reversed(row):
        rest = (item, rest)
    return rest


def reader(schema):
    return Reader(json_grammar(schema))


def check(schema, good=(), bad=(), seed=1):
    """Good values are accepted, bad ones are not, and random sentences are valid. Texts stand for themselves."""
    grammar = reader(schema)
    for value in good:
        assert grammar.accepts(json.dumps(value, ensure_ascii=False)), value
    for value in bad:
        assert not grammar.accepts(json.dumps(value, ensure_ascii=False)), value
    rng = random.Random(seed)
    for _ in range(30):
        assert valid(grammar.sentence(rng), schema)
    return grammar


def valid(text, schema):
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    return validator.is_valid(json.loads(text))


def refusal(schema):
    """The message with which a schema is refused."""
    with pytest.raises(APIError) as caught:
        json_grammar(schema, "tools")
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "unsupported_schema", "tools")
    return error.message

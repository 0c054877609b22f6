"""A reader of GBNF, llama.cpp's grammar language: text in, a Grammar out, or an error that names the place.

    read(text)    a Grammar (elements.py), or APIError 400 "invalid_grammar" that names the line, column and bound
    _Text         the text, and the place that has been reached in it
    _Reader       takes the text apart
    _Measurer     refuses what would never end, or would go on in too many ways

llama.cpp itself gets no grammar, since it reads and follows them with recursive functions and without limits. A grammar
that is too deep or too large, or a token that it lets through and then refuses, ends the process (SIGSEGV, SIGABRT). An
ambiguous grammar stops the engine for minutes.

Sources: llama.cpp's grammars/README.md; the parser and the check of left recursion in its src/llama-grammar.cpp. This
reader keeps their meaning, oddities included: a maximum of more than 2,000 repetitions means any number, and of two
rules with one name the last counts.
"""

import re
from typing import Dict, Generator, List, NamedTuple, Optional, Tuple, Union
from typing import Sequence as Many

from core.errors import APIError
from core.grammar.elements import LAST_CODE, Char, Element, Grammar, Ref, Repeat, Token, memory, refusal
from core.grammar.kept import Kept

MAX_BYTES = 1 << 19  # some 0.5 s to read
MAX_NESTING = 100  # parentheses within parentheses
MAX_CHAINED = 8  # repetitions of one item, as in "a"{2}{3}
MAX_REPETITIONS = 2000  # llama.cpp's own bound
MAX_STACKS = 8192  # ways to go on at one place of an answer

# Of grammars that are kept for the next request: 1 MB for a schema of 500 properties. The largest grammar that is taken
# has 17 MB and fits as well, so that all answers to one request share it.
_KEPT_BYTES = 1 << 25


_KEPT: Kept[Grammar] = Kept(_KEPT_BYTES, memory)


def read(text: str) -> Grammar:
    """Return a grammar, kept from the last time or read. Raises APIError 400 where it is wrong or exceeds a bound."""
    return _KEPT.get(text, lambda: _Measurer(_Reader(text)).grammar())


# ------------------------------------------------------------------------------------------------- the text

_BLANK = re.compile(r"(?:[ \t]+|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_CLASS = re.compile(r"\[(\^?)((?:[^\]\\]|\\.)*)\]", re.DOTALL)
_CHAR = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])", re.DOTALL)
_TOKEN = re.compile(r"(!?)(<\[([0-9]+)\]>|<(?!\[)[^>]*>)")
_COUNT = re.compile(r"\{%s([0-9]+)%s(?:(,)%s([0-9]*)%s)?\}" % ((_BLANK_LINES.pattern,) * 4))
_LINE_COUNT = re.compile(r"\{%s([0-9]+)%s(?:(,)%s([0-9]*)%s)?\}" % ((_BLANK.pattern,) * 4))
_REPETITIONS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_ANY = Char.of([(0, LAST_CODE)])


class _Text:
    """The text of a grammar, and the place that has been reached in it."""

    def __init__(self, text: str):
        self._text = text
        self._at = 0
        self._check_text()

    def fail(self, what: str, at: Optional[int] = None) -> APIError:
        """Return the error for something wrong at a place; here, if none is given."""
        at = self._at if at is None else at
        line = self._text.count("\n", 0, at) + 1
        column = at - (self._text.rfind("\n", 0, at) + 1) + 1
        return refusal("The grammar is not valid GBNF: line %d, column %d: %s." % (line, column, what))

    def _check_text(self) -> None:
        try:
            size = len(self._text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise self.fail("half of a surrogate pair is no character", error.start)
        if size > MAX_BYTES:
            raise refusal("The grammar is too large: it has %d bytes, and may have %d." % (size, MAX_BYTES))
        if "\0" in self._text:
            raise self.fail("a character with the code 0 can't stand in a grammar", self._text.index("\0"))

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, lines: bool) -> None:
        blank = (_BLANK_LINES if lines else _BLANK).match(self._text, self._at)
        self._at = blank.end() if blank else self._at

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if not match:
            raise self.fail("the name of a rule is expected")
        self._at = match.end()
        return match.group(0)


class _Reader(_Text):
    """Takes the text of a grammar apart. `elements`, `rules` and `names` are what comes of it."""

    def __init__(self, text: str):
        super().__init__(text)
        self.elements: List[Element] = []
        self.rules: List[List[int]] = []
        self.names: Dict[str, int] = {}  # to indices of rules
        self.tokens: List[Token] = []
        self._used: Dict[str, int] = {}  # where each name was used first
        self._defined: Dict[str, bool] = {}
        self._classes: Dict[str, Char] = {}
        self._literals: Dict[str, List[Char]] = {}
        self._chars: Dict[int, Char] = {}
        self._refs: Dict[int, Ref] = {}
        self._read()

    def _read(self) -> None:
        self._skip(True)
        while self._at < len(self._text):
            self._rule()
        for name, at in self._used.items():
            if name not in self._defined:
                raise self.fail("there is no rule '%s'" % name[:40], at)
        if "root" not in self._defined:
            raise refusal("The grammar is not valid GBNF: it has no rule 'root'.")

    def _rule(self) -> None:
        at = self._at
        name = self._name()
        self._skip(False)
        if not self._text.startswith("::=", self._at):
            raise self.fail("'::=' is expected after the name of a rule")
        self._at += 3
        self._skip(True)
        index = self._index(name, at)
        self.rules[index] = self._alternatives(0)
        self._defined[name] = True
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self.fail("a new line or the end is expected")
        self._skip(True)

    def _alternatives(self, depth: int) -> List[int]:
        if depth > MAX_NESTING:
            raise self.fail("more than %d parentheses are within one another" % MAX_NESTING)
        starts = [self._emit(self._sequence(depth))]
        while self._next() == "|":
            self._at += 1
            self._skip(True)
            starts.append(self._emit(self._sequence(depth)))
        return starts

    def _sequence(self, depth: int) -> List[Element]:
        items: List[Element] = []
        last, chained = 0, 0  # the item that a repetition would repeat begins there, and has so many already
        while True:
            char = self._next()
            if char and char in "*+?{":
                chained += 1
                self._repeat(items, last, chained, depth > 0)
                continue
            item = self._item(char, depth)
            if item is None:
                return items
            last, chained = len(items), 0
            items += item
            self._skip(depth > 0)

    def _item(self, char: str, depth: int) -> Optional[Many[Element]]:
        """Read what a repetition can stand after; None where there is nothing more."""
        if char == '"':
            return self._literal()
        if char == "[":
            return [self._class()]
        if char in ("<", "!"):
            return [self._token()]
        if char == ".":
            self._at += 1
            return [_ANY]
        if char == "(":
            return [self._group(depth)]
        if _NAME.match(self._text, self._at):
            at = self._at
            index = self._index(self._name(), at, used=True)
            return [self._refs.setdefault(index, Ref(index))]
        return None

    def _group(self, depth: int) -> Ref:
        self._at += 1
        self._skip(True)
        self.rules.append([])
        index = len(self.rules) - 1
        self.rules[index] = self._alternatives(depth + 1)
        if self._next() != ")":
            raise self.fail("')' is expected")
        self._at += 1
        return Ref(index)

    def _repeat(self, items: List[Element], last: int, chained: int, lines: bool) -> None:
        """Read how often the last item is repeated, and repeat it."""
        if last == len(items):
            raise self.fail("there is nothing to repeat")
        if chained > MAX_CHAINED:
            raise self.fail("an item has more than %d repetitions" % MAX_CHAINED)
        low, high = self._bounds(lines)
        items[last:] = [Repeat(self._emit(items[last:]), low, high)]

    def _bounds(self, lines: bool) -> Tuple[int, Optional[int]]:
        """Read how often something is repeated."""
        simple = _REPETITIONS.get(self._text[self._at])
        if simple:
            self._at += 1
            self._skip(lines)
            return simple
        match = (_COUNT if lines else _LINE_COUNT).match(self._text, self._at)
        if not match:
            raise self.fail("a repetition is {m}, {m,} or {m,n}, with whole numbers")
        low = _number(match.group(1))
        high = (_number(match.group(3)) if match.group(3) else None) if match.group(2) else low
        if low > MAX_REPETITIONS:
            raise self.fail("%s repetitions are too many: the most is %d" % (match.group(1)[:12], MAX_REPETITIONS))
        if high is not None and high < low:
            raise self.fail("a repetition's maximum is less than its minimum")
        self._at = match.end()
        self._skip(lines)
        return low, None if high is not None and high > MAX_REPETITIONS else high

    # ---- characters and tokens

    def _literal(self) -> List[Char]:
        match = _LITERAL.match(self._text, self._at)
        if not match:
            raise self.fail("a string has no end")
        text = match.group(1)
        if text not in self._literals:
            codes = [code for code, _, _ in self._codes(text, match.start(1))] if "\\" in text else map(ord, text)
            self._literals[text] = [self._char(code) for code in codes]
        self._at = match.end()
        return list(self._literals[text])

    def _char(self, code: int) -> Char:
        if code not in self._chars:
            self._chars[code] = Char.of([(code, code)])
        return self._chars[code]

    def _class(self) -> Char:
        match = _CLASS.match(self._text, self._at)
        if not match:
            raise self.fail("a set of characters has no end")
        text = match.group(0)
        if text not in self._classes:
            ranges = self._ranges(match.group(2), match.start(2))
            if not ranges:
                raise self.fail("a set of characters is empty")
            chars = Char.of(ranges)
            self._classes[text] = chars.inverted() if match.group(1) else chars
        self._at = match.end()
        return self._classes[text]

    def _ranges(self, text: str, begin: int) -> List[Tuple[int, int]]:
        codes = self._codes(text, begin)
        ranges: List[Tuple[int, int]] = []
        index = 0
        while index < len(codes):
            code, _, at = codes[index]
            last = code
            if index + 2 < len(codes) and codes[index + 1][1]:
                last = codes[index + 2][0]
                index += 2
            if last < code:
                raise self.fail("a range of characters ends before it begins", at)
            ranges.append((code, last))
            index += 1
        return ranges

    def _codes(self, text: str, begin: int) -> List[Tuple[int, bool, int]]:
        """Return each character's code, whether it is a bare hyphen, and its place."""
        codes = []
        for match in _CHAR.finditer(text):
            at = begin + match.start()
            digits = match.group(1) or match.group(2) or match.group(3)
            char = match.group(5) or _ESCAPES.get(match.group(4) or "")
            if digits is None and char is None:
                raise self.fail("there is no escape '%s'" % match.group(0), at)
            code = int(digits, 16) if digits else ord(str(char))
            if code > LAST_CODE:
                raise self.fail("there is no character with the code %d" % code, at)
            codes.append((code, match.group(5) == "-", at))
        return codes

    def _token(self) -> Token:
        match = _TOKEN.match(self._text, self._at)
        if not match:
            raise self.fail("a token is <[its id]> or <its text>, with '!' before it for any other")
        name: Union[int, str] = _number(match.group(3)) if match.group(3) else match.group(2)
        self.tokens.append(Token(name, bool(match.group(1))))
        self._at = match.end()
        return self.tokens[-1]

    def _index(self, name: str, at: int, used: bool = False) -> int:
        if used:
            self._used.setdefault(name, at)
        if name not in self.names:
            self.names[name] = len(self.rules)
            self.rules.append([])
        return self.names[name]

    def _emit(self, items: List[Element]) -> int:
        self.elements += items
        self.elements.append(None)
        return len(self.elements) - len(items) - 1


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 12 else 10**12


# -------------------------------------------------------------------------------------------------- measures


class _Measure(NamedTuple):
    """Whether a rule, or a part of one, may be nothing, and how many characters or tokens it may begin with."""

    empty: bool
    ways: int


_Visit = Generator[int, _Measure, _Measure]  # yields a rule whose measure it needs


class _Measurer:
    """Measures rules in the order in which they begin with one another."""

    def __init__(self, reader: _Reader):
        self._reader = reader
        self._measures: Dict[int, _Measure] = {}

    def grammar(self) -> Grammar:
        """Return the grammar. Raises APIError 400 if it is left-recursive, or too ambiguous."""
        reader = self._reader
        for rule in range(len(reader.rules)):
            self._measure(rule)
        rules = tuple(map(tuple, reader.rules))
        return Grammar(tuple(reader.elements), rules, reader.names["root"], tuple(reader.tokens))

    def _measure(self, rule: int) -> None:
        """Measure a rule and those that it begins with; without recursion, for chains may be long."""
        if rule in self._measures:
            return
        path = {rule: self._alternatives(rule)}
        known: Optional[_Measure] = None
        while path:
            current = next(reversed(path))
            try:
                wanted = path[current].send(known)  # type: ignore[arg-type]
            except StopIteration as done:
                self._measures[current] = known = done.value
                self._check(current, done.value)
                del path[current]
                continue
            known = self._measures.get(wanted)
            if known is None:
                if wanted in path:
                    raise refusal("The grammar is left-recursive: %s begins with itself." % self._title(wanted))
                path[wanted] = self._alternatives(wanted)

    def _check(self, rule: int, measure: _Measure) -> None:
        if measure.ways > MAX_STACKS:
            message = "The grammar is too ambiguous: %s may begin in more than %d ways."
            raise refusal(message % (self._title(rule), MAX_STACKS))

    def _title(self, rule: int) -> str:
        names = [name for name, index in self._reader.names.items() if index == rule]
        return "the rule '%s'" % names[0][:40] if names else "something in parentheses"

    def _alternatives(self, rule: int) -> _Visit:
        empty, ways = False, 0
        for start in self._reader.rules[rule]:
            part = yield from self._sequence(start)
            empty, ways = empty or part.empty, ways + part.ways
        return _Measure(empty, ways)

    def _sequence(self, position: int) -> _Visit:
        """Measure what a sequence may begin with: all up to the first element that can't be nothing."""
        ways = 0
        while True:
            element = self._reader.elements[position]
            if element is None:
                return _Measure(True, ways)
            if isinstance(element, Ref):
                part = yield element.rule
            elif isinstance(element, Repeat):
                part = yield from self._repeat(element)
            else:
                part = _Measure(False, 1)
            ways += part.ways
            if not part.empty:
                return _Measure(False, ways)
            position += 1

    def _repeat(self, repeat: Repeat) -> _Visit:
        """Measure a repetition. Where its body may be nothing, it may begin with any of the times."""
        body = yield from self._sequence(repeat.body)
        times = (repeat.low + 1 if repeat.high is None else repeat.high) if body.empty else 1
        return _Measure(body.empty or not repeat.low, body.ways * times)

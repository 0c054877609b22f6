"""Patterns: regular expressions, and the formats of JSON Schema, as machines.

    pattern ── _PatternReader ── tree ── _Places (nondeterministic) ── Machine
    format's name ── its pattern ──┘

Patterns mean what ECMA-262 says (chapter 22.2, with what its annex B tolerates), without flags, by code points. They
match anywhere in a text, unless they have anchors. A lookahead may stand at the beginning only. References back to a
group are refused: no finite automaton can follow them.
Formats are those of JSON Schema 2020-12, which takes them from RFC 3339, RFC 3986 and others.
"""

import re
from typing import Any, Dict, FrozenSet, Hashable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from core.grammar.automata import (
    ALL_CHARS,
    ANY_TEXT,
    Machine,
    Ranges,
    TooLarge,
    all_but,
    common,
    explore,
    product,
    repeated,
    union,
)  # fmt: skip
from core.grammar.kept import Kept

# ------------------------------------------------------------------------------------------------- patterns

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANKS: Ranges = (
    (9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _BLANKS, "D": all_but(_DIGIT), "W": all_but(_WORD), "S": all_but(_BLANKS)}
_DOT = all_but(((10, 10), (13, 13), (0x2028, 0x2029)))
_ONE_LINE = repeated(_DOT)
_CONTROLS = {"n": 10, "r": 13, "t": 9, "v": 11, "f": 12, "0": 0}
_QUANTIFIER = re.compile(r"([*+?]|\{(\d+)(,(\d*))?\})(\??)")
_MAX_GROUPS = 50  # within one another
_MAX_PLACES = 20000  # of a pattern with its repetitions written out
_MAX_MOVES = 400000  # from places, over all states of its machine
_KEPT_BYTES = 1 << 23  # of machines kept for the next schema: usual ones take 1 to 100 KB, the largest 40 MB

# ("set", ranges), ("row", trees), ("any of", trees), ("repeat", tree, low, high), ("^",), ("$",)
Tree = Tuple[Any, ...]


class BadPattern(Exception):
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
        """Return the lookaheads at the start, and the rest. Raises BadPattern."""
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
            raise BadPattern("it has a ')' too many")
        if anchored and tree[0] == "any of":
            raise BadPattern("its lookahead is beside '|'; put the alternatives in a group")
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
            raise BadPattern("it repeats '%s'" % tree[0])
        self._at = match.end()
        sign, low, ranged, high = match.group(1), match.group(2), match.group(3), match.group(4)
        if low is None:
            return ("repeat", tree, 1 if sign == "+" else 0, 1 if sign == "?" else None)
        if len(low) > 5 or len(high or "") > 5:
            raise BadPattern("it repeats too often")
        most = int(low) if not ranged else int(high) if high else None
        if most is not None and most < int(low):
            raise BadPattern("its repetition %s is the wrong way round" % sign)
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
            raise BadPattern("it repeats nothing")
        return ("set", _one(ord(char)))

    def _open(self) -> Tree:
        kind = re.compile(r"\?(:|=|!|<=|<!|<[A-Za-z_$][\w$]*>|.?)").match(self._text, self._at)
        if kind:
            if kind.group(1) in ("=", "!", "<=", "<!"):
                raise BadPattern("a lookaround stands elsewhere than right after a leading '^'")
            if kind.group(1) != ":" and not kind.group(1).endswith(">"):
                raise BadPattern("it has a group of an unknown kind")
            self._at = kind.end()
        return self._group()

    def _group(self) -> Tree:
        self._depth += 1
        if self._depth > _MAX_GROUPS:
            raise BadPattern("its groups are nested too deeply")
        tree = self._choice()
        self._depth -= 1
        if not self._take(")"):
            raise BadPattern("a group is not closed")
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
        found = union(ranges)
        return all_but(found) if inverted else common(found, ALL_CHARS)

    def _range(self, first: Ranges, last: Ranges) -> Ranges:
        low, high = first[0][0], last[0][0]
        if _one(low) != first or _one(high) != last:  # "[\w-.]": annex B takes the hyphen for itself
            return first + _one(ord("-")) + last
        if low > high:
            raise BadPattern("a range in a class is the wrong way round")
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
            raise BadPattern("it refers back to a group")
        if char.isalpha():
            raise BadPattern("the escape \\%s is not supported" % char)
        return _one(ord(char))

    def _code(self, kind: str) -> int:
        forms = {"x": r"([0-9A-Fa-f]{2})", "u": r"\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{4})", "c": r"([A-Za-z])"}
        match = re.compile(forms[kind]).match(self._text, self._at)
        if not match:
            raise BadPattern("the escape \\%s is incomplete" % kind)
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
            raise BadPattern("\\%s%s is no character" % (kind, digits))
        return code

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise BadPattern("it ends too early")
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
        self._made = 0  # moves, so far
        self._moves: List[List[Tuple[int, int, int]]] = []
        self._steps: List[List[Tuple[str, int]]] = []
        before, after = self._place(), self._place()
        for place in (before, after):  # a pattern may match anywhere
            self._moves[place] = [(first, last, place) for first, last in ALL_CHARS]
        self._before, self._after = before, after
        self._steps[self._add(tree, before)].append(("", after))

    def machine(self) -> Machine:
        """Return the deterministic machine of the same texts. Raises TooLarge."""
        start = (True, self._reach([self._before], "^"))
        found = explore(start, self._edges, lambda state: self._after in self._reach(state[1], "^$"[not state[0] :]))
        found.cost += self._made
        return found

    def _edges(self, state: Tuple[bool, FrozenSet[int]]) -> Iterator[Tuple[int, int, Hashable]]:
        moves = [move for place in state[1] for move in self._moves[place]]
        self._made += len(state[1]) + len(moves)
        if self._made > _MAX_MOVES:
            raise TooLarge()
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
            raise TooLarge()
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


_KEPT: Kept[Machine] = Kept(_KEPT_BYTES, Machine.memory)


def pattern_machine(text: str) -> Machine:
    """Return the machine for the texts that a pattern matches somewhere, kept from the last time or made.

    Raises BadPattern, TooLarge.
    """
    return _KEPT.get(text, lambda: _made(text))


def _made(text: str) -> Machine:
    ahead, tree = _PatternReader(text).read()
    machine = _Places(tree).machine()
    for each in ahead:
        condition = _Places(each.tree).machine()
        cost = machine.cost + condition.cost
        machine = product(machine, condition, each.wanted)
        machine.cost += cost
    return machine


def without(machine: Optional[Machine], pattern: Machine) -> Machine:
    """Return the machine for the texts of `machine` (None: all) that a pattern does not match. Raises TooLarge.

    Only texts of one line: Python and others let '$' match before a last line's end, and '.' some of ECMA's line ends.
    """
    lines = product(machine or ANY_TEXT, _ONE_LINE, True)
    found = product(lines, pattern, False)
    found.cost += lines.cost
    return found


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

# Where a standard allows more than people write, each of these allows a part of it: years of four digits, hosts of at
# most five labels, URLs of the usual shape.
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


def format_machine(name: str) -> Optional[Machine]:
    """Return the machine for the texts of a format; None for a name that is not known: then it is an annotation."""
    return pattern_machine("^(%s)$" % _FORMATS[name]) if name in _FORMATS else None

"""What a grammar is made of, once its text has been read: one list of elements, and the rules as places in it.

    Char, Token, Ref, Repeat    the elements
    Grammar                     all of them; it never changes, so that requests may share it
    memory                      how large it is

gbnf.py makes it, stacks.py follows it.
"""

import bisect
from typing import Iterable, List, NamedTuple, Optional, Tuple, Union

from core.errors import APIError

LAST_CODE = 0x10FFFF  # of a character


class Char(NamedTuple):
    """One character out of ranges of code points, in order and apart: where they start and end, ends included."""

    starts: Tuple[int, ...]
    ends: Tuple[int, ...]

    @classmethod
    def of(cls, ranges: Iterable[Tuple[int, int]]) -> "Char":
        """Return the character out of ranges in any order, overlapping or not."""
        merged: List[List[int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        return cls(tuple(first for first, _ in merged), tuple(last for _, last in merged))

    def meets(self, first: int, last: int) -> bool:
        """Whether one of them is in a range of code points."""
        index = bisect.bisect_right(self.starts, last) - 1
        return index >= 0 and first <= self.ends[index]

    def inverted(self) -> "Char":
        """Return all others."""
        edges = [-1] + [edge for pair in zip(self.starts, self.ends) for edge in pair] + [LAST_CODE + 1]
        gaps = [(edges[at] + 1, edges[at + 1] - 1) for at in range(0, len(edges), 2)]
        return Char.of((first, last) for first, last in gaps if first <= last)


class Token(NamedTuple):
    """One token, named by its id or by its text with angle brackets; `inverted`: any other token."""

    name: Union[int, str]
    inverted: bool


class Ref(NamedTuple):
    """A reference to a rule."""

    rule: int


class Repeat(NamedTuple):
    """A sequence, `low` to `high` (None: any number of) times. `body` is the position of its first element."""

    body: int
    low: int
    high: Optional[int]


Element = Union[Char, Token, Ref, Repeat, None]  # None: the end of a sequence


class Grammar(NamedTuple):
    """A grammar that has passed: all sequences, each with None after it, and where each rule's alternatives begin."""

    elements: Tuple[Element, ...]
    rules: Tuple[Tuple[int, ...], ...]
    root: int
    tokens: Tuple[Token, ...]


# What the parts of a grammar take in memory: measured with tracemalloc (CPython 3.11, 64 bits), rounded up.
_BYTES_OF_GRAMMAR = 500
_BYTES_OF_POSITION = 8  # in the list of elements; an element may stand at many
_BYTES_OF_ELEMENT = {Char: 120, Ref: 80, Repeat: 160, Token: 180}
_BYTES_OF_RANGE = 80  # of a Char
_BYTES_OF_RULE = 60
_BYTES_OF_ALTERNATIVE = 40


def memory(grammar: Grammar) -> int:
    """Return about how many bytes a grammar takes in memory; more rather than less."""
    distinct = {id(element): element for element in grammar.elements if element is not None}.values()
    size = _BYTES_OF_GRAMMAR + _BYTES_OF_POSITION * len(grammar.elements)
    size += sum(_BYTES_OF_ELEMENT[type(element)] for element in distinct)
    size += _BYTES_OF_RANGE * sum(len(element.starts) for element in distinct if isinstance(element, Char))
    return size + _BYTES_OF_RULE * len(grammar.rules) + _BYTES_OF_ALTERNATIVE * sum(map(len, grammar.rules))


def refusal(message: str) -> APIError:
    """Return the error for a grammar."""
    return APIError(400, message, "invalid_grammar", "grammar")

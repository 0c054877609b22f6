"""Machines: deterministic automata over characters, and what can be done with them.

    characters ── ranges ── union, common, all_but
    texts      ── Machine ── explore (of any kind of state), repeated, listed ── product, within

A machine accepts a set of texts. It says for each state which characters may come next, and to which state they lead.
From every state some end can be reached, so an answer that follows a machine can always be finished. (The one exception
is a machine that accepts no text: its start leads nowhere.) To make one raises TooLarge above MAX_STATES.
"""

from typing import Any, Callable, Dict, Hashable, Iterable, Iterator, List, Optional, Sequence, Tuple

MAX_STATES = 4000  # of one machine

# What a machine takes in memory: measured with tracemalloc (CPython 3.11, 64 bits), rounded up.
_BYTES_OF_MACHINE = 500
_BYTES_OF_STATE = 80
_BYTES_OF_TRANSITION = 150

Ranges = Tuple[Tuple[int, int], ...]  # of code points, ascending and apart, both ends included
Row = Sequence[Tuple[int, int, int]]  # (first code point, last one, next state), ascending and apart

ALL_CHARS: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # every character; surrogates are none


# ----------------------------------------------------------------------------------------------- characters


def common(some: Ranges, others: Ranges) -> Ranges:
    """Return the characters that are in both."""
    both = ((max(a, c), min(b, d)) for a, b in some for c, d in others)
    return tuple(sorted((first, last) for first, last in both if first <= last))


def union(ranges: Iterable[Tuple[int, int]]) -> Ranges:
    """Return the characters of ranges in any order, overlapping or not."""
    merged: List[Tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def all_but(ranges: Ranges) -> Ranges:
    """Return all characters that are not in `ranges`."""
    edges = [-1] + [edge for first, last in ranges for edge in (first - 1, last + 1)] + [0x110000]
    bounds = [edges[0] + 1] + edges[1:-1] + [edges[-1] - 1]
    return common(tuple(zip(bounds[::2], bounds[1::2])), ALL_CHARS)


# ------------------------------------------------------------------------------------------------- machines


class TooLarge(Exception):
    """A machine would have too many states."""


class Machine:
    """A deterministic automaton over characters. It starts in state 0; from every state some end can be reached.

    `cost` is how many transitions were looked at in making it: a measure of the time that took.
    """

    def __init__(self, rows: Sequence[Row], ends: Sequence[bool], cost: int = 0):
        self.rows, self.ends, self.cost = rows, ends, cost

    @property
    def empty(self) -> bool:
        """Whether no text at all is accepted."""
        return not any(self.ends)

    def memory(self) -> int:
        """Return about how many bytes the machine takes in memory; more rather than less."""
        return (
            _BYTES_OF_MACHINE + _BYTES_OF_STATE * len(self.rows) + _BYTES_OF_TRANSITION * sum(map(len, self.rows))
        )

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


def explore(
    start: Hashable, edges: Callable[[Any], Iterable[Tuple[int, int, Hashable]]], ends: Callable[[Any], bool]
) -> Machine:
    """Make a machine of all states that can be reached from a start, a state of any kind. Raises TooLarge."""
    numbers: Dict[Hashable, int] = {start: 0}
    found: List[Hashable] = [start]
    rows: List[List[Tuple[int, int, int]]] = []
    cost = 0
    for state in found:  # which grows
        row: List[Tuple[int, int, int]] = []
        for first, last, following in edges(state):
            cost += 1
            to = numbers.setdefault(following, len(found))
            if to == len(found):
                found.append(following)
            if row and row[-1][1] == first - 1 and row[-1][2] == to:
                row[-1] = (row[-1][0], last, to)
            else:
                row.append((first, last, to))
        rows.append(row)
        if len(found) > MAX_STATES:
            raise TooLarge()
    return _trimmed(rows, [ends(state) for state in found], cost + len(found))


def _trimmed(rows: Sequence[Row], ends: Sequence[bool], cost: int) -> Machine:
    """Return a machine without the states from which no end can be reached: an answer would never be finished."""
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
        return Machine([[]], [False], cost)
    kept = sorted(alive)
    number = {state: index for index, state in enumerate(kept)}
    lived = [[(first, last, number[to]) for first, last, to in rows[state] if to in alive] for state in kept]
    return Machine(lived, [ends[state] for state in kept], cost)


def repeated(ranges: Ranges) -> Machine:
    """Return the machine for texts of certain characters."""
    return Machine([[(first, last, 0) for first, last in ranges]], [True])


ANY_TEXT = repeated(ALL_CHARS)


def listed(words: Iterable[str]) -> Machine:
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
    return Machine([[(code, code, to) for code, to in sorted(each.items())] for each in steps], ends, len(steps))


def product(one: Machine, other: Machine, wanted: bool) -> Machine:
    """Return the machine for `one`'s texts that are `other`'s, too (`wanted`), or that are not. Raises TooLarge."""

    def edges(state: Tuple[int, Optional[int]]) -> Iterator[Tuple[int, int, Hashable]]:
        row = () if state[1] is None else other.rows[state[1]]
        for first, last, to in one.rows[state[0]]:
            for begin, end, beside in _split(first, last, row):
                if beside is not None or not wanted:
                    yield begin, end, (to, beside)

    def ends(state: Tuple[int, Optional[int]]) -> bool:
        return one.ends[state[0]] and (state[1] is not None and other.ends[state[1]]) == wanted

    return explore((0, 0), edges, ends)


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


def within(machine: Machine, low: int, high: Optional[int]) -> Machine:
    """Return the machine for the texts of `low` to `high` characters (None: any number). Raises TooLarge."""
    most = low if high is None else high

    def edges(state: Tuple[int, int]) -> Iterator[Tuple[int, int, Hashable]]:
        count = state[1] + 1
        if count <= most or high is None:
            for first, last, to in machine.rows[state[0]]:
                yield first, last, (to, min(count, most))

    return explore((0, 0), edges, lambda state: machine.ends[state[0]] and state[1] >= low)

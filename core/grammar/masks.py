"""Which tokens of a whole vocabulary a grammar takes next, worked out for all at once.

    Texts      a vocabulary, character by character: for each place in a token, which tokens have which character there
    allowed    the tokens that may come next

All tokens are read side by side, one character of each at a time. Many tokens reach the same set of stacks: a state.
What a character does in a state is worked out once, for whole ranges of characters. So a vocabulary of 150,000 tokens
takes some 15 ms, and an ambiguous grammar not much longer.
"""

from typing import Dict, Iterator, List, Optional, Tuple
from typing import Sequence as Many

import numpy

from core.grammar.elements import Char
from core.grammar.stacks import Stacks, decoded

_DEAD = 0  # the state of a token that does not fit
_MOST_STATES = 2000  # in reading a vocabulary once; tokens that would need more are left out
_MOST_STEPS = 1000000


class Texts:
    """A vocabulary's texts. It never changes, and any thread may read it."""

    def __init__(self, texts: Many[bytes], enders: Many[int]):
        """`texts` has each token's; `enders` are the tokens that end an answer."""
        self.size = len(texts)
        self.enders = numpy.array(enders, numpy.int64)
        self.continuing = [token for token, text in enumerate(texts) if text and 0x80 <= text[0] < 0xC0]
        self.texts = {token: texts[token] for token in self.continuing}  # where a character may have begun before
        read = {token: decoded(text) for token, text in enumerate(texts) if text}
        known = {token: each for token, each in read.items() if each is not None}
        self.speaks = numpy.array([bool(known.get(token, ((), b""))[0]) for token in range(self.size)], bool)
        self.partial = {token: each[1] for token, each in known.items() if each[1]}
        self.alphabet = numpy.array(sorted({code for each in known.values() for code in each[0]}), numpy.int64)
        self.places = list(self._places({token: each[0] for token, each in known.items()}))

    def _places(self, codes: Dict[int, List[int]]) -> Iterator[Tuple[numpy.ndarray, numpy.ndarray]]:
        """Yield for each place in a text the tokens that have a character there, and which of the alphabet."""
        place = 0
        while codes:
            codes = {token: each for token, each in codes.items() if len(each) > place}
            if codes:
                column = numpy.fromiter((each[place] for each in codes.values()), numpy.int64, len(codes))
                yield numpy.fromiter(codes, numpy.int64, len(codes)), numpy.searchsorted(self.alphabet, column)
            place += 1


def allowed(stacks: Stacks, texts: Texts) -> numpy.ndarray:
    """Return for each token whether it may come next: an array of bool."""
    takes = numpy.zeros(texts.size, bool)
    if stacks.state.partial:
        for token in texts.continuing:
            takes[token] = stacks.after(token, texts.texts[token]) is not None
    else:
        _Reading(stacks, texts).mark(takes)
    for token, inverted in stacks.named():
        if inverted:
            others = texts.speaks.copy()
            others[token] = False
            takes |= others
        else:
            takes[token] = texts.speaks[token]
    takes[texts.enders] = stacks.may_end()
    return takes


class _Reading:
    """Reads all texts of a vocabulary from where an answer stands."""

    def __init__(self, stacks: Stacks, texts: Texts):
        self._stacks = stacks
        self._texts = texts
        self._states: List[Tuple[int, ...]] = [()]
        self._numbers: Dict[Tuple[int, ...], int] = {(): _DEAD}
        self._rows = numpy.full((8, len(texts.alphabet)), -1, numpy.int32)  # what each character leads to, by state
        self._rows[_DEAD] = _DEAD
        self._steps = 0
        self._ranges: Dict[int, List[Tuple[int, int]]] = {}

    def mark(self, takes: numpy.ndarray) -> None:
        """Mark the tokens whose text fits."""
        begin = self._state(self._stacks.with_char_on_top(self._stacks.state.stacks))
        states = numpy.full(self._texts.size, begin, numpy.int32)
        complete = numpy.zeros(self._texts.size, bool)
        for place, (tokens, codes) in enumerate(self._texts.places):
            if place:
                alive = states[tokens] != _DEAD
                tokens, codes = tokens[alive], codes[alive]
                if not len(tokens):
                    break
            here = states[tokens]
            for state in numpy.flatnonzero(numpy.bincount(here)):
                self._work_out(int(state))
            states[tokens] = self._rows[here, codes]
            complete[tokens] = True
        takes |= complete & (states != _DEAD)
        for token, partial in self._texts.partial.items():
            takes[token] = states[token] and bool(self._stacks.completed(self._states[states[token]], partial))

    def _state(self, stacks: Optional[Tuple[int, ...]]) -> int:
        """Return the number of a state; that of none if there are too many stacks or states."""
        if stacks is None or (stacks not in self._numbers and len(self._states) >= _MOST_STATES):
            return _DEAD
        number = self._numbers.setdefault(stacks, len(self._states))
        if number == len(self._states):
            self._states.append(stacks)
            if number == len(self._rows):
                self._rows = numpy.concatenate([self._rows, numpy.full_like(self._rows, -1)])
        return number

    def _work_out(self, state: int) -> None:
        """Fill in what each character leads to in a state: the stacks that take it are the same for whole ranges."""
        if self._rows[state, 0] >= 0:
            return
        changes: Dict[int, List[int]] = {0: []}
        for stack in self._stacks.with_char_on_top(self._states[state]):
            for first, end in self._range(stack):
                changes.setdefault(first, []).append(stack)
                changes.setdefault(end, []).append(-stack)
        row = numpy.zeros(len(self._texts.alphabet), numpy.int32)
        known: Dict[Tuple[int, ...], int] = {}
        active: Dict[int, None] = {}
        edges = sorted(changes)
        for edge, following in zip(edges, edges[1:] + [len(row)]):
            for stack in changes[edge]:
                active.pop(-stack) if stack < 0 else active.setdefault(stack)
            if active:
                row[edge:following] = self._follow(tuple(sorted(active)), known)
        self._rows[state] = row

    def _range(self, stack: int) -> List[Tuple[int, int]]:
        """Return the parts of the alphabet that may come next on a stack: from here up to there."""
        char = self._stacks.top(stack)
        if not isinstance(char, Char):
            return []
        if id(char) not in self._ranges:
            first = numpy.searchsorted(self._texts.alphabet, char.starts, "left").tolist()
            end = numpy.searchsorted(self._texts.alphabet, char.ends, "right").tolist()
            self._ranges[id(char)] = [(low, high) for low, high in zip(first, end) if low < high]
        return self._ranges[id(char)]

    def _follow(self, stacks: Tuple[int, ...], known: Dict[Tuple[int, ...], int]) -> int:
        """Return the state after stacks that have taken a character."""
        if stacks not in known:
            after = self._stacks.step(stacks) if self._steps < _MOST_STEPS else None
            self._steps += len(stacks) + len(after or ())
            known[stacks] = self._state(after)
        return known[stacks]

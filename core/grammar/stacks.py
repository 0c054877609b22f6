"""A grammar at work: what may come next in an answer, as llama.cpp's grammars have it, with bounds that it lacks.

A stack is one way in which an answer may go on. Here each stack has a number. Equal stacks have the same number, so
that what comes after them is worked out once:

    0                          nothing more is to come: the answer may end
    position, count, parent    the element at a position in Grammar.elements comes next, then the elements after it,
                               then the parent, which is another stack. With a count of 0 or more, the element is a
                               repetition that has been done so often, and the parent comes right after it.

A State is where an answer stands: all its stacks. Each has a character or a token on top, or is 0.

Source: llama_grammar_advance_stack and llama_grammar_accept_token in llama.cpp's src/llama-grammar.cpp.
"""

import codecs
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple, Union

from core.grammar.elements import Char, Element, Grammar, Ref, Repeat, Token, refusal
from core.grammar.gbnf import MAX_STACKS

END = 0
_MOST_STEPS = 500000  # in one step of an answer, or in unfolding one stack; some 0.2 s
# Above these, an answer forgets the stacks that it has no more use for.
_MOST_KNOWN = 50000  # stacks
_MOST_KEPT = 1000000  # stacks that they stand for

_ONCE = -1  # instead of a count: an element as it stands in the grammar
_Stack = Tuple[int, int, int]  # position, count or _ONCE, parent
_BOTTOM: _Stack = (-1, _ONCE, END)  # in the place of stack 0; never looked at

TOO_AMBIGUOUS = "The grammar is too ambiguous: there are too many ways to read the answer."


class State(NamedTuple):
    """Where an answer stands: its stacks, and the bytes of a character that is not complete yet."""

    stacks: Tuple[int, ...]
    partial: bytes = b""


class Stacks:
    """The ways that one answer may go on. `state` is where it stands."""

    def __init__(self, grammar: Grammar, tokens: Dict[Union[int, str], int]):
        """`tokens` has the ids of the grammar's tokens, by their names. Raises APIError 400 if it is too ambiguous."""
        self._grammar = grammar
        self._tokens = tokens
        self._known: List[_Stack] = [_BOTTOM]  # by their numbers
        self._numbers: Dict[_Stack, int] = {}
        self._unfolded: Dict[int, Tuple[int, ...]] = {}
        self._kept = 0  # how many stacks these are together
        self._most_known = _MOST_KNOWN
        begin = self._union(self._at(start, END) for start in grammar.rules[grammar.root])
        if begin is None:
            raise refusal(TOO_AMBIGUOUS)
        self.state = State(begin)

    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return END in self.state.stacks

    def after(self, token: int, text: bytes) -> Optional[State]:
        """Return where the answer stands after a token; None if it does not fit, or in too many ways."""
        codes, partial = decoded(self.state.partial + text) or ([], b"")
        by_text = self._by_text(codes, partial) if codes or partial else ()
        if by_text and partial:
            return State(by_text, partial)
        named = [stack for stack in self.state.stacks if codes and self._is_token(stack, token)]
        found = tuple(sorted({*by_text, *(self.step(named) or ())}))
        return State(found) if 0 < len(found) <= MAX_STACKS else None

    def _by_text(self, codes: List[int], partial: bytes) -> Tuple[int, ...]:
        stacks = self.with_char_on_top(self.state.stacks)
        for code in codes:
            stacks = self.step(stack for stack in stacks if self.meets(stack, code, code)) or ()
        return self.completed(stacks, partial)

    def move(self, state: State) -> None:
        """Let the answer stand where after() has said."""
        self.state = state
        if len(self._known) > self._most_known or self._kept > _MOST_KEPT:
            self._forget_others()

    # ---- steps, for masks.py too

    def step(self, stacks: Iterable[int]) -> Optional[Tuple[int, ...]]:
        """Return the stacks after the first element of each; None if there are too many."""
        return self._union(self._next(stack) for stack in stacks)

    def with_char_on_top(self, stacks: Iterable[int]) -> Tuple[int, ...]:
        """Return those stacks that a character may come next on."""
        return tuple(stack for stack in stacks if stack and isinstance(self.top(stack), Char))

    def meets(self, stack: int, first: int, last: int) -> bool:
        """Whether a character of a range may come next on a stack."""
        element = self.top(stack) if stack else None
        return isinstance(element, Char) and element.meets(first, last)

    def completed(self, stacks: Tuple[int, ...], partial: bytes) -> Tuple[int, ...]:
        """Return those stacks that a character that begins with these bytes may come next on; all if there are none."""
        if not partial:
            return stacks
        first, last = code_range(partial)
        return tuple(stack for stack in stacks if self.meets(stack, first, last))

    def top(self, stack: int) -> Element:
        """Return the element that comes next on a stack."""
        return self._grammar.elements[self._known[stack][0]]

    def named(self) -> List[Tuple[int, bool]]:
        """Return the tokens that may come next, by their ids, and whether it is any other token instead."""
        tops = [self.top(stack) for stack in self.state.stacks if stack]
        return [(self._tokens[top.name], top.inverted) for top in tops if isinstance(top, Token)]

    def _is_token(self, stack: int, token: int) -> bool:
        top = self.top(stack) if stack else None
        return isinstance(top, Token) and (self._tokens[top.name] == token) != top.inverted

    def _union(self, stacks: Iterable[int]) -> Optional[Tuple[int, ...]]:
        found: Set[int] = set()
        steps = 0
        for stack in stacks:
            unfolded = self._unfold(stack)
            steps += len(unfolded or ())
            found.update(unfolded or ())
            if unfolded is None or steps > _MOST_STEPS or len(found) > MAX_STACKS:
                return None
        return tuple(sorted(found))

    # ---- stacks

    def _next(self, stack: int) -> int:
        """Return the stack after its first element, of any kind; not for a repetition with a count."""
        position, _, parent = self._known[stack]
        return self._at(position + 1, parent)

    def _at(self, position: int, parent: int) -> int:
        """Return the stack on which the sequence from a position on comes before the parent."""
        return parent if self._grammar.elements[position] is None else self._number((position, _ONCE, parent))

    def _number(self, stack: _Stack) -> int:
        number = self._numbers.get(stack)
        if number is None:
            number = self._numbers[stack] = len(self._known)
            self._known.append(stack)
        return number

    def _unfold(self, stack: int) -> Optional[Tuple[int, ...]]:
        """Return the stacks that a stack stands for, with a character or a token on top; None if they are too many."""
        known = self._unfolded.get(stack)
        if known is not None:
            return known
        todo, seen, found = [stack], {stack}, []
        while todo:
            current = todo.pop()
            if not current or isinstance(self.top(current), (Char, Token)):
                found.append(current)
                continue
            fresh = [each for each in self._within(current) if each not in seen]
            seen.update(fresh)
            todo += fresh
            if len(seen) > _MOST_STEPS or len(found) > MAX_STACKS:
                return None
        self._unfolded[stack] = tuple(found)
        self._kept += len(found)
        return self._unfolded[stack]

    def _within(self, stack: int) -> List[int]:
        """Return what a stack with a rule or a repetition on top may become."""
        position, count, parent = self._known[stack]
        element = self._grammar.elements[position]
        rest = self._at(position + 1, parent) if count == _ONCE else parent
        if isinstance(element, Repeat):
            return self._again(element, position, max(count, 0), rest)
        starts = self._grammar.rules[element.rule] if isinstance(element, Ref) else ()
        return [self._at(start, rest) for start in starts]

    def _again(self, repeat: Repeat, position: int, count: int, rest: int) -> List[int]:
        """Return the ways on for a repetition, at a position, that has been done `count` times."""
        ways = [rest] if count >= repeat.low else []
        if repeat.high is None or count < repeat.high:
            done = count + 1 if repeat.high is not None else min(count + 1, repeat.low)
            after = rest if done == repeat.high else self._number((position, done, rest))
            ways.append(self._at(repeat.body, after))
        return ways

    def _forget_others(self) -> None:
        """Forget all stacks but those that the answer needs from here on."""
        known, self._known = self._known, [_BOTTOM]
        self._numbers, self._unfolded, self._kept = {}, {}, 0
        moved = {END: END}
        for stack in self.state.stacks:
            path = []
            while stack not in moved:
                path.append(stack)
                stack = known[stack][2]
            for each in reversed(path):
                position, count, parent = known[each]
                moved[each] = self._number((position, count, moved[parent]))
        self.state = State(tuple(sorted(moved[stack] for stack in self.state.stacks)), self.state.partial)
        self._most_known = _MOST_KNOWN + 2 * len(self._known)


# ---------------------------------------------------------------------------------------------------- bytes


def decoded(text: bytes) -> Optional[Tuple[List[int], bytes]]:
    """Return the code points of UTF-8, and the bytes of a last one that is not complete; None if it is not UTF-8.

    A code 0 is none: it ends llama.cpp's strings.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        codes = [ord(char) for char in decoder.decode(text)]
    except UnicodeDecodeError:
        return None
    return None if 0 in codes else (codes, decoder.getstate()[0])


def code_range(partial: bytes) -> Tuple[int, int]:
    """Return the first and the last code point that may begin with some bytes of UTF-8."""
    lead = partial[0]
    size, value = (2, lead & 0x1F) if lead < 0xE0 else (3, lead & 0x0F) if lead < 0xF0 else (4, lead & 0x07)
    for byte in partial[1:]:
        value = value << 6 | byte & 0x3F
    bits = 6 * (size - len(partial))
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[size]
    most = 0xD7FF if partial == b"\xed" else 0x10FFFF  # no halves of surrogate pairs
    return max(value << bits, least), min((value + 1 << bits) - 1, most)

"""Guessing the next tokens from the text so far: prompt lookup, also called n-gram speculation. Pure Python.

    Lookup       ── what followed the last tokens before, and how likely it follows again ──┐
    Pace.price   ── what a step with so many guesses takes ─────────────────────────────────┴──> worthwhile

Answers often repeat parts of their prompt or of themselves: code that is edited, quotations, lists. Where the last few
tokens have occurred before, what followed them then is a good guess. A guess costs a row more in the next batch, and
each one that the model confirms is a token won without a step of its own. What a row more costs, differs: nearly
nothing on a GPU, nearly a token on some CPUs.
"""

import bisect
import collections
from typing import Callable, Deque, Dict, List, Sequence, Tuple

SIZES = (4, 3)  # tokens that must match; the longer match is the better guess
GAIN = 1.03  # times the speed without guesses: less is not worth it
_RUNS = 32  # runs that are remembered
_PRIOR = 2  # runs; what is believed of all texts weighs as much as so many that were seen in this one
_AT_ONCE = 4096  # tokens that are read in one step: some 10 ms


class Lookup:
    """One sequence's n-grams, and its last runs. Guess with the same list of tokens each time, grown at its end only.

    A run: how many tokens in a row came as they had come before, from a match on. The longer the present one is, the
    longer it goes on: one of n tokens goes on with a chance of (n + 1) / (n + 2), until more is known of this text.
    """

    def __init__(self) -> None:
        self._ends: Dict[Tuple[int, ...], int] = {}  # n-gram -> where it ended last
        self._seen = 0
        self._next = 0  # where the token stands that should come next; 0 where nothing is known of it
        self._run = 0
        self._recent: Deque[int] = collections.deque(maxlen=_RUNS)  # the last runs' lengths

    def guess(self, tokens: List[int], most: int) -> List[int]:
        """Return at most `most` tokens that may come next; none where the last tokens have not occurred before."""
        for end in range(self._seen + 1, min(len(tokens), self._seen + _AT_ONCE) + 1):
            self._read(tokens, end)
        if not self._next or self._seen < len(tokens):
            return []
        return tokens[self._next : self._next + most]

    def chances(self, count: int) -> List[float]:
        """Return for each of the next `count` guesses how likely it and all before it come true, from 0 to 1."""
        runs, run = sorted(self._recent), self._run + 1
        lasting = [len(runs) - bisect.bisect_left(runs, self._run + each) for each in range(count + 1)]
        return [
            (_PRIOR * run / (run + each) + lasting[each]) / (_PRIOR + lasting[0]) for each in range(1, count + 1)
        ]

    def _read(self, tokens: List[int], end: int) -> None:
        """Take in the token before `end`."""
        if self._next:
            self._compare(tokens[self._next] == tokens[end - 1])
        for size in SIZES:
            if end >= size:
                key = tuple(tokens[end - size : end])
                self._next = self._next or self._ends.get(key, 0)
                self._ends[key] = end
        self._seen = end

    def _compare(self, came: bool) -> None:
        """Go on with the present run, or end it."""
        if came:
            self._next += 1
            self._run += 1
            return
        self._recent.append(self._run)
        self._next = self._run = 0


def worthwhile(chances: Sequence[Sequence[float]], price: Callable[[int], float]) -> List[int]:
    """Return how many guesses for each stream make the next step the fastest; none unless it gains GAIN.

    `chances` are those of each stream's guesses; each step gives it a token without them, too. `price` says how many
    seconds the step takes with so many guesses in all. The likeliest ones come first.
    """
    likeliest = sorted(((chance, stream) for stream, row in enumerate(chances) for chance in row), reverse=True)
    tokens, best = float(len(chances)), 0
    most = tokens / price(0) * GAIN if likeliest else 0.0
    for count, (chance, _) in enumerate(likeliest, 1):
        tokens += chance
        rate = tokens / price(count)
        if rate > most:
            best, most = count, rate
    taken = collections.Counter(stream for _, stream in likeliest[:best])
    return [taken[stream] for stream in range(len(chances))]

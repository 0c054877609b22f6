"""Guessing the next tokens from the text so far: prompt lookup, also called n-gram speculation. Pure Python.

Answers often repeat parts of their prompt or of themselves: code that is edited, quotations, lists. Where the last few
tokens have occurred before, what followed them then is a good guess. A guess costs a few more rows in the next batch,
and each row that the model confirms is a token won without a step of its own.
"""

from typing import Dict, List, Tuple

SIZES = (4, 3)  # tokens that must match; the longer match is the better guess


class Lookup:
    """One sequence's n-grams. Guess with the same list of tokens each time, grown at its end only."""

    def __init__(self) -> None:
        self._ends: Dict[Tuple[int, ...], int] = {}  # n-gram -> where it ended last
        self._seen = 0

    def guess(self, tokens: List[int], most: int) -> List[int]:
        """Return at most `most` tokens that may come next; none where the last tokens have not occurred before."""
        found = 0
        for size in SIZES:
            found = found or self._ends.get(tuple(tokens[-size:]), 0)
        self._learn(tokens)
        return tokens[found : found + most] if found else []

    def _learn(self, tokens: List[int]) -> None:
        for end in range(self._seen + 1, len(tokens) + 1):
            for size in SIZES:
                if end >= size:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._seen = len(tokens)

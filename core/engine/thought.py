"""A thought with a budget: when its tokens are used up, its end is written in the model's place, and the answer begins.

    BEFORE ── opener ──> WITHIN ── closer ──────────────> AFTER
                           └── budget used up ──> ENDING ───┘
    AFTER ── opener ──> WITHIN, where thoughts may come again: they share the budget

Only the tokens matter, so an answer that is carried on stands where it stood. Pure Python.

Source: the reasoning budget of llama.cpp's server (common/reasoning-budget.cpp).
"""

import codecs
import enum
from typing import Callable, Optional, Sequence

from core.ask import Budget


class _Stage(enum.Enum):
    BEFORE = "a thought may come"
    WITHIN = "the model thinks"
    ENDING = "the end of the thought is written"
    AFTER = "the thought is over, or none came"


class Thought:
    """How far one answer's thought has come. `due` is the token that must come next, None where any may."""

    def __init__(self, budget: Budget, ending: Sequence[int], piece: Callable[[int], bytes]):
        """`ending` are the tokens that end a thought, `piece` gives a token's bytes."""
        self._budget = budget
        self._ending = ending
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stage = _Stage.BEFORE
        self._text = ""  # that may be, or hold, the marker that is looked for
        self._left = budget.tokens
        self._written = 0  # tokens of the ending
        if budget.begun:
            self._enter("")

    @property
    def due(self) -> Optional[int]:
        """The token that must come next."""
        return self._ending[self._written] if self._stage is _Stage.ENDING else None

    def take(self, token: int) -> None:
        """Go on by a token of the answer."""
        text = self._decoder.decode(self._piece(token))
        if self._stage is _Stage.ENDING:
            return self._write(token)
        self._text += text
        if self._stage is _Stage.BEFORE:
            self._look_at_beginning()
        elif self._stage is _Stage.WITHIN:
            self._think()
        elif self._budget.often:
            self._look_for_another()

    def _look_at_beginning(self) -> None:
        opener, come = self._budget.opener.strip(), self._text.lstrip()
        if come.startswith(opener):
            self._enter(come[len(opener) :])
        elif not opener.startswith(come):
            self._stage = _Stage.AFTER
            if self._budget.often:
                self._look_for_another()

    def _look_for_another(self) -> None:
        _, found, rest = self._text.partition(self._budget.opener)
        if found:
            self._enter(rest)
        else:
            self._text = self._text[-len(self._budget.opener) :]

    def _enter(self, rest: str) -> None:
        self._stage, self._text = _Stage.WITHIN, rest
        if self._left <= 0:
            self._end()

    def _think(self) -> None:
        closer = self._budget.closer
        self._left -= 1
        if closer in self._text:
            self._leave()
        elif self._left <= 0 and not self._decoder.getstate()[0]:  # no half of a character is left behind
            self._end()
        else:
            self._text = self._text[-len(closer) :]

    def _end(self) -> None:
        self._stage, self._written = _Stage.ENDING, 0
        if not self._ending:
            self._leave()

    def _write(self, token: int) -> None:
        """Go on in the ending; give it up where something else has come, since a grammar did not take it."""
        expected, self._written = self._ending[self._written], self._written + 1
        if token != expected or self._written == len(self._ending):
            self._leave()

    def _leave(self) -> None:
        self._stage, self._text = _Stage.AFTER, ""

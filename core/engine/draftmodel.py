"""Guesses at the next tokens by a small model with the same vocabulary (--model-draft). The engine's thread's.

It has a slot for each of the engine's. What a slot's text has that its cells have not, is evaluated first; then each
step gives one more guess for every text, the likeliest token, until there are enough or none is likely enough. The
large model confirms or refuses them in one batch (choosing.py), so they change no answer.
"""

import logging
from dataclasses import replace
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy

from core.engine.llama.batch import Run
from core.engine.llama.context import Context
from core.engine.llama.model import Model
from core.engine.scheduler import common_prefix
from core.errors import APIError
from core.settings import EngineSettings

log = logging.getLogger("comeapi.engine")

_CATCH_UP = 64  # rows of texts in one step: while a long prompt is evaluated here, streams wait for it
_MOST_STRANGERS = 128  # tokens by which two vocabularies may differ at their ends, as in llama.cpp


class Wanted(NamedTuple):
    """A slot's text, and how many tokens may be guessed after it."""

    slot: int
    tokens: List[int]
    most: int


class DraftModel:
    """A small model that guesses for `model`. Raises APIError 500 where it can't be loaded, or does not fit that."""

    def __init__(self, settings: EngineSettings, model: Model):
        own = replace(settings, model_draft="", draft_max=0, lora=(), context_shift=False)
        self._least = settings.draft_p_min
        self._model = Model(settings.draft_file, own, lambda share: True)
        self._shared = min(self._model.vocabulary, model.vocabulary)  # tokens that both have
        try:
            self._check(model)
            self._context = Context(self._model, own)
        except APIError:
            self._model.close()
            raise
        self._held: List[List[int]] = [[] for _ in range(settings.slots)]  # the tokens in each slot's cells

    def close(self) -> None:
        """Free it."""
        self._context.close()
        self._model.close()

    def set_threads(self, count: int) -> None:
        """Let it compute with so many threads."""
        self._context.set_threads(count)

    def guess(self, wanted: Sequence[Wanted]) -> Dict[int, List[int]]:
        """Return the guesses for each slot; none where its text has not been evaluated to its end yet."""
        guesses: Dict[int, List[int]] = {each.slot: [] for each in wanted}
        most = {each.slot: each.most for each in wanted}
        runs = self._catch_up(wanted)
        while runs:
            tokens = self._evaluate(runs)
            following = []
            for run, token in zip(runs, tokens):
                if token is not None:
                    guesses[run.slot].append(token)
                    if len(guesses[run.slot]) < most[run.slot]:
                        following.append(Run(run.slot, run.start + len(run.tokens), [token], 1))
            runs = following
        return guesses

    def _check(self, model: Model) -> None:
        """Raise APIError 500 where a guess of this model may mean something else to the other one."""
        mine, theirs = self._model, model
        close = max(mine.vocabulary, theirs.vocabulary) - self._shared <= _MOST_STRANGERS
        same = close and all(mine.piece(token, True) == theirs.piece(token, True) for token in range(self._shared))
        if not same or mine.pooling or not mine.forgets_partly:
            message = "%s can't guess for %s: " % (mine.file.name, theirs.file.name)
            why = "its vocabulary is another one" if not same else "its cells can't be given up one by one"
            raise APIError(500, message + why, "model_unsuitable", "model_name")

    def _catch_up(self, wanted: Sequence[Wanted]) -> List[Run]:
        """Return the runs that bring cells up to date with texts, in part where a text is long."""
        runs, left = [], _CATCH_UP
        for slot, tokens, most in wanted:
            kept = min(common_prefix(self._held[slot], tokens), len(tokens) - 1)
            if len(self._held[slot]) > kept:
                self._context.trim(slot, kept)
                self._held[slot] = self._held[slot][:kept]
            count = min(len(tokens) - kept, left)
            if most > 0 and count > 0 and len(tokens) + most < self._context.n_ctx:
                runs.append(Run(slot, kept, tokens[kept : kept + count], int(kept + count == len(tokens))))
                left -= count
        return runs

    def _evaluate(self, runs: List[Run]) -> List[Optional[int]]:
        """Evaluate runs; return the likeliest token after each: None where it is too unlikely, or not asked for."""
        status, rows = self._context.decode(runs)
        if status:
            log.warning("the draft model could not evaluate %d texts (status %d)", len(runs), status)
            for run in runs:
                self._context.forget(run.slot)
                self._held[run.slot] = []
            return [None] * len(runs)
        for run in runs:
            self._held[run.slot] += run.tokens
        return [self._likeliest(row) if run.logits else None for run, row in zip(runs, rows)]

    def _likeliest(self, row: int) -> Optional[int]:
        logits: Any = self._context.logits(row, self._model.vocabulary)[: self._shared]
        token = int(logits.argmax())
        if self._least and 1.0 / numpy.exp(logits - logits[token]).sum() < self._least:
            return None
        return token

"""Decoding a step's chunks, and what is done where llama.cpp refuses.

    no room in the cells      again without idle cells; then in smaller parts; then the one that is left fails
    anything else             all that were in the step fail, and the others go on in a new context
"""

import logging
import time
from dataclasses import replace
from typing import List

from core.engine.choosing import Choosing
from core.engine.llama.batch import Run
from core.engine.running import Running
from core.engine.scheduler import Chunk
from core.errors import APIError

log = logging.getLogger("comeapi.engine")

_NO_ROOM = 1  # llama_decode: no room in the cells; they are as they were before


class Decoding:
    """Decodes chunks and lets the next tokens be chosen. The engine's thread's."""

    def __init__(self, running: Running, choosing: Choosing):
        self._running = running
        self._choosing = choosing

    def evaluate(self, chunks: List[Chunk]) -> None:
        """Decode chunks, and extend the generations that have come to their end with them."""
        for chunk in chunks:
            chunk.generation.tell_progress()
        started = time.monotonic()
        self._running.model.context.apply(chunks[0].generation.adapters)
        status, rows = self._running.model.context.decode([_run(chunk) for chunk in chunks])
        self._running.tally.seconds["decode"] += time.monotonic() - started
        if status == _NO_ROOM:
            self._make_room(chunks)
        elif status:
            self.fail(status, chunks)
        else:
            last = {chunk.generation: row for chunk, row in zip(chunks, rows) if chunk.last}
            self._running.scheduler.commit(chunks)
            for chunk in chunks:
                chunk.generation.tell_progress()
            self._choosing.extend(last)

    def _make_room(self, chunks: List[Chunk]) -> None:
        """Try again where there was no room for a batch: without idle cells, then in smaller parts; then one fails."""
        for chunk in chunks:
            chunk.generation.drafts = []
        chunks = [replace(chunk, drafts=()) for chunk in chunks]
        idle = self._running.scheduler.idle_slots()
        if idle:
            for slot in idle:
                self._running.forget(slot)
            self.evaluate(chunks)
        elif len(chunks) > 1:
            middle = len(chunks) // 2
            self.evaluate(chunks[:middle])
            self.evaluate([chunk for chunk in chunks[middle:] if chunk.start == chunk.generation.done])
        elif chunks[0].count > 1:
            self.evaluate([Chunk(chunks[0].generation, chunks[0].start, chunks[0].count // 2)])
        else:
            message = "The key-value cache has no room for this request; a smaller one may fit."
            error = APIError(503, message, "no_room", headers=[("Retry-After", "1")])
            self._running.end(chunks[0].generation, error)
            self._running.forget(chunks[0].generation.slot)

    def fail(self, status: int, chunks: List[Chunk]) -> None:
        """Fail what was in a step that broke, and go on in a new context: nobody knows what the old one holds.

        A generation that was not in it begins anew with all its tokens, and goes on where it was.
        """
        log.error("llama_decode answered %d to a batch of %d generations", status, len(chunks))
        error = APIError(500, "llama.cpp could not evaluate this request (status %d)." % status, "decode_failed")
        for chunk in chunks:
            self._running.end(chunk.generation, error)
        self._running.model.renew_context()
        self._running.scheduler.restart()
        for generation in self._running.scheduler.running:
            generation.cached_tokens = 0


def _run(chunk: Chunk) -> Run:
    """Return a chunk as llama/batch.py takes it: only the end of its tokens, and guesses after it, want logits."""
    tokens = chunk.generation.tokens[chunk.start : chunk.start + chunk.count] + list(chunk.drafts)
    return Run(chunk.generation.slot, chunk.start, tokens, 1 + len(chunk.drafts) if chunk.last else 0)

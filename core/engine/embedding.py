"""One step of a model that gives embeddings, or ranks: parts of texts, or whole texts where the model wants that.

The vectors of a text's tokens are pooled here, piece by piece. llama.cpp pools a text only if it is one piece, and
where it cuts a batch of texts of unequal lengths, it pools the last part of each. Ranks alone come from there: the last
piece's row decides.
"""

import time
from array import array
from typing import Any, List

from core.ask import RANKS
from core.engine.decoding import Decoding
from core.engine.generation import Generation
from core.engine.llama.batch import Run
from core.engine.outcome import Embedded
from core.engine.running import Running
from core.engine.scheduler import Chunk


class Embedding:
    """Computes embeddings. The cells are of no use to anybody afterwards. The engine's thread's."""

    def __init__(self, running: Running, decoding: Decoding):
        self._running = running
        self._decoding = decoding

    def step(self) -> None:
        """Compute the embeddings of those whose turn it is."""
        running = self._running
        chunks = self._chunks()
        if not chunks:
            return
        started = time.monotonic()
        running.model.context.apply(chunks[0].generation.adapters)
        status, rows = running.model.context.embed([_run(chunk) for chunk in chunks])
        running.tally.seconds["decode"] += time.monotonic() - started
        if status:
            return self._decoding.fail(status, chunks)
        running.tally.count_batch(len(chunks))
        running.tally.counts["prompt_tokens"] += sum(chunk.count for chunk in chunks)
        running.scheduler.commit(chunks)
        first = 0
        for chunk in chunks:
            self._take(chunk, rows[first : first + chunk.count])
            first += chunk.count

    def _chunks(self) -> List[Chunk]:
        """Return pieces of all texts that run, or as many whole ones as fit in one batch."""
        scheduler, context = self._running.scheduler, self._running.model.context
        scheduler.take_turn()
        if context.in_pieces:
            return scheduler.plan(context.n_batch)
        chunks: List[Chunk] = []
        room = context.n_batch
        for generation in scheduler.running:
            if generation.adapters == scheduler.turn and generation.pending <= room:
                chunks.append(Chunk(generation, 0, generation.pending))
                room -= generation.pending
        return chunks

    def _take(self, chunk: Chunk, rows: Any) -> None:
        """Add a chunk's rows to its text's embedding, and tell that once it is whole."""
        generation, resident = chunk.generation, self._running.model
        if chunk.start == 0:
            generation.pool = Pool(resident.model.pooling)
        if resident.model.gives != RANKS:
            generation.pool.add(rows)
        elif chunk.last:
            generation.pool.add([resident.context.ranks(generation.slot)])
        if chunk.last:
            self._end(generation)

    def _end(self, generation: Generation) -> None:
        tokens = len(generation.tokens)
        self._running.end(generation, Embedded(generation.pool.vectors(tokens), tokens))
        self._running.forget(generation.slot)


def _run(chunk: Chunk) -> Run:
    tokens = chunk.generation.tokens[chunk.start : chunk.start + chunk.count]
    return Run(chunk.generation.slot, chunk.start, tokens, chunk.count)


class Pool:
    """What a text's rows come to, piece by piece. `pooling` is one of core/settings.py's POOLING."""

    def __init__(self, pooling: str):
        self._pooling = pooling
        self._kept: List[Any] = []

    def add(self, rows: Any) -> None:
        """Add the rows of the next tokens: an array, or a list of arrays of 32-bit floats."""
        if self._pooling == "none":
            self._kept += [array("f", row.tobytes()) for row in rows]
        elif self._pooling == "mean":
            total = rows.sum(axis=0, dtype="float64")
            self._kept = [self._kept[0] + total if self._kept else total]
        elif self._pooling == "cls":
            self._kept = self._kept or [array("f", rows[0].tobytes())]
        else:
            self._kept = [array("f", rows[-1].tobytes())]

    def vectors(self, tokens: int) -> "List[array[float]]":
        """Return the embedding of a text of so many tokens: one vector, or one for each."""
        return [array("f", self._kept[0] / tokens)] if self._pooling == "mean" else self._kept

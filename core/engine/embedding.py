"""One step of a model that gives embeddings: as many whole prompts as one batch holds."""

import time
from typing import List

from core.engine.decoding import Decoding
from core.engine.generation import Generation
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
        running, batch = self._running, self._batch()
        if not batch:
            return
        started = time.monotonic()
        status, vectors = running.model.context.embed({each.slot: each.tokens for each in batch})
        running.tally.seconds["decode"] += time.monotonic() - started
        if status:
            return self._decoding.fail(status, [Chunk(each, 0, len(each.tokens)) for each in batch])
        running.tally.count_batch(len(batch))
        for generation, vector in zip(batch, vectors):
            running.tally.counts["prompt_tokens"] += len(generation.tokens)
            running.model.context.forget(generation.slot)
            running.end(generation, Embedded(vector, len(generation.tokens)))

    def _batch(self) -> List[Generation]:
        """Return as many of those that run as fit in one batch."""
        batch: List[Generation] = []
        rows = 0
        for generation in self._running.scheduler.running:
            if rows + len(generation.tokens) <= self._running.model.context.n_batch:
                batch.append(generation)
                rows += len(generation.tokens)
        return batch

"""Context shift: an answer that fills its context goes on, without the older part of what it has read and written.

Where --context-shift is on, before each step:

    keep       n_keep tokens of the beginning, and one more where a text begins with a token of the model's
    drop       half of the others, or n_discard of them: the oldest
    go on      with the rest moved to the places that have become free (llama_memory_seq_rm, llama_memory_seq_add)

as llama-server does it. The rest has been evaluated after what is dropped, and still knows of it. So its cells are
those of no prompt, and no other request takes them over (scheduler.py).

A context is shifted when all its cells but one are taken: when that happens goes by the number of tokens alone. So an
answer that is carried on is shifted at the same places as before: its tokens are evaluated up to each of them in turn.
"""

from core.engine.generation import Generation
from core.engine.running import Running
from core.errors import APIError

_LEAST_LEFT = 4  # tokens of a context that are not kept


class Shifting:
    """Makes room in full contexts. The engine's thread's."""

    def __init__(self, running: Running):
        self._running = running

    def make_room(self) -> None:
        """Shift the contexts that are full of what has more to come."""
        if not self._running.settings.context_shift:
            return
        last = self._running.model.context.n_ctx - 1
        for generation in self._running.scheduler.running:
            if generation.done >= last and generation.pending:
                self._shift(generation)

    def _shift(self, generation: Generation) -> None:
        keep = self._kept(generation)
        left = generation.done - keep
        count = max(1, min(generation.ask.discard or left // 2, left - 1))
        if self._running.model.context.shift(generation.slot, keep, count):
            generation.drop(keep, count)
            self._running.tally.counts["context_shifts"] += 1
        else:
            self._running.end(generation, APIError(500, "The context could not be shifted.", "no_context_shift"))

    def _kept(self, generation: Generation) -> int:
        """Return how many tokens at the beginning stay."""
        wanted = generation.ask.keep
        if wanted is None:
            wanted = self._running.settings.keep
        keep = generation.prompt_tokens if wanted < 0 else wanted
        model = self._running.model
        return max(0, min(keep + model.model.adds_bos, model.context.n_ctx - _LEAST_LEFT))

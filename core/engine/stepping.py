"""One step of the engine: plan a batch, evaluate it, choose the next tokens. The engine's thread's.

    choose_threads   those that are there; other backends' prompts have their turns first
    admit            requests that wait get their slots, and cells that they can take over
    step             shifting.py ── scheduler.plan ── decoding.py ── choosing.py; embedding.py, for models that embed
"""

import time

from core.ask import TEXT
from core.engine.admission import make_ready
from core.engine.choosing import Choosing
from core.engine.company import Step
from core.engine.decoding import Decoding
from core.engine.embedding import Embedding
from core.engine.generation import Generation
from core.engine.outcome import Replayed
from core.engine.resident import Resident
from core.engine.running import Running
from core.engine.scheduler import Chunk, Reuse
from core.engine.shifting import Shifting
from core.engine.threads import Threads
from core.errors import APIError

ALONE = 4  # times the time of a step for which nobody waits


class Stepping:
    """Steps what runs on the model that is loaded."""

    def __init__(self, running: Running):
        self._running = running
        self.threads = Threads(running.settings)
        self._choosing = Choosing(running)
        self._decoding = Decoding(running, self._choosing)
        self._shifting = Shifting(running)
        self._embedding = Embedding(running, self._decoding)
        self.expected = 0.0  # seconds that the step should take, by what earlier ones took; read by any thread

    def close(self) -> None:
        """End the helpers."""
        self._choosing.close()
        self.threads.close()

    def rest(self) -> None:
        """There is nothing to step: other backends may have the cores."""
        self.threads.rest()

    def choose_threads(self) -> None:
        """Choose how many threads the next step gets, if there is one. May wait for other backends that compute."""
        resident, scheduler = self._running.resident, self._running.scheduler
        if resident is None or not (scheduler.running or scheduler.waiting):
            return
        count = self.threads.choose(bool(resident.siding and resident.siding.has_long))
        resident.context.set_threads(count)
        if resident.draft_model:
            resident.draft_model.set_threads(count)
        self._running.tally.threads = count

    def admit(self) -> None:
        """Give free slots to those who wait for the model that is loaded."""
        while True:
            generation = self._running.scheduler.next_in_line(self._running.path)
            if generation is None:
                return
            try:
                make_ready(generation, self._running.model)
            except APIError as error:
                self._running.end(generation, error)
            else:
                self._begin(generation)

    def _begin(self, generation: Generation) -> None:
        """Give the first in line its slot; tell what it would have told before, where it is begun in the middle."""
        generation.mark("admitted")
        if generation.ended:
            return self._running.end(generation, Replayed(generation.replayed, generation.ended))
        if generation.begun:
            generation.tell(Replayed(generation.replayed))
        self._reuse(self._running.scheduler.admit())

    def step(self) -> None:
        """Plan a batch, evaluate it, and choose each generation's next token."""
        resident = self._running.resident
        if resident is None or not self._running.scheduler.running:
            return
        self.expected = resident.slowest_batch
        if resident.model.gives != TEXT:
            return self._embedding.step()
        self._shifting.make_room()
        copy = self._running.scheduler.next_reuse()
        if copy:
            self._reuse(copy)
        for generation in self._running.scheduler.running:
            generation.paused = generation.generating and generation.channel.full
        self._running.scheduler.take_turn()
        self._choosing.guess(self.threads.pace)
        running = self._running.scheduler.streams()
        streams, guesses = len(running), sum(len(each.drafts) for each in running)
        budget = self.threads.pace.budget(streams, self._time(resident, streams), guesses)
        chunks = self._running.scheduler.plan(budget)
        if copy and not chunks:
            # llama.cpp copies cells when it decodes the next time; the siding would take them before that.
            chunks = [Chunk(copy.generation, copy.generation.done, 1)]
        if not chunks:
            return
        rows = sum(chunk.count for chunk in chunks) - streams
        self.expected = self.threads.pace.expect(streams, rows, guesses) or resident.slowest_batch
        self.threads.begin(self.expected)
        started = time.monotonic()
        self._decoding.evaluate(chunks)
        self._observe(len(chunks), Step(streams, rows, time.monotonic() - started, self.expected, guesses))

    def _time(self, resident: Resident, streams: int) -> float:
        """Return the seconds that the step may take: more where no stream and no owner of its threads waits."""
        target = self._running.settings.step_target
        if resident.siding and resident.siding.generation:
            target *= 0.5
        return target if streams or self.threads.borrows else target * ALONE

    def _reuse(self, reuse: Reuse) -> None:
        """Take over cells that hold the beginning of a prompt."""
        generation, counts = reuse.generation, self._running.tally.counts
        count = self._running.model.context.reuse(reuse.source, generation.slot, reuse.count)
        self._running.scheduler.reused(reuse, count)
        generation.cached_tokens = min(count, generation.prompt_tokens)
        counts["cached_tokens"] += count
        counts["cache_hits"] += count > 0

    def _observe(self, sequences: int, step: Step) -> None:
        """Learn from a step of so many sequences, the streams among them."""
        lazy = self._running.model.lazy_siding
        if not (lazy and lazy.being_made):
            self.threads.observe(step)
        self._running.tally.step_seconds = step.seconds
        self._running.tally.count_batch(sequences)
        self._running.tally.counts["prompt_tokens"] += step.prompt_rows

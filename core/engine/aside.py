"""When a prompt is evaluated in the siding (siding.py), and how it comes back.

    long prompts     always; if the siding is not there yet, they wait until it is made
    short prompts    where the siding is there, and quick, and has no long one; else in batches

The siding is made while nothing runs, so that nobody notices; or when the first prompt comes for it before that.
"""

import logging
import time
from typing import Optional, Tuple

from core.engine.generation import Generation
from core.engine.making import LazySiding
from core.engine.running import Running
from core.engine.siding import SHORT, Siding
from core.engine.threads import Threads
from core.errors import APIError

log = logging.getLogger("comeapi.engine")

REST = 2.0  # seconds for which nothing runs; backends that start together are all ready by then


class Aside:
    """Gives the siding its prompts and its time. The engine's thread's."""

    def __init__(self, running: Running, threads: Threads):
        self._running = running
        self._threads = threads
        self._busy = 0.0  # when something ran, or a model was loaded, for the last time
        self._last: Optional[LazySiding] = None  # of the model that was loaded then

    def give_time(self, step: float) -> None:
        """Let a prompt be evaluated in the siding, after a step that took so many seconds, until the next is due.

        Where steps are long, it gets as much time as they do: it comes to its end, too.
        """
        resident = self._running.resident
        if not resident or not resident.lazy_siding:
            return
        self._make_at_rest(resident.lazy_siding)
        self._admit_short_ones(resident.lazy_siding)
        siding, generation = self._at_work(resident.lazy_siding)
        if not siding or not generation:
            return
        if not siding.over:
            self._run(siding, step)
            if siding.has_long:  # its copy back has a turn of its own
                return
        if siding.over:
            self._come_back(siding, generation)

    def _make_at_rest(self, lazy: LazySiding) -> None:
        """Let the siding be made after a rest. Beside streams it takes some seconds, in which steps are slow."""
        now = time.monotonic()
        if self._running.scheduler.running or lazy is not self._last:
            self._busy, self._last = now, lazy
        elif now - self._busy > REST:
            lazy.prepare()

    def _admit_short_ones(self, lazy: LazySiding) -> None:
        """Let short prompts go to a quick siding, too, but not wait behind a long one, nor until it is made."""
        scheduler, siding = self._running.scheduler, lazy.siding
        if siding:
            scheduler.aside_short = SHORT if siding.quick and not siding.has_long else 0
        elif lazy.quick and any(each.prompt_tokens > SHORT for each in scheduler.running):
            lazy.prepare()

    def _at_work(self, lazy: LazySiding) -> Tuple[Optional[Siding], Optional[Generation]]:
        """Return the siding and the prompt that is evaluated there, or that begins now; None where there is none."""
        siding = lazy.siding
        if siding and siding.generation:
            return siding, siding.generation
        generation = self._running.scheduler.next_aside()
        siding = self._get(lazy, generation) if generation else None
        if siding and generation:
            generation.tell_progress()
            begun = self._running.model.context.save(generation.slot) if generation.done else None
            siding.start(generation, begun)
        return siding, generation

    def _get(self, lazy: LazySiding, generation: Generation) -> Optional[Siding]:
        """Return the siding, or None where it is being made. Where it can't be, evaluate the prompt in batches."""
        scheduler = self._running.scheduler
        try:
            return lazy.get(0 if scheduler.streams() else self._running.settings.step_target)
        except APIError as error:
            log.warning("a prompt of %d tokens is evaluated in batches: %s", len(generation.tokens), error.message)
            scheduler.returned(generation, generation.done)
            return None

    def _run(self, siding: Siding, step: float) -> None:
        target = self._running.settings.step_target
        started = time.monotonic()
        siding.threads = self._threads.begin_aside(siding.used, siding.has_long)
        siding.run(max(target - step, target * 0.8, step), self._threads.wanted_back)
        self._threads.end_aside()
        self._running.tally.seconds["siding"] += time.monotonic() - started

    def _come_back(self, siding: Siding, generation: Generation) -> None:
        """Put what was evaluated aside into its generation's slot; where that fails, it begins anew, in batches."""
        resident, counts = self._running.model, self._running.tally.counts
        cells = siding.collect()
        done = len(generation.tokens) - 1
        if cells and resident.context.load(generation.slot, cells):
            counts["prompt_tokens"] += done - generation.done
            counts["prompts_aside"] += 1
        else:
            log.warning("a prompt of %d tokens could not be evaluated aside", done + 1)
            resident.context.forget(generation.slot)
            generation.cached_tokens = done = 0
        self._running.scheduler.returned(generation, done)

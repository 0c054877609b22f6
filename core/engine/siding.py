"""A siding: where a long prompt is evaluated while the streams' steps pass.

A decode can't be cut short, and in pieces small enough for nobody to notice a prompt takes two to four times as long
(llama.cpp's CPU kernels want 64 rows and more). So a long prompt gets a context of its own, of one slot, and a thread
of its own, in which it is decoded in large pieces; and between any two operations of its graph, which take from
microseconds to tens of milliseconds, it halts when its time is up, until the engine has run a step for the streams:

    engine's thread   step ── run(seconds) ░░░░░░░░░░░ step ── run(seconds) ░░░░░ step ── collect()
    siding's thread           ▓▓▓▓▓▓▓▓▓▓▓ (halts)              ▓▓▓▓▓ (over)

One of the two threads computes at any time. When the prompt is evaluated but for its last token, its cells are copied
into its slot of the engine's context (172 MB, 0.1 s for 1,500 tokens of a 0.6B model), and it goes on as a stream.
The thread ends with its prompt: OpenMP counts living threads and spins less when there are more than cores.
"""

import threading
import time
from typing import Optional

from core.engine.cells import SavedCells
from core.engine.generation import Generation
from core.engine.llama.batch import Run
from core.engine.llama.context import Context


class Siding:
    """A context of one slot in which one long prompt at a time is evaluated. For the engine's thread."""

    def __init__(self, context: Context):
        self.generation: Optional[Generation] = None  # what is being evaluated
        self.threads = 0  # that it may have in its next piece; 0 for what the context has
        self._context = context
        self._context.call_between(self._halt)
        self._thread: Optional[threading.Thread] = None
        # The two threads' turns; what follows is only touched by the one whose turn it is.
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._until = 0.0
        self._abandoned = False
        self.over = False  # what is being evaluated is ready to be collected
        self._cells: Optional[SavedCells] = None

    def start(self, generation: Generation, cells: Optional[SavedCells]) -> None:
        """Take a prompt in, whose first `done` tokens are evaluated already: in `cells`, if there are any."""
        self.generation = generation
        self._abandoned = self.over = False
        self._cells = None
        self._thread = threading.Thread(target=self._main, args=(generation, cells), name="siding", daemon=True)
        self._thread.start()

    def run(self, seconds: float) -> None:
        """Let the prompt be evaluated for so long, or until it is over."""
        self._until = time.monotonic() + seconds
        self._go.release()
        self._back.acquire()

    def collect(self) -> Optional[SavedCells]:
        """Return the cells of all the prompt's tokens but the last, once it is over; None if it failed."""
        if self._thread:
            self._thread.join()
        self.generation = None
        cells, self._cells = self._cells, None
        return cells

    def abandon(self) -> None:
        """Stop evaluating, if anything is."""
        if self.generation is not None:
            self._abandoned = True
            while not self.over:
                self.run(0)
            self.collect()

    def close(self) -> None:
        """Stop evaluating, and free the context."""
        self.abandon()
        self._context.close()

    # ---- the siding's thread

    def _main(self, generation: Generation, cells: Optional[SavedCells]) -> None:
        self._go.acquire()
        try:
            if self._evaluate(generation, cells):
                self._until = 0.0  # a turn of its own for the copy
                self._halt()
                self._cells = self._context.save(0)
        finally:
            self.over = True
            self._back.release()

    def _evaluate(self, generation: Generation, cells: Optional[SavedCells]) -> bool:
        """Evaluate all but the prompt's last token: that one gives the first logits, in the engine's context."""
        self._context.forget(0)
        self._context.apply(generation.adapters)
        if cells and not self._context.load(0, cells):
            return False
        done, last = generation.done, len(generation.tokens) - 1
        while done < last:
            tokens = generation.tokens[done : min(last, done + self._context.n_batch)]
            self._context.set_threads(self.threads)
            status, _ = self._context.decode([Run(0, done, tokens)])
            if status or self._abandoned:
                return False
            done += len(tokens)
        return True

    def _halt(self) -> bool:
        """Wait for the next turn when this one's time is up. Whether to give up."""
        if time.monotonic() >= self._until:
            self._back.release()
            self._go.acquire()
        return self._abandoned

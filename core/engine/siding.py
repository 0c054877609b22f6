"""A siding: where a long prompt is evaluated while the streams' steps pass.

A decode can't be cut short, and in pieces small enough for nobody to notice a prompt takes two to four times as long
(llama.cpp's CPU kernels want 64 rows and more). So a long prompt gets a context of its own, of one slot, and a thread
of its own, in which it is decoded in large pieces; and between any two operations of its graph, which take from
microseconds to tens of milliseconds, it halts when its time is up, until the engine has run a step for the streams:

    engine's thread   step ── run(seconds) ░░░░░░░░░░░ step ── run(seconds) ░░░░░ step ── collect()
    siding's thread           ▓▓▓▓▓▓▓▓▓▓▓ (halts)              ▓▓▓▓▓ (over)

Where llama.cpp computes many rows faster with weights that are not repacked (llama/native.py), the siding has weights
of its own: the file's, mapped, which all processes share. Such a siding is quick, and takes short prompts, too.

One of the two threads computes at any time. Each piece has as many cores as are there when it begins (threads.py).
When the prompt is evaluated but for its last token, its cells are copied into its slot of the engine's context (172 MB,
0.1 s for 1,500 tokens of a 0.6B model), and it goes on as a stream.
The memory for that is taken while it is evaluated: all at once, it could hold the streams up for half a second.
The thread ends with its prompt: OpenMP counts living threads and spins less when there are more than cores.

making.py makes it, aside.py says when.
"""

import mmap
import threading
import time
from typing import Any, Callable, Optional

import numpy

from core.engine.cells import SavedCells
from core.engine.generation import Generation
from core.engine.llama.batch import Run
from core.engine.llama.context import Context
from core.engine.llama.model import Model

LONG = 128  # tokens; a prompt of which more are pending goes to the siding
SHORT = 32  # the same for one that is quick


class Siding:
    """A context of one slot in which one prompt at a time is evaluated. For the engine's thread.

    `weights` are its own, where it has some; it frees them.
    """

    def __init__(self, context: Context, weights: Optional[Model] = None):
        self.generation: Optional[Generation] = None  # what is being evaluated
        self.quick = weights is not None
        self.threads = 0  # that it may have in its next decode; 0 for what the context has
        self.used = 0  # that the decode has which goes on now; 0 where none does
        self._weights = weights
        self._context = context
        self._context.call_between(self._halt)
        self._thread: Optional[threading.Thread] = None
        # The two threads' turns; what follows is only touched by the one whose turn it is.
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._until = 0.0
        self._wanted_back: Callable[[], bool] = bool
        self._abandoned = False
        self.over = False  # what is being evaluated is ready to be collected
        self._cells: Optional[SavedCells] = None
        self._buffer: Any = None  # for a copy of the cells
        self._touched = 0  # bytes of it that are there, in memory

    @property
    def has_long(self) -> bool:
        """Whether a long prompt is being evaluated."""
        return self.generation is not None and self.generation.pending > LONG

    def start(self, generation: Generation, cells: Optional[SavedCells]) -> None:
        """Take a prompt in, whose first `done` tokens are evaluated already: in `cells`, if there are any."""
        self.generation = generation
        self._abandoned = self.over = False
        self._cells = None
        self._thread = threading.Thread(target=self._main, args=(generation, cells), name="siding", daemon=True)
        self._thread.start()

    def run(self, seconds: float, wanted_back: Callable[[], bool] = bool) -> None:
        """Let the prompt be evaluated for so long, or until it is over, or others want threads back that it has."""
        self._until = time.monotonic() + seconds
        self._wanted_back = wanted_back
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
        """Stop evaluating, and free the context, and the weights."""
        self.abandon()
        self._context.close()
        if self._weights:
            self._weights.close()

    # ---- the siding's thread

    def _main(self, generation: Generation, cells: Optional[SavedCells]) -> None:
        self._go.acquire()
        try:
            if self._evaluate(generation, cells):
                if self.has_long:
                    self._until = 0.0  # a turn of its own for the copy
                    self._halt()
                self._cells = self._context.save(0, self._buffer)
        finally:
            self._buffer = None
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
            tokens = generation.tokens[done : min(last, done + self._context.n_ubatch)]
            self._context.set_threads(self.threads)
            self.used = self.threads
            status, _ = self._context.decode([Run(0, done, tokens)])
            self.used = 0
            if status or self._abandoned:
                return False
            done += len(tokens)
            self._make_room(last / done)
        return True

    def _make_room(self, parts: float) -> None:
        """Take the memory that a copy of the cells needs so far; all the prompt has `parts` times as many."""
        size = self._context.saved_size(0)
        if self._buffer is None:
            self._buffer, self._touched = numpy.zeros(int(size * parts) + SavedCells.SPARE, numpy.uint8), 0
        self._buffer[self._touched : size : mmap.PAGESIZE] = 0
        self._touched = size

    def _halt(self) -> bool:
        """Wait for the next turn when this one's time is up. Whether to give up."""
        if time.monotonic() >= self._until or self._wanted_back():
            self._back.release()
            self._go.acquire()
        return self._abandoned

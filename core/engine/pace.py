"""How much of the prompts one step may take, and how long one should last: learnt from steps. Pure Python, no clock."""

from typing import Dict, Tuple


class Pace:
    """How many rows of prompts a step may take, to last no longer than it should; and what guesses cost.

    Learns from each step: what one without prompts takes, for each number of streams, and of guesses beside them; and
    what a row of a prompt adds. All forget with a weight of 0.3 for the newest.
    """

    BLOCK = 16  # rows that llama.cpp's kernels compute together: with AVX-512, 15 rows take longer than 16, 31 than 32
    FLOOR = 8  # rows; fewer say more about a step than about its rows
    START = 32  # rows, before anything is known
    CHEAPEST = 0.35  # of a stream's step: what a guess adds on a CPU at least, where no prompt's row says it
    LASTING = 2000  # steps; then what guesses cost is learnt anew: who costs too much once, is not tried again

    def __init__(self, n_batch: int):
        self._n_batch = n_batch
        self._streams: Dict[int, float] = {}  # seconds, by how many there are
        self._guesses: Dict[Tuple[int, int], float] = {}  # seconds, by the streams and their guesses
        self._guess: Dict[int, float] = {}  # seconds that a guess adds, by the streams, where they are several
        self._row = 0.0
        self._steps = 0

    def budget(self, streams: int, seconds: float, guesses: int = 0) -> int:
        """Return how many rows of prompts a step of so many seconds may take beside `streams` streams: whole blocks.

        It is a block at least: prompts are taken in, however long the streams take.
        """
        rows = (seconds - self.price(streams, guesses)) / self._row if self._row else self.START
        blocks = max(1, min(round(rows / self.BLOCK), self._n_batch // self.BLOCK))
        return blocks * self.BLOCK

    def expect(self, streams: int, prompt_rows: int, guesses: int = 0) -> float:
        """Return the seconds that a step of so many rows should take; 0 where nothing like it was seen yet."""
        if (streams and not self._streams) or (prompt_rows and not self._row):
            return 0.0
        return self.price(streams, guesses) + prompt_rows * self._row

    def price(self, streams: int, guesses: int) -> float:
        """Return the seconds that streams take with so many guesses.

        What was never tried is held to cost what prompts' rows do, the cheapest there are: so it is tried once. With
        several streams the same number hardly comes again: there, what was never tried is held to cost what others did.
        Where all prompts go to the siding, their rows are not known.
        """
        alone = self._seconds(streams)
        row = self._row or self.CHEAPEST * alone / max(1, streams)
        return self._guesses.get((streams, guesses), alone + guesses * self._guess.get(streams, row))

    def observe(self, streams: int, prompt_rows: int, seconds: float, guesses: int = 0) -> None:
        """Learn from a step of so many rows that took so long."""
        self._steps += 1
        if self._steps % self.LASTING == 0:
            self._guesses.clear()
            self._guess.clear()
        if prompt_rows >= self.FLOOR:
            rest = seconds - self.price(streams, guesses)
            self._row = _blend(self._row, max(rest, seconds * 0.1) / prompt_rows)
        elif guesses and not prompt_rows:
            self._guesses[streams, guesses] = _blend(self._guesses.get((streams, guesses), 0.0), seconds)
            if streams > 1:
                more = max(seconds - self._seconds(streams), 0.0) / guesses
                self._guess[streams] = _blend(self._guess.get(streams, 0.0), more)
        elif not prompt_rows:
            self._streams[streams] = _blend(self._streams.get(streams, 0.0), seconds)

    def _seconds(self, streams: int) -> float:
        """Return what a step of so many streams takes; where that is not known, what it may take by the nearest one."""
        if not streams or not self._streams:
            return 0.0
        if streams in self._streams:
            return self._streams[streams]
        known = min(self._streams, key=lambda count: abs(count - streams))
        return self._streams[known] * max(1.0, streams / known)


def _blend(old: float, new: float) -> float:
    return old * 0.7 + new * 0.3 if old else new

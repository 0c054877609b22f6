"""How much of the prompts one step may take, and how long one should last: learnt from steps. Pure Python, no clock."""

from typing import Dict


class Pace:
    """How many rows of prompts a step may take, to last no longer than it should.

    Learns from each step: what one without prompts takes, for each number of streams, and what a row of a prompt adds.
    Both forget with a weight of 0.3 for the newest.
    """

    BLOCK = 16  # rows that llama.cpp's kernels compute together: with AVX-512, 15 rows take longer than 16, 31 than 32
    FLOOR = 8  # rows; fewer say more about a step than about its rows
    START = 32  # rows, before anything is known

    def __init__(self, n_batch: int):
        self._n_batch = n_batch
        self._streams: Dict[int, float] = {}  # seconds, by how many there are
        self._row = 0.0

    def budget(self, streams: int, seconds: float) -> int:
        """Return how many rows of prompts a step of so many seconds may take beside `streams` streams: whole blocks.

        It is a block at least: prompts are taken in, however long the streams take.
        """
        rows = (seconds - self._seconds(streams)) / self._row if self._row else self.START
        blocks = max(1, min(round(rows / self.BLOCK), self._n_batch // self.BLOCK))
        return blocks * self.BLOCK

    def expect(self, streams: int, prompt_rows: int) -> float:
        """Return the seconds that a step of so many rows should take; 0 where nothing like it was seen yet."""
        if (streams and not self._streams) or (prompt_rows and not self._row):
            return 0.0
        return self._seconds(streams) + prompt_rows * self._row

    def observe(self, streams: int, prompt_rows: int, seconds: float) -> None:
        """Learn from a step of so many rows that took so long."""
        if not prompt_rows:
            self._streams[streams] = _blend(self._streams.get(streams, 0.0), seconds)
        elif prompt_rows >= self.FLOOR:
            rest = seconds - self._seconds(streams)
            self._row = _blend(self._row, max(rest, seconds * 0.1) / prompt_rows)

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

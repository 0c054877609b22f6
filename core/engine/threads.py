"""How many threads the next step gets: a backend's own, those that idle backends lend, less those that others need.

    own share ── + Board.lent() ── − Company.held ──> Context.set_threads

What a step takes is learnt for each number of threads by a Pace of its own.
"""

import time
from typing import Dict, Optional

from core.board import Board
from core.engine.company import Company, Step
from core.engine.pace import Pace
from core.hardware import cores
from core.settings import EngineSettings

PATIENCE = 0.5  # seconds; steps with borrowed threads are planned to take half of it
_LEASE = 1.0  # seconds; a step rarely takes longer, and a lease is taken for as long as the step should take


class Threads:
    """Decides how many threads compute. The engine's thread's. Raises OSError, ValueError where there is no board."""

    def __init__(self, settings: EngineSettings):
        self._settings = settings
        self._own = settings.threads or cores()
        self._board: Optional[Board] = None
        if settings.board:
            path, _, seat = settings.board.rpartition(":")
            self._board = Board(path, int(seat), self._own)
        self._company = Company()
        self._most = self._own
        self._paces: Dict[int, Pace] = {}
        self.count = self._own

    @property
    def pace(self) -> Pace:
        """What is known of steps with the present number of threads."""
        if self.count not in self._paces:
            self._paces[self.count] = Pace(self._settings.rows)
        return self._paces[self.count]

    def choose(self) -> int:
        """Return how many threads the next step gets; it takes its cores from now on.

        If it has lent its own, it waits for the step that they are in, PATIENCE at most: with more threads than there
        are cores, both steps take several times as long as one after the other.
        """
        if self._board:
            self._board.reclaim(_LEASE, PATIENCE)
        most = self._own + (self._board.lent() if self._board else 0)
        if most != self._most:
            self._company.forget()
            self._most = most
        self.count = self._company.threads(most)
        self.begin(0.0)
        return self.count

    @property
    def borrows(self) -> bool:
        """Whether some of the threads are others'."""
        return self.count > self._own

    def begin(self, expected: float) -> None:
        """A step begins that should take so many seconds."""
        if self._board:
            self._board.compute(max(_LEASE, 3 * expected), self.borrows)

    def rest(self) -> None:
        """There is nothing to compute."""
        if self._board:
            self._board.rest()

    def observe(self, streams: int, prompt_rows: int, seconds: float, expected: float) -> None:
        """Learn from a step that was made, and should have taken `expected` seconds."""
        step = Step(streams, prompt_rows, seconds, expected)
        if self._company.observe(step, self._most, time.monotonic()):
            self.pace.observe(streams, prompt_rows, seconds)

    def close(self) -> None:
        """Lend the cores, for good."""
        if self._board:
            self._board.close()

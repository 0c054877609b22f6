"""How many threads the next step gets: a backend's own, those that idle backends lend, less those that others need.

    own share ── + Board.lent() ── − Company.held ──> Context.set_threads    for a step
              ── + Board.take_turn() ───────────────> Siding.threads         for a long prompt, between two steps

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
TURN = 0.25  # seconds, for which another backend's prompt may have the threads between two steps, at most
_LOOK = 0.002  # seconds between two looks whether threads are wanted back
_LEASE = 1.0  # seconds; a step rarely takes longer, and a lease is taken for as long as the step should take


class Threads:
    """Decides how many threads compute. The engine's thread's. Raises ValueError where there is no board."""

    def __init__(self, settings: EngineSettings):
        self._settings = settings
        self._own = settings.threads or cores()
        self._board: Optional[Board] = None
        if settings.board:
            name, _, seat = settings.board.rpartition(":")
            try:
                self._board = Board(name, int(seat), self._own)
            except (OSError, ValueError) as error:
                raise ValueError("--board=%s: %s" % (settings.board, error)) from error
        self._company = Company()
        self._most = self._own
        self._paces: Dict[int, Pace] = {}
        self._borrowed_aside = 0
        self._next_look = 0.0
        self.count = self._own

    @property
    def pace(self) -> Pace:
        """What is known of steps with the present number of threads."""
        if self.count not in self._paces:
            self._paces[self.count] = Pace(self._settings.rows)
        return self._paces[self.count]

    def choose(self, has_prompt_aside: bool = False) -> int:
        """Return how many threads the next step gets; it takes its cores from now on.

        Before that, another backend's long prompt gets its turn, unless this one has such a prompt, too. If it has lent
        its own threads, it waits for the step that they are in, PATIENCE at most: with more threads than there are
        cores, both steps take several times as long as one after the other.
        """
        if self._board:
            self._board.asks = has_prompt_aside and not self._company.held
            self._board.give_way(TURN)
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

    def begin_aside(self, used: int, asks: bool) -> int:
        """A prompt aside has its turn; return how many threads it may have.

        `used` are those of the decode that goes on now, 0 for none. One that `asks` gets those of backends that
        compute, too: they give way. Cores that are missing anyway are not asked for.
        """
        self._borrowed_aside = 0
        if not self._board or self._company.held:
            return self.count
        self._board.asks = asks
        left = self._board.take_turn(_LEASE, TURN) if asks else max(0, self.count - self._own)
        needed = max(0, (used or self._own + left) - self._own)
        self._borrowed_aside = needed if left >= needed else 0  # else they are not there: it goes on without
        return self._own + left

    def wanted_back(self) -> bool:
        """Whether others want to compute with the threads that the prompt has."""
        now = time.monotonic()
        if not self._borrowed_aside or not self._board or now < self._next_look:
            return False
        self._next_look = now + _LOOK
        return self._board.left() < self._borrowed_aside

    def end_aside(self) -> None:
        """The prompt's turn is over: whoever gave way may go on."""
        self.begin(0.0)

    def rest(self) -> None:
        """There is nothing to compute."""
        if self._board:
            self._board.rest()

    def observe(self, step: Step) -> None:
        """Learn from a step that was made."""
        if self._company.observe(step, self._most, time.monotonic()):
            self.pace.observe(step.streams, step.prompt_rows, step.seconds, step.guesses)

    def close(self) -> None:
        """Lend the cores, for good."""
        if self._board:
            self._board.close()

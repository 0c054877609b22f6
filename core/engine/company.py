"""How many threads to give up, since other processes want the cores. Pure Python, no clock.

llama.cpp's threads meet after every operation of a step, and spin while they wait. Where another process takes a core,
one of them sleeps, and all wait for it: two threads on two cores are then 40 times as slow as on a quiet machine, and
slower than one. So it is tried out:

    hold back one more    at once, when two steps in a row take SLOW times what they should
    try one more or less  for TRIAL steps, now and then, while only streams run; kept where it is faster

On a quiet machine the trials cost some steps a minute.
"""

import statistics
from typing import List, NamedTuple, Optional

SLOW = 3.0
TRIAL = 3  # steps
FASTER = 0.93  # of the time: so much makes a trial's number of threads the new one
HOPELESS = 1.5  # of the time: one such step ends a trial
FIRST_PERIOD, LONGEST_PERIOD = 5.0, 60.0  # seconds between two trials


class Step(NamedTuple):
    """A step that was made: its streams, the rows of prompts beside them, and seconds."""

    streams: int
    prompt_rows: int
    seconds: float
    expected: float  # seconds that it should have taken; 0 where that is not known
    guesses: int = 0  # at the streams' next tokens, a row for each


class Company:
    """Decides how many threads are held back. Moments are seconds on the caller's clock."""

    def __init__(self) -> None:
        self.held = 0
        self._tried: Optional[int] = None  # the number that is on trial
        self._times: List[float] = []  # of the last steps, equal in what they computed; all with one number of threads
        self._baseline = 0.0
        self._streams = 0
        self._slow = 0  # steps in a row
        self._upwards = False  # the next trial is of one more thread
        self._period = FIRST_PERIOD
        self._next_trial = 0.0

    def threads(self, most: int) -> int:
        """Return how many of `most` threads the next step gets."""
        held = self.held if self._tried is None else self._tried
        return max(1, most - held)

    def observe(self, step: Step, most: int, now: float) -> bool:
        """Learn from a step; return whether it was an ordinary one, from which others may learn, too."""
        used = self.threads(most)
        slow = used > 1 and 0 < step.expected * SLOW < step.seconds
        self._slow = self._slow + 1 if slow else 0
        if self._tried is None and self._slow == 2 and used > 1:
            self._hold(self.held + 1, now)
        elif step.prompt_rows or not step.streams:
            self._give_up_trial(now)
        elif not step.guesses:  # what such a step computes is not what the others did
            self._weigh(step, most, now)
        return not slow or self._slow > 2

    def forget(self) -> None:
        """The number of threads that can be had has changed: what was seen says nothing of the next steps."""
        self._tried, self._times = None, []

    def _weigh(self, step: Step, most: int, now: float) -> None:
        """Take in a step of streams alone: a part of a trial, or of what the next one is compared with."""
        if step.streams != self._streams:
            self._give_up_trial(now)
            self._streams = step.streams
        self._times.append(step.seconds)
        if self._tried is not None:
            if step.seconds > self._baseline * HOPELESS:
                self._give_up_trial(now)
            elif len(self._times) == TRIAL:
                self._decide(now)
        elif len(self._times) > TRIAL:
            self._times.pop(0)
            if now >= self._next_trial:
                self._begin_trial(most)

    def _begin_trial(self, most: int) -> None:
        options = [self.held - 1, self.held + 1] if self._upwards else [self.held + 1, self.held - 1]
        self._upwards = not self._upwards
        for held in options:
            if 0 <= held < most and most - held != self.threads(most):
                self._baseline, self._times = statistics.median(self._times), []
                self._tried = held
                return

    def _decide(self, now: float) -> None:
        tried, better = self._tried, statistics.median(self._times) < self._baseline * FASTER
        self._give_up_trial(now)
        if better and tried is not None:
            self._hold(tried, now)

    def _hold(self, held: int, now: float) -> None:
        self.held, self._slow, self._times = held, 0, []
        self._period = FIRST_PERIOD
        self._next_trial = now + self._period

    def _give_up_trial(self, now: float) -> None:
        self._times = []
        if self._tried is not None:
            self._tried = None
            self._period = min(self._period * 2, LONGEST_PERIOD)
            self._next_trial = now + self._period

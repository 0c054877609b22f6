"""A thread that repeats one step as long as the program runs, whatever the step raises.

    Loop(name, interval, step).start() ── step() ── pause ── step() ── pause ── …
                              .stop()
                              .late()     it has not done its work for a long time: /health says so

A step that raises is logged once, not each time, and is tried again after `interval` seconds. Only a step that ends
well counts as a beat: a loop whose steps all fail is as late as one that hangs.
"""

import contextlib
import logging
import threading
import time
import traceback
from typing import Any, Callable, Dict, Iterable, Set

BEATS = 3  # how many may be missed before a loop is late


class LogOnce:
    """Logs each different message once; after `most` different ones it forgets, so that its memory stays small."""

    def __init__(self, log: logging.Logger, most: int = 100):
        self._log = log
        self._most = most
        self._told: Set[str] = set()
        self._lock = threading.Lock()  # guards _told

    def error(self, message: str, details: str = "") -> None:
        """Log a message with its details, unless it was logged before."""
        with self._lock:
            if message in self._told:
                return
            if len(self._told) >= self._most:
                self._told.clear()
            self._told.add(message)
        self._log.error("%s%s", message, details)


class Loop:
    """A thread that runs `step` every `interval` seconds and survives what it raises.

    `pauses` is False where `step` itself waits for its next work, at most `interval` seconds. `step_seconds` is how
    long a step may take that is not late. Moments are seconds of `clock`.
    """

    def __init__(
        self,
        name: str,
        interval: float,
        step: Callable[[], Any],
        pauses: bool = True,
        step_seconds: float = 5.0,
        log: logging.Logger = logging.getLogger("comeapi.loops"),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name = name
        self.interval = interval
        self._step = step
        self._pauses = pauses
        self._patience = BEATS * interval + step_seconds
        self._once = LogOnce(log)
        self._clock = clock
        self._beat_at = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> "Loop":
        """Start the thread. Raises RuntimeError where none can be started."""
        self._beat_at = self._clock()
        self._thread.start()
        return self

    def stop(self, timeout: float = 0.0) -> None:
        """Begin no further step, and wait up to `timeout` seconds for the present one."""
        self._stopped.set()
        if timeout and self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def stopped(self) -> bool:
        """Whether stop() was called."""
        return self._stopped.is_set()

    def age(self) -> float:
        """Return the seconds since a step last ended well, or since the start."""
        return self._clock() - self._beat_at

    def late(self) -> bool:
        """Whether no step has ended well for three intervals and the time that one may take."""
        return self.age() > self._patience

    def _run(self) -> None:
        while not self._stopped.is_set():
            well = self._try_step()
            if self._pauses or not well:
                self._stopped.wait(self.interval)

    def _try_step(self) -> bool:
        """Run a step; whatever it raises is logged, MemoryError and RecursionError too."""
        try:
            self._step()
        except Exception as error:
            with contextlib.suppress(Exception):  # there may be no memory for the message either
                details = "\n" + traceback.format_exc()
                self._once.error("the %s loop failed and goes on: %r" % (self.name, error), details)
            return False
        self._beat_at = self._clock()
        return True


def describe(loops: Iterable[Loop]) -> Dict[str, Dict[str, Any]]:
    """Return what /health says of loops, by name: the seconds since each has last done its work, and if it is late."""
    return {loop.name: {"age": round(loop.age(), 1), "late": loop.late()} for loop in loops}

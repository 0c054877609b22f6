"""All backends restarted, one after another, without a request that fails.

    drained   the balancer sends the backend no more requests, and moves its answers to others that have room
    stopped   when it has no request any more; after `patience` seconds at the latest, and the others go on with its
              answers. Where no other backend is ready, at once: its answers wait for the new process
    started   the supervisor starts it again when it has ended
    back      it is ready, and up at the balancer; then the next one's turn comes

Nothing is given up here: while a backend does not come back, the others are left alone.

    Restarts    takes what is asked for, one restart at a time
    Rolling     one restart
"""

import time
from typing import Any, Callable, Dict, Generator, Iterator, Optional, Sequence

from core.process import STOP_SECONDS
from core.system.child import Child

_PAUSE_SECONDS = 0.1  # between two questions to the balancer
_ANSWER_SECONDS = 1.0  # after which a question is asked again: the balancer may be another process now
_GRACE_SECONDS = 1.0  # beside what a backend takes itself to stop
_STEP_SECONDS, _IDLE_SECONDS = 0.05, 0.5  # between two steps; where there are none
_PROBE_SECONDS = 10.0  # by then, the balancer has looked at the new process

Facts = Dict[str, Any]


class Restarts:
    """Restarts of all backends, one at a time. The arguments are Rolling's."""

    def __init__(self, backends: Sequence[Child], balancer: Child, patience: float, say: Callable[[str], None]):
        self._say = say
        self._new = lambda: Rolling(backends, balancer, patience, say)
        self._rolling: Optional[Rolling] = None

    def ask(self, served: bool) -> None:
        """Begin a restart, unless one is under way, or nothing has `served` yet."""
        if self._rolling:
            self._say("🔁 A restart is under way: %s. Asked for another one: ignored." % self._rolling.doing)
        elif not served:
            self._say("🔁 Asked for a restart before anything has served: ignored.")
        else:
            self._rolling = self._new()

    def step(self) -> None:
        """Go on with the restart that is under way."""
        if self._rolling and not self._rolling.step():
            self._rolling = None

    def heard(self, facts: Facts) -> None:
        """Take an answer of the balancer's."""
        if self._rolling:
            self._rolling.heard(facts)

    @property
    def patience(self) -> float:
        """The seconds that step() may be waited for."""
        return _STEP_SECONDS if self._rolling else _IDLE_SECONDS


class Rolling:
    """One restart of all backends. step() goes on with it as far as that is possible now, and never waits.

    `patience` is the seconds that a backend's requests get, `say` takes lines for people.
    """

    def __init__(
        self,
        backends: Sequence[Child],
        balancer: Child,
        patience: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.doing = "it begins"
        self._backends = backends
        self._balancer = balancer
        self._patience = patience
        self._say = say
        self._clock = clock
        self._asked = 0  # questions to the balancer
        self._answer: Facts = {}
        self._course = self._restart_all()

    def step(self) -> bool:
        """Go on; returns whether it is still under way."""
        return next(self._course, self) is not self

    def heard(self, facts: Facts) -> None:
        """Take an answer of the balancer's."""
        self._answer = facts

    # ---- the course; each yield lets the supervisor work

    def _restart_all(self) -> Iterator[None]:
        self._tell("Restarting the backends, one after another, as they were started")
        for backend in self._backends:
            if backend.alive:
                yield from self._restart(backend)
            else:
                self._tell("%s is not running: nothing to restart" % backend.name)
        self._tell("All backends are restarted")

    def _restart(self, backend: Child) -> Iterator[None]:
        run, serves = backend.run, backend.ready_at is not None
        drained_before = (yield from self._ask(backend, None, self._clock() + _ANSWER_SECONDS)).get("draining", False)
        idle = yield from self._drain(backend, run)
        yield from self._stop(backend, run, idle)
        while serves and backend.ready_at is None:
            yield
        if not drained_before:
            yield from self._take_back(backend, serves)

    def _drain(self, backend: Child, run: int) -> Generator[None, None, bool]:
        """Drain a backend until it has no request, or there is no reason to wait; returns whether it has none."""
        alone = not any(other.ready_at for other in self._backends if other is not backend)
        where = "wait for its new process" if alone else "move to the others"
        self._tell("Draining %s: its answers %s" % (backend.name, where))
        end = self._clock() + (0.0 if alone else self._patience)
        while True:
            facts = yield from self._ask(backend, True, max(end, self._clock() + _ANSWER_SECONDS))
            if facts.get("in_flight") == 0:
                return True
            if self._clock() >= end or not self._still_runs(backend, run):
                return False
            yield from self._pause()

    def _stop(self, backend: Child, run: int, idle: bool) -> Iterator[None]:
        """Stop a backend; the supervisor starts it again."""
        if self._still_runs(backend, run):
            self._tell("Stopping %s (PID %d)" % (backend.name, backend.pid))
            backend.replaced = True
            if idle:
                backend.ask_to_stop()
                end = self._clock() + self._patience + STOP_SECONDS + _GRACE_SECONDS
                while self._still_runs(backend, run) and self._clock() < end:
                    yield
            if self._still_runs(backend, run):
                backend.kill("it did not stop to be restarted")
        while backend.run == run:
            yield

    def _take_back(self, backend: Child, serves: bool) -> Iterator[None]:
        """Let the balancer send a backend requests again; wait until it finds it up, where it served before."""
        facts = yield from self._ask(backend, False)
        looked, end = facts.get("last_check"), self._clock() + _PROBE_SECONDS
        self._tell("Waiting for the balancer to find %s up" % backend.name)
        while serves and not (facts.get("healthy") and (facts.get("last_check") != looked or self._clock() > end)):
            yield from self._pause()
            facts = yield from self._ask(backend, False)

    # ---- its means

    def _ask(self, backend: Child, drain: Optional[bool], end: float = float("inf")) -> Generator[None, None, Facts]:
        """Ask the balancer to drain a backend or to take it back, or neither (None), until it answers.

        Returns what it knows of the backend then; nothing where there is no answer until `end`.
        """
        first, again = self._asked + 1, float("-inf")
        while self._answer.get("n", 0) < first:
            now = self._clock()
            if now >= end:
                return {}
            if now >= again and self._balancer.ready_at is not None:
                again = now + _ANSWER_SECONDS
                self._asked += 1
                self._balancer.tell({"backend": backend.url, "drain": drain, "n": self._asked})
            yield
        return self._answer

    def _pause(self) -> Iterator[None]:
        end = self._clock() + _PAUSE_SECONDS
        while self._clock() < end:
            yield

    def _still_runs(self, backend: Child, run: int) -> bool:
        return backend.run == run and backend.alive

    def _tell(self, what: str) -> None:
        self.doing = what
        self._say("🔁 %s." % what)

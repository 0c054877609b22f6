"""Which backends are to be probed now, and what a probe's outcome changes. The probes themselves are health.py's.

    Probing.due ──> a probe of each ──> Probing.probed(backend, report)
    Probing.looks_due ──> a quick look at each ──┘  └─ or unprobed(backend), where it could not be made
    Probing.turns_due ──> GET /turn of each ──> Probing.turned(backend, told)

A backend is due at its interval, or sooner: at once after a lost connection, and while it is down every second, backing
off. A quick look is wanted where a request waits in silence for a backend that is known to answer its probes at once,
however busy it is (Pool.doubt), and at every such backend while somebody watches their figures (feed.py). And it is
wanted at one whose slots other balancers have, once a second; while requests wait here, the balancer waits for its turn
there in place of that (core/places.py).
"""

import logging
import time
from typing import List, Optional

from core.balancing.backends import Backend, Report
from core.balancing.homes import seed_of
from core.balancing.pool import Pool
from core.balancing.vitals import DOWN
from core.places import Told

log = logging.getLogger("comeapi.balancer")

LIVE_SECONDS = 10.0  # how long after a byte an answer counts as flowing
SPREAD = 0.1  # of the interval between two probes, by which backends differ
MOST_TURNS = 8  # backends at which a balancer waits for its turn at the same time
LOOK_SECONDS = 1.0  # between two quick looks at a backend that is doubted, and what each of them may take


class Probing:
    """The schedule of all probes, and their outcome. It works on the pool's backends, under the pool's lock."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self._watched_until = float("-inf")  # guarded by the pool's lock

    # ---- which probes are due

    def due(self, patience: float) -> List[Backend]:
        """Wait at most `patience` seconds for a probe to become due, and take all backends that must be probed."""
        pool = self.pool
        with pool.lock:
            due = self._due()
            if not (due or self._looks_due() or self._turns_due()):
                now = pool.clock()
                upcoming = [backend.next_probe - now for backend in pool.backends if not backend.probing]
                upcoming += [backend.next_look - now for backend in pool.backends if self._wants_look(backend)]
                pool.probe_due.wait(max(0.0, min(upcoming + [patience])))
                due = self._due()
            for backend in due:
                backend.probing = True
            return due

    def looks_due(self) -> List[Backend]:
        """Take all backends that must be looked at quickly."""
        with self.pool.lock:
            due = self._looks_due()
            for backend in due:
                backend.looking = True
                backend.next_look = self.pool.clock() + LOOK_SECONDS
            return due

    def turns_due(self) -> List[Backend]:
        """Take all backends at which the balancer must begin to wait for its turn."""
        with self.pool.lock:
            due = self._turns_due()
            for backend in due:
                backend.awaited = True
            return due

    def watch(self, seconds: float) -> None:
        """Somebody wants fresh figures: look every second, for so long, at all backends that answer looks at once."""
        with self.pool.lock:
            if self.pool.clock() >= self._watched_until:
                self.pool.probe_due.notify_all()
            self._watched_until = self.pool.clock() + seconds

    def expect(self, url: str) -> None:
        """Probe a backend at once: it is said to be ready."""
        with self.pool.lock:
            for backend in self.pool.backends:
                if backend.url == url and not backend.vitals.up:
                    backend.next_probe = self.pool.clock()
                    self.pool.probe_due.notify_all()

    def wake(self) -> None:
        """Let due() return at once."""
        with self.pool.lock:
            self.pool.probe_due.notify_all()

    def _due(self) -> List[Backend]:
        now = self.pool.clock()
        return [backend for backend in self.pool.backends if not backend.probing and backend.next_probe <= now]

    def _looks_due(self) -> List[Backend]:
        now = self.pool.clock()
        return [backend for backend in self.pool.backends if self._wants_look(backend) and backend.next_look <= now]

    def _turns_due(self) -> List[Backend]:
        """Return backends that others fill and requests wait for: those that have told so the longest ago."""
        if not self.pool.queued():
            return []
        room = MOST_TURNS - sum(backend.awaited for backend in self.pool.backends)
        crowded = [each for each in self.pool.backends if each.crowded and each.vitals.up and not each.awaited]
        wanted = [backend for backend in crowded if self.pool.is_waited_for(backend)]
        return sorted(wanted, key=lambda backend: backend.told_at)[: max(0, room)]

    def _wants_look(self, backend: Backend) -> bool:
        if backend.looking:
            return False
        now = self.pool.clock()
        crowded = backend.crowded and now - backend.told_at >= LOOK_SECONDS and not self.pool.queued()
        watched = now < self._watched_until and backend.prompt
        return backend.doubted or (backend.vitals.up and (watched or crowded))

    # ---- what they have found out

    def probed(self, backend: Backend, report: Report, interval: float) -> bool:
        """Note a probe's outcome and when the next one is due. Returns whether the backend has come up.

        `interval` is the seconds between two probes of a backend that is up. A quick look that ends well changes
        nothing about the next probe; one that does not is followed by another. A look at a backend that nobody doubts
        decides nothing: where it ends badly, the next probe is due at once.
        """
        pool = self.pool
        with pool.lock:
            before, was_up = backend.vitals.state, backend.vitals.up
            self._unmark(backend, report.quick)
            if report.quick and not report.ok and not backend.doubted:
                backend.next_probe = pool.clock()
                pool.probe_due.notify_all()
                return False
            backend.last_check, backend.checked = time.time(), pool.clock()
            self._note(backend, report)
            if report.ok:
                pool.note_told(backend, report.slots_told)
            if report.quick or report.ok:
                backend.doubted = backend.vitals.up and not report.ok
            self._note_stall(backend, report.stalled)
            if not (report.quick and report.ok):
                backend.next_probe = pool.clock() + backend.vitals.next_probe(interval * _spread(backend.number))
            if report.stalled:
                backend.next_probe = min(backend.next_probe, pool.clock() + LOOK_SECONDS)
            if backend.vitals.state == DOWN and before != DOWN:
                self._note_end(backend, report.why)
            pool.offer(backend)
            pool.probe_due.notify_all()
            return backend.vitals.up and not was_up

    def unprobed(self, backend: Backend, quick: bool) -> None:
        """A probe that was due could not be made: it is due again in a second."""
        with self.pool.lock:
            self._unmark(backend, quick)
            backend.next_probe = max(backend.next_probe, self.pool.clock() + LOOK_SECONDS)

    def turned(self, backend: Backend, told: Optional[Told]) -> None:
        """Note what a backend tells after a wait for a turn: that it has come, or who has the slots still."""
        with self.pool.lock:
            backend.awaited = False
            self.pool.note_told(backend, told)
            self.pool.probe_due.notify_all()

    def unturned(self, backend: Backend) -> None:
        """A wait for a turn has failed: the backend is to be probed."""
        with self.pool.lock:
            backend.awaited = False
            backend.told_at = self.pool.clock()
            backend.next_probe = min(backend.next_probe, self.pool.clock() + LOOK_SECONDS)

    def _unmark(self, backend: Backend, quick: bool) -> None:
        if quick:
            backend.looking = False
        else:
            backend.probing = False

    def _note(self, backend: Backend, report: Report) -> None:
        vitals, now = backend.vitals, self.pool.clock()
        live = LOOK_SECONDS if report.quick else LIVE_SECONDS
        backend.figures = report.figures
        if report.ok:
            vitals.probe_passed(now)
            if not report.quick:
                self._note_facts(backend, report)
        elif report.wedged:
            vitals.wedged(now, report.why)
        elif report.not_ready:
            vitals.not_ready(now, report.why)
        elif report.timed_out and backend.in_flight and now - backend.heard < live:
            vitals.busy("busy: %s, but its streams flow" % report.why)
        else:
            vitals.probe_failed(now, report.why)

    def _note_facts(self, backend: Backend, report: Report) -> None:
        """Note what a backend that is well says of itself."""
        silent = self.pool.clock() - backend.heard >= LOOK_SECONDS
        showed = backend.tested and backend.in_flight > 0 and silent  # it answered while a request waited in silence
        backend.prompt, backend.tested = backend.prompt or report.prompt or showed, False
        backend.slots = backend.spec.slots or report.slots or backend.slots
        backend.model, backend.fingerprint = report.model, report.fingerprint
        if report.told:
            backend.set_models(report.models)
            backend.carries, backend.foreign = report.carries, not report.prompt
        backend.note_life(report.life)
        backend.seed, backend.version = seed_of(report.name or backend.url), report.version

    def _note_stall(self, backend: Backend, stalled: bool) -> None:
        if stalled and not backend.stalled:
            log.warning("🔴 %s stalls: its engine is in a step that takes much longer than it should", backend.url)
        backend.stalled = stalled

    def _note_end(self, backend: Backend, why: str) -> None:
        """A backend has gone down: what comes up at its URL may be another server."""
        backend.life, backend.prompt, backend.carries, backend.foreign = None, False, False, False
        backend.fingerprint = None
        backend.note_told(None)
        if backend.vitals.seen:  # else it is just being started, or its URL is wrong: /status says why
            log.warning("🔴 %s is down: %s", backend.url, why)


def _spread(number: int) -> float:
    """Return the part of the interval after which a backend is probed, so that many are not all probed at once."""
    return 1.0 - SPREAD * (number * 0.618034 % 1.0)

"""Which backend takes a request, now or when its turn in the queue comes. Standard library only, no I/O.

    Pool.request(wish) ──> Ticket ── has a backend ──────────────> … ── Pool.release(ticket)
                             │                                              │ the slot goes to the next in the queue
                             └─ waits in the FairQueue <────────────────────┘
                             └─ neither: no backend can take it

How a request gets its backend (Pool.request and choice.py have the same numbers):

    1. Able are the backends that have the model, or may have it, are not draining, and were not tried for this request.
    2. Of those that are up, stalled ones count only where there are no others, and so do ejected ones.
    3. Backends that have the model loaded come first, then idle ones. One that would have to stop other work to load
       the model is taken only where none has it loaded.
    4. Of those with a free slot, the policy chooses one.
    5. If all are full, the request waits in the queue. Full is a backend with as many requests of ours as it has slots,
       or as others leave us, by what it told last (core/places.py). One that others fill is asked again and again.
    6. If none is up, one that is down is tried: it may be back before its next probe.
    7. If all were tried, or none is able, the request waits until one is up, where there is hope.
    8. Else it gets no backend.

A request that must run alone goes another way: loners.py.
"""

import logging
import math
import sys
import time
from threading import Condition
from typing import Callable, Optional, Sequence, Set

from core.balancing.backends import Backend, Ticket
from core.balancing.choice import find_able, find_open, fits, would_take
from core.balancing.loners import Loners
from core.balancing.policies import Policy
from core.balancing.queueing import FairQueue
from core.balancing.request import Wish
from core.balancing.roster import Roster
from core.places import Told

log = logging.getLogger("comeapi.balancer")

DOUBT_SECONDS = 5.0  # how long a probe's outcome counts as fresh
QUIET_SECONDS = 0.9  # a backend that has requests and sends no byte for so long is doubted
SHARED_SECONDS = 120.0  # how long other balancers count as there after a backend has told of them
FAILURES = frozenset([500, 502, 504])  # what a backend answers that can't do its work
BUSY = frozenset([429, 503])  # what a backend answers that has too much work


class Pool(Roster):
    """The backends, the queue before them, and the choice: what requests ask for, and what they tell of backends.

    All is decided under the Roster's one lock. `policy` chooses between backends that are equally good by the rules.
    """

    def __init__(self, policy: Policy, queue_size: int = 1024, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self.policy = policy
        self.probe_due = Condition(self.lock)  # notified when a backend is to be probed sooner: probing.py waits for it
        self._queue: FairQueue[Ticket] = FairQueue(queue_size)
        self._loners = Loners(self.backends, queue_size, clock, self._give, self._hand_out)
        self._others_at = float("-inf")  # when a backend has told last that other balancers call it
        self._held = 0.0  # seconds that a request holds its slot, moving average

    # ---- one request's way

    def request(
        self,
        wish: Wish,
        tried: Set[Backend],
        hope: bool = True,
        again: bool = False,
        alone: bytes = b"",
        resumes: bool = False,
    ) -> Ticket:
        """Take a backend for a request, or a place in the queue, or neither; the module's docstring says how.

        `tried` are the backends that have failed it; `hope` says whether it may wait while none is up; `again`, that it
        has waited before and comes first in its client's line; a fingerprint in `alone`, that nothing may run
        beside it; `resumes`, that the backend must go on with another one's answer. A ticket with a backend goes back
        with release(); one that waits may leave() early. Raises queueing.Full.
        """
        ticket = Ticket(wish, tried, alone, resumes)
        with self.lock:
            if alone:
                self._loners.add(ticket, hope, again)
                return ticket
            able = find_able(self.backends, ticket)  # 1
            candidates = find_open(able, wish, self.clock())  # 2, 3
            up = any(backend.vitals.up for backend in able)
            if not up:
                candidates = [backend for backend in able if backend.free]  # 6
            if not able and hope:
                tried.clear()  # 7
                candidates = find_open(find_able(self.backends, ticket), wish, self.clock())
            if candidates:
                self._give(ticket, candidates)  # 4
            elif up or hope:
                self._enqueue(ticket, again)  # 5, 7
            return ticket  # 8 where it has neither

    def release(self, ticket: Ticket) -> None:
        """A request has left its backend; the slot goes to the next in the queue. Harmless the second time."""
        with self.lock:
            backend, ticket.backend = ticket.backend, None
            if backend is None:
                return
            backend.vitals.request_ends()
            backend.guests -= 1
            if backend.kept_for is ticket:
                backend.kept_for = None
            if ticket.wish.works:
                backend.in_flight -= 1
                held = self.clock() - ticket.since
                self._held = self._held * 0.9 + held * 0.1 if self._held else held
            self.offer(backend)
            if backend.leaving:
                self.remove_left()

    def leave(self, ticket: Ticket) -> bool:
        """Take a ticket out of the queue; False where it has got its backend meanwhile."""
        with self.lock:
            if not ticket.waiting:
                return ticket.displaced
            ticket.waiting = False
            if ticket.alone:
                self._loners.leave(ticket)
            else:
                self._queue.remove(ticket.wish.who, ticket)
            return True

    def stranded(self, ticket: Ticket) -> float:
        """Return for how many seconds no backend has been up that could take a waiting request; 0 where one is."""
        with self.lock:
            able = [backend for backend in self.backends if fits(backend, ticket)]
            if any(backend.vitals.up for backend in able):
                return 0.0
            return self.clock() - max([backend.vitals.down_since for backend in able], default=float("-inf"))

    def has_place_beside(self, ticket: Ticket, fingerprint: str = "") -> bool:
        """Whether another backend could go on at once with the answer to a request that has a place.

        `fingerprint` is that of the model which has begun the answer, "" where it is not known.
        """
        model = ticket.wish.model
        with self.lock:
            return any(
                backend.free and backend is not ticket.backend and backend.goes_on_with(model, fingerprint)
                for backend in self.backends
                if fits(backend, ticket) and backend.vitals.up and not backend.stalled
            )

    def retry_after(self) -> int:
        """Return the seconds after which a request that is refused now may find room, by what was measured."""
        with self.lock:
            slots = sum(backend.slots for backend in self.backends if backend.vitals.up) or 1
            return max(1, min(600, math.ceil((len(self._queue) + 1) * (self._held or 1.0) / slots)))

    def queued(self) -> int:
        """Return how many requests wait in the queue."""
        return len(self._queue) + len(self._loners)

    # ---- what requests tell of backends

    def answered(self, backend: Backend, seconds: float, status: int) -> None:
        """A backend has sent the first byte of an answer after so many seconds."""
        with self.lock:
            old = backend.response_time
            backend.response_time = old * 0.8 + seconds * 0.2 if old else seconds
            if status in FAILURES:
                self._count_failure(backend, "status %d" % status, False)
            elif status not in BUSY:
                backend.vitals.request_passed(self.clock())

    def told(self, backend: Backend, told: Optional[Told], refused: bool = False) -> None:
        """A backend's answer has told who has its slots, or None; `refused` says that it was full for a request."""
        if told is None and backend.room == sys.maxsize:
            return
        with self.lock:
            self.note_told(backend, told, refused)

    @property
    def shared(self) -> bool:
        """Whether other balancers have called the same backends lately."""
        return self.clock() - self._others_at < SHARED_SECONDS

    def failed(self, backend: Backend, why: str, lost: bool = True) -> None:
        """A request did not get through. Where its connection was `lost`, the backend is suspect and probed at once.

        Once is enough: the next probes come when it may be back, and not as often as requests were lost with it.
        """
        with self.lock:
            was_up = backend.vitals.up
            self._count_failure(backend, why, lost)
            if lost and was_up:
                self._loners.place()
                backend.next_probe = 0.0
                self.probe_due.notify_all()

    def doubt(self, backend: Backend) -> None:
        """A request waits. Where the backend has sent no byte for long, probe it, unless that was done a moment ago.

        A backend that answers its probes at once, however busy it is, gets a quick look every second: one that was
        stopped is found out within five.
        """
        now = self.clock()
        if now - backend.heard < QUIET_SECONDS:
            return
        with self.lock:
            if backend.prompt and backend.vitals.up:
                backend.doubted = True
            elif now - backend.checked >= DOUBT_SECONDS:
                backend.next_probe = min(backend.next_probe, now)
                backend.tested = True
            else:
                return
            self.probe_due.notify_all()

    def _count_failure(self, backend: Backend, why: str, lost: bool) -> None:
        backend.errors += 1
        if backend.vitals.up and lost:
            log.warning("🔴 %s is suspect: %s", backend.url, why)
        if backend.vitals.request_failed(self.clock(), why, lost):
            log.warning("🔴 %s is ejected for a while: its requests fail: %s", backend.url, why)

    # ---- under the lock; probing.py and membership.py call the first four as well

    def offer(self, backend: Backend) -> None:
        """A backend may have become able to take requests: let those that wait have it."""
        self._loners.place()
        self._hand_out(backend)

    def note_told(self, backend: Backend, told: Optional[Told], refused: bool = False) -> None:
        """Note who has a backend's slots. Where others have left some, requests that wait get them."""
        if told and told.balancers > 1:
            self._others_at = self.clock()
        was_crowded = backend.crowded
        backend.note_told(told, refused)
        if backend.crowded and not was_crowded:
            self.probe_due.notify_all()
        self._hand_out(backend)

    def is_waited_for(self, backend: Backend) -> bool:
        """Whether a request in the queue could go to a backend, were it free."""
        return self._queue.any(lambda ticket: fits(backend, ticket) and backend not in ticket.tried)

    def remove_left(self) -> None:
        """Forget the backends that are leaving and have no request any more."""
        self.backends[:] = [backend for backend in self.backends if not backend.leaving or backend.guests]

    def _give(self, ticket: Ticket, candidates: Sequence[Backend]) -> None:
        backend = ticket.backend = self.policy.choose(candidates, ticket.wish)
        ticket.since = self.clock()
        ticket.life = backend.life
        backend.requests += 1
        backend.guests += 1
        backend.vitals.request_starts()
        if ticket.wish.works:
            backend.in_flight += 1
            if ticket.wish.model and backend.model and not backend.all_loaded:
                backend.model = ticket.wish.model  # it will have swapped by the time that others ask

    def _enqueue(self, ticket: Ticket, first: bool) -> None:
        displaced = self._queue.push(ticket.wish.who, ticket, first, must=ticket.resumes)
        ticket.start_waiting()
        if any(backend.crowded for backend in self.backends):
            self.probe_due.notify_all()
        if displaced:
            displaced.displaced = True
            displaced.stop_waiting()

    def _hand_out(self, backend: Backend) -> None:
        """Give a backend's free slots to those in the queue that would choose it."""
        while len(self._queue) and backend.vitals.up and backend.free and not backend.draining:
            now = self.clock()
            ticket = self._queue.pop(lambda item: would_take(backend, self.backends, item, now))
            if ticket is None:
                return
            self._give(ticket, [backend])
            ticket.stop_waiting()

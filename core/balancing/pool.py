"""The backends, and which one takes a request, now or when its turn in the queue comes. Standard library only, no I/O.

    Pool.request(wish) ──> Ticket ── has a backend ──────────────> … ── Pool.release(ticket)
                             │                                              │ the slot goes to the next in the queue
                             └─ waits in the FairQueue <────────────────────┘
                             └─ neither: nobody can take it

    Backend    what is known of one model server
    Ticket     one request's place, at a backend or in the queue
    Pool       all of them, under one lock

How a request gets its backend (Pool.request has the same numbers):

    1. Able is who has the model, or may have it, is not draining, and was not tried for this request.
    2. Of those that are up, ejected ones count only where there is no other.
    3. Who has the model loaded comes first; then who is idle; a backend that would have to stop other work to load the
       model only where nobody has it loaded.
    4. Of those with a free slot, the policy chooses one.
    5. All are full: the request waits in the queue.
    6. None is up: one that is down is tried, since it may be back before its next probe.
    7. All were tried, or none is able: it waits until one is up, where there is hope.
    8. Else nobody takes it.

A request that must run alone, since a backend has died under it (quarantine.py), is given an idle backend that
takes no other request meanwhile. Where none is idle, one is kept for it: it gets no new request, as in a drain, until
its last one has ended. So are half of those that are up at most, or the only one.
"""

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Set

from core.balancing.queueing import FairQueue, Full
from core.balancing.request import Wish
from core.balancing.specs import Spec
from core.balancing.vitals import DOWN, Vitals
from core.names import plain_name

log = logging.getLogger("comeapi.balancer")


# ------------------------------------------------------------------------------------------------ one backend


class Backend:
    """What is known of one model server. The pool's lock guards all of it, except `heard`."""

    def __init__(self, spec: Spec, number: int, clock: Callable[[], float], slow_start: float = 0.0, source: str = ""):
        self.url = spec.url
        self.spec = spec
        self.wanted = spec  # as its source names it; people may change what it is
        self.number = number  # rising in the pool's order
        self.source = source  # what it was found by: "" for options and people, who alone take it away again
        self.vitals = Vitals(slow_start)
        self.slots = spec.slots or 1
        self.model: Optional[str] = None  # loaded now
        self.models: Optional[List[Dict[str, Any]]] = None  # what it has; None where it does not tell
        self.life: Any = None  # changes when it starts again
        self.expires: Optional[float] = None  # on the pool's clock; it must be added again before
        self.draining = False
        self.leaving = False  # removed as soon as its last request has ended
        self.in_flight = 0  # slots in use
        self.guests = 0  # requests that are there, look-ups too
        self.kept_for: Optional["Ticket"] = None  # the request that runs here alone, or will when all others have left
        self.requests = 0
        self.errors = 0
        self.response_time = 0.0  # seconds to the first byte, moving average
        self.last_check = 0.0  # time.time()
        self.checked = float("-inf")  # when its last probe ended, on the pool's clock
        self.next_probe = 0.0  # likewise
        self.probing = False
        self.prompt = False  # its /health answers at once, however busy it is: silence there means that it is dead
        self.tested = False  # its next probe shows whether that is so: a request waits in silence
        self.doubted = False  # a quick look is wanted
        self.next_look = 0.0  # when that may be, on the pool's clock
        self.looking = False  # it is under way
        self.credit = 0.0  # the round-robin cursor's
        self.heard = float("-inf")  # when the last byte of an answer came; written without the lock
        self._clock = clock
        self._names: Set[str] = set()

    # ---- what policies go by

    @property
    def share(self) -> float:
        """Its weight, less while it starts slowly."""
        return self.spec.weight * self.vitals.share(self._clock())

    @property
    def load(self) -> float:
        """Requests outstanding for its capacity; what has just failed counts as outstanding for a while."""
        return (self.in_flight + self.vitals.trouble(self._clock())) / (self.slots * self.share)

    # ---- what the pool goes by

    def may_have(self, model: str) -> bool:
        """Whether it has a model, or does not tell."""
        return not model or self.models is None or plain_name(model) in self._names

    def has_loaded(self, model: str) -> bool:
        """Whether it need not swap models for a request, as far as is known."""
        return not (model and self.model) or plain_name(model) == plain_name(self.model) or self.all_loaded

    @property
    def all_loaded(self) -> bool:
        """Whether it swaps no models: it does not say which one of several is loaded."""
        return not self.models or not any("loaded" in each for each in self.models)

    @property
    def free(self) -> bool:
        """Whether it has a free slot, and is kept for nobody."""
        return self.in_flight < self.slots and not self.kept_for

    def set_models(self, models: Optional[List[Dict[str, Any]]]) -> None:
        """Note what it has, as it lists them, each with its "name"; None where it does not tell."""
        self.models = models
        self._names = {plain_name(str(each["name"])) for each in models or ()}
        for each in list(self._names):  # some servers name a model by its file's path
            self._names.add(each.replace("\\", "/").rpartition("/")[2])

    def describe(self) -> Dict[str, Any]:
        """Return what /status says of it."""
        now = self._clock()
        return {
            "url": self.url,
            "healthy": self.vitals.up,
            "state": "draining" if self.draining else self.vitals.label(now),
            "why": self.vitals.why,
            "error_count": self.errors,
            "avg_response_time": round(self.response_time, 4),
            "last_check": round(self.last_check, 3),
            "in_flight": self.in_flight,
            "capacity": self.slots,
            "weight": self.spec.weight,
            "requests": self.requests,
            "model": self.model,
            "ejections": self.vitals.ejections,
            "source": self.source or "option",
        }


@dataclass
class Report:
    """What a probe has found."""

    ok: bool
    why: str = "ok"
    not_ready: bool = False  # it said so itself
    wedged: bool = False  # likewise, and that it will stay so
    timed_out: bool = False
    slots: Optional[int] = None
    model: Optional[str] = None  # loaded now
    told: bool = False  # it was asked for its models
    models: Optional[List[Dict[str, Any]]] = None
    life: Any = None  # changes when it starts again
    prompt: bool = False  # it is a server whose /health answers at once, however busy it is
    quick: bool = False  # it was a quick look: /health alone, and little time for it


class Ticket:
    """One request's place: at a backend, in the queue (`waiting`), or nowhere."""

    def __init__(self, wish: Wish, tried: Set[Backend], alone: bytes = b""):
        self.wish = wish
        self.tried = tried
        self.alone = alone  # its fingerprint, where nothing else may run beside it, nor an equal one anywhere
        self.backend: Optional[Backend] = None
        self.life: Any = None  # the backend's, when it was given
        self.waiting = False
        self.displaced = False  # it had to leave the queue for a client with less in it
        self.since = 0.0  # when it got its backend
        self.decided: Optional[threading.Event] = None  # set when it is given a backend, or displaced


# --------------------------------------------------------------------------------------------------- the pool

LIVE_SECONDS = 10.0  # how long after a byte an answer counts as flowing
DOUBT_SECONDS = 5.0  # how long a probe's outcome counts as fresh
QUIET_SECONDS = 0.9  # without a byte from a backend that has requests: then it is doubted
LOOK_SECONDS = 1.0  # between two quick looks at a backend that is doubted, and what each of them may take
FAILURES = frozenset([500, 502, 504])  # what a backend that can't do its work answers
BUSY = frozenset([429, 503])  # what one says that has too much of it


class Pool:
    """All backends, the queue before them, and the choice. Everything is decided under one lock, which guards every
    field of every Backend, the policy and the queue; nothing is sent or received under it."""

    def __init__(
        self,
        specs: Sequence[Spec],
        policy: Any,
        queue_size: int = 1024,
        slow_start: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.clock = clock
        self.policy = policy
        self._slow_start = slow_start
        self._queue = FairQueue(queue_size)
        self._loners: List[Ticket] = []  # that wait to run alone, the first to come first
        self._held = 0.0  # seconds that a request holds its slot, moving average
        self._numbers = 0
        self._backends: List[Backend] = []
        self._lock = threading.Lock()
        self._probe_due = threading.Condition(self._lock)
        for spec in specs:
            self.add(spec)

    # ---- one request's way

    def request(
        self, wish: Wish, tried: Set[Backend], hope: bool = True, again: bool = False, alone: bytes = b""
    ) -> Ticket:
        """Take a backend for a request, or a place in the queue, or neither; the module's docstring says how.

        `tried` are the backends that have failed it; `hope` says whether it may wait while none is up; `again`, that it
        has waited before and comes first in its client's line; a fingerprint in `alone`, that nothing may run
        beside it. A ticket with a backend goes back with release(), one that waits may leave() early. Raises
        queueing.Full.
        """
        ticket = Ticket(wish, tried, alone)
        with self._lock:
            if alone:
                self._request_alone(ticket, hope, again)
                return ticket
            able = self._able(ticket)  # 1
            open_ = self._open(able, wish)  # 2, 3
            up = any(each.vitals.up for each in able)
            if not up:
                open_ = [each for each in able if each.free]  # 6
            if not able and hope:
                tried.clear()  # 7
                open_ = self._open(self._able(ticket), wish)
            if open_:
                self._give(ticket, open_)  # 4
            elif up or hope:
                self._enqueue(ticket, again)  # 5, 7
            return ticket  # 8 where it has neither

    def release(self, ticket: Ticket) -> None:
        """A request has left its backend; the slot goes to the next in the queue. Harmless the second time."""
        with self._lock:
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
            self._place_loners()
            self._hand_out(backend)
            self._remove_left()

    def leave(self, ticket: Ticket) -> bool:
        """Take a ticket out of the queue; False where it has got its backend meanwhile."""
        with self._lock:
            if not ticket.waiting:
                return ticket.displaced
            ticket.waiting = False
            if ticket.alone:
                self._loners.remove(ticket)
                self._keep_no_more(ticket)
                self._place_loners()
            else:
                self._queue.remove(ticket.wish.who, ticket)
            return True

    def stranded(self, ticket: Ticket) -> float:
        """Return for how many seconds no backend has been up that could take a waiting request; 0 where one is."""
        with self._lock:
            able = [each for each in self._backends if not each.draining and each.may_have(ticket.wish.model)]
            if any(each.vitals.up for each in able):
                return 0.0
            return self.clock() - max([each.vitals.down_since for each in able], default=float("-inf"))

    def retry_after(self) -> int:
        """Return the seconds after which a request that is refused now may find room, by what was measured."""
        with self._lock:
            slots = sum(each.slots for each in self._backends if each.vitals.up) or 1
            return max(1, min(600, math.ceil((len(self._queue) + 1) * (self._held or 1.0) / slots)))

    def queued(self) -> int:
        """Return how many requests wait in the queue."""
        return len(self._queue) + len(self._loners)

    # ---- what requests tell of backends

    def answered(self, backend: Backend, seconds: float, status: int) -> None:
        """A backend has sent the first byte of an answer after so many seconds."""
        with self._lock:
            old = backend.response_time
            backend.response_time = old * 0.8 + seconds * 0.2 if old else seconds
            if status in FAILURES:
                self._count_failure(backend, "status %d" % status, False)
            elif status not in BUSY:
                backend.vitals.request_passed(self.clock())

    def failed(self, backend: Backend, why: str, lost: bool = True) -> None:
        """A request did not get through. Where its connection was `lost`, the backend is suspect and probed at once."""
        with self._lock:
            self._count_failure(backend, why, lost)
            if lost:
                self._place_loners()
                backend.next_probe = 0.0
                self._probe_due.notify_all()

    def doubt(self, backend: Backend) -> None:
        """A request waits. Where the backend has sent no byte for long, probe it, unless that was done a moment ago.

        A backend that answers its probes at once, however busy it is, gets a quick look every second: one that was
        stopped is found out within five.
        """
        now = self.clock()
        if now - backend.heard < QUIET_SECONDS:
            return
        with self._lock:
            if backend.prompt and backend.vitals.up:
                backend.doubted = True
            elif now - backend.checked >= DOUBT_SECONDS:
                backend.next_probe = min(backend.next_probe, now)
                backend.tested = True
            else:
                return
            self._probe_due.notify_all()

    def _count_failure(self, backend: Backend, why: str, lost: bool) -> None:
        backend.errors += 1
        if backend.vitals.up and lost:
            log.warning("🔴 %s is suspect: %s", backend.url, why)
        if backend.vitals.request_failed(self.clock(), why, lost):
            log.warning("🔴 %s is ejected for a while: its requests fail: %s", backend.url, why)

    # ---- what probes tell

    def due(self, patience: float) -> List[Backend]:
        """Wait at most `patience` seconds for a probe to become due, and take all backends that must be probed."""
        with self._lock:
            due = self._due()
            if not due and not self._doubted():
                now = self.clock()
                upcoming = [each.next_probe - now for each in self._backends if not each.probing]
                upcoming += [each.next_look - now for each in self._backends if each.doubted and not each.looking]
                self._probe_due.wait(max(0.0, min(upcoming + [patience])))
                due = self._due()
            for each in due:
                each.probing = True
            return due

    def wake(self) -> None:
        """Let due() return at once."""
        with self._lock:
            self._probe_due.notify_all()

    def doubted(self) -> List[Backend]:
        """Take all backends that must be looked at quickly."""
        with self._lock:
            doubted = self._doubted()
            for each in doubted:
                each.looking = True
                each.next_look = self.clock() + LOOK_SECONDS
            return doubted

    def _doubted(self) -> List[Backend]:
        return [each for each in self._backends if each.doubted and not each.looking and each.next_look <= self.clock()]

    def _due(self) -> List[Backend]:
        return [each for each in self._backends if not each.probing and each.next_probe <= self.clock()]

    def probed(self, backend: Backend, report: Report, interval: float) -> bool:
        """Note a probe's outcome and when the next one is due. Returns whether the backend has come up.

        A quick look that ends well changes nothing about the next probe; one that does not is followed by another.
        """
        with self._lock:
            was = backend.vitals.state
            was_up = backend.vitals.up
            self._unmark(backend, report.quick)
            backend.last_check, backend.checked = time.time(), self.clock()
            self._note(backend, report)
            if report.quick or report.ok:
                backend.doubted = backend.vitals.up and not report.ok
            if not (report.quick and report.ok):
                backend.next_probe = self.clock() + backend.vitals.next_probe(interval)
            if backend.vitals.state == DOWN and was != DOWN:
                backend.life, backend.prompt = None, False
                if backend.vitals.seen:  # else it is just being started, or its URL is wrong: /status says why
                    log.warning("🔴 %s is down: %s", backend.url, report.why)
            self._place_loners()
            self._hand_out(backend)
            self._probe_due.notify_all()
            return backend.vitals.up and not was_up

    def unprobed(self, backend: Backend, quick: bool) -> None:
        """A probe that was due could not be made: it is due again in a second."""
        with self._lock:
            self._unmark(backend, quick)
            backend.next_probe = max(backend.next_probe, self.clock() + LOOK_SECONDS)

    def _unmark(self, backend: Backend, quick: bool) -> None:
        if quick:
            backend.looking = False
        else:
            backend.probing = False

    def _note(self, backend: Backend, report: Report) -> None:
        vitals, now = backend.vitals, self.clock()
        live = LOOK_SECONDS if report.quick else LIVE_SECONDS
        if report.ok and report.quick:
            vitals.probe_passed(now)
        elif report.ok:
            vitals.probe_passed(now)
            showed = backend.tested and backend.in_flight > 0 and now - backend.heard >= LOOK_SECONDS
            backend.prompt, backend.tested = backend.prompt or report.prompt or showed, False
            backend.slots = backend.spec.slots or report.slots or backend.slots
            backend.model = report.model
            if report.told:
                backend.set_models(report.models)
            backend.life = report.life if report.life is not None else backend.life or object()
        elif report.wedged:
            vitals.wedged(now, report.why)
        elif report.not_ready:
            vitals.not_ready(now, report.why)
        elif report.timed_out and backend.in_flight and now - backend.heard < live:
            vitals.busy("busy: %s, but its streams flow" % report.why)
        else:
            vitals.probe_failed(now, report.why)

    # ---- who is there

    def add(self, spec: Spec, source: str = "", ttl: Optional[float] = None, draining: bool = False) -> Backend:
        """Add a backend, or change the slots and the weight of one that is there; send it requests unless `draining`.

        A new one is probed at once. With a `ttl`, in seconds, it is drained away unless it is added again before.
        """
        with self._lock:
            backend = next((each for each in self._backends if each.url == spec.url), None)
            if backend is None:
                self._numbers += 1
                backend = Backend(spec, self._numbers, self.clock, self._slow_start, source)
                self._backends.append(backend)
                self._probe_due.notify_all()
            if backend.source == source:
                backend.wanted = spec
                backend.expires = None if ttl is None else self.clock() + ttl
            backend.spec = spec
            backend.slots = spec.slots or backend.slots
            backend.leaving, backend.draining = False, draining
            self._place_loners()
            self._hand_out(backend)
            return backend

    def expire(self) -> None:
        """Drain away the backends whose time is over."""
        with self._lock:
            for each in self._backends:
                if each.expires is not None and self.clock() >= each.expires and not each.leaving:
                    log.warning("🔴 %s has not been heard of for too long: draining it", each.url)
                    each.draining = each.leaving = True
            self._remove_left()

    def drain(self, url: str, remove: bool = False) -> bool:
        """Send a backend no more requests; with `remove`, forget it when its last one has ended. False: unknown."""
        with self._lock:
            for each in self._backends:
                if each.url == url:
                    each.draining = True
                    each.leaving = remove
                    self._place_loners()
                    self._remove_left()
                    return True
            return False

    def replace(self, specs: Sequence[Spec], source: str) -> None:
        """Make the backends of one source those of `specs`: new ones are added, those that are gone drained away."""
        wanted = {spec.url for spec in specs}
        for spec in specs:
            known = self.find(spec.url)
            if known is None or known.leaving or (known.source == source and known.wanted != spec):
                self.add(spec, source)
        for each in self.everyone():
            if each.source == source and each.url not in wanted and not each.leaving:
                self.drain(each.url, remove=True)

    def find(self, url: str) -> Optional[Backend]:
        """Return the backend with this URL, or None."""
        with self._lock:
            return next((each for each in self._backends if each.url == url), None)

    def everyone(self) -> List[Backend]:
        """Return all backends."""
        with self._lock:
            return list(self._backends)

    def _remove_left(self) -> None:
        self._backends = [each for each in self._backends if not (each.leaving and not each.guests)]

    # ---- the whole

    def any_up(self) -> bool:
        """Whether a backend is up."""
        with self._lock:
            return any(each.vitals.up for each in self._backends)

    def hopeful(self) -> bool:
        """Whether it is worth waiting where none is up: one was before, or is loading."""
        with self._lock:
            return any(each.vitals.seen for each in self._backends)

    def describe(self) -> List[Dict[str, Any]]:
        """Return what /status says of each backend."""
        with self._lock:
            return [each.describe() for each in self._backends]

    def note_models(self, backend: Backend, models: List[Dict[str, Any]]) -> None:
        """Note what a backend has."""
        with self._lock:
            backend.set_models(models)

    def knows(self, model: str) -> bool:
        """Whether a backend has a model, or one that is up does not tell what it has."""
        with self._lock:
            return any(
                each.may_have(model) and (each.models is not None or each.vitals.up) for each in self._backends
            ) or not any(each.models for each in self._backends)

    def models(self) -> Dict[str, Dict[str, Any]]:
        """Return the union of what the backends that are up have, by name, each with the URLs of its backends."""
        every: Dict[str, Dict[str, Any]] = {}
        with self._lock:
            for backend in self._backends:
                for model in (backend.models or ()) if backend.vitals.up else ():
                    known = every.setdefault(str(model["name"]), dict(model, backends=[], loaded=False))
                    known["backends"].append(backend.url)
                    known["loaded"] = bool(known["loaded"] or model.get("loaded", True))
        return {name: every[name] for name in sorted(every)}

    # ---- under the lock

    def _able(self, ticket: Ticket) -> List[Backend]:
        model, tried = ticket.wish.model, ticket.tried
        return [each for each in self._backends if not each.draining and each.may_have(model) and each not in tried]

    def _open(self, able: Sequence[Backend], wish: Wish) -> List[Backend]:
        """Return those that may take a request now, all equally good by what they have loaded."""
        now = self.clock()
        up = [each for each in able if each.vitals.up]
        candidates = [each for each in up if not each.vitals.out(now)] or up  # 2
        loaded = [each for each in candidates if each.has_loaded(wish.model)]
        idle = [each for each in candidates if not each.in_flight]
        for choice in (loaded, idle) if loaded else (idle, candidates):  # 3
            free = [each for each in choice if each.free or not (wish.works or each.kept_for)]
            if free:
                return free
        return []

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
        ticket.decided = threading.Event()
        displaced = self._queue.push(ticket.wish.who, ticket, first)
        ticket.waiting = True
        if displaced:
            displaced.waiting, displaced.displaced = False, True
            displaced.decided.set()

    def _hand_out(self, backend: Backend) -> None:
        """Give a backend's free slots to those in the queue that would choose it."""
        while len(self._queue) and backend.vitals.up and backend.free and not backend.draining:
            ticket = self._queue.pop(lambda each: backend in self._open(self._able(each), each.wish))
            if ticket is None:
                return
            ticket.waiting = False
            self._give(ticket, [backend])
            ticket.decided.set()

    # ---- those that must run alone

    def _request_alone(self, ticket: Ticket, hope: bool, again: bool) -> None:
        """Give a ticket an idle backend that others keep away from, or let it wait for one. Raises Full."""
        able = self._able(ticket)
        if not able and hope:
            ticket.tried.clear()
            able = self._able(ticket)
        if not hope and not any(each.vitals.up for each in able):
            return
        ticket.decided, ticket.waiting = threading.Event(), True
        self._loners.append(ticket)
        self._place_loners()
        if ticket.waiting and not again and len(self._loners) > self._queue.size:
            self._loners.remove(ticket)
            self._keep_no_more(ticket)
            raise Full()

    def _place_loners(self) -> None:
        """Keep a backend for each that waits to run alone, as far as there are enough; give it, where it is idle."""
        for ticket in list(self._loners):
            backend = self._keep_for(ticket)
            if backend and not backend.guests:
                self._loners.remove(ticket)
                ticket.waiting = False
                self._give(ticket, [backend])
                ticket.decided.set()

    def _keep_for(self, ticket: Ticket) -> Optional[Backend]:
        """Return the backend that is kept for a ticket from now on, or None where it must wait for one."""
        now = self.clock()
        up = [each for each in self._able(ticket) if each.vitals.up and each.kept_for in (None, ticket)]
        able = [each for each in up if not each.vitals.out(now)] or up
        best = min(able, key=_readiness(ticket), default=None) if self._may_keep(ticket) else None
        if best is None or best.kept_for is None:
            self._keep_no_more(ticket)
        if best:
            best.kept_for = ticket
        return best

    def _may_keep(self, ticket: Ticket) -> bool:
        """Whether a backend may be kept for a ticket: enough are left to the others, and no equal one runs."""
        kept = [each.kept_for.alone for each in self._backends if each.kept_for not in (None, ticket)]
        return ticket.alone not in kept and len(kept) < max(1, sum(each.vitals.up for each in self._backends) // 2)

    def _keep_no_more(self, ticket: Ticket) -> None:
        for backend in self._backends:
            if backend.kept_for is ticket:
                backend.kept_for = None
                self._hand_out(backend)


def _readiness(ticket: Ticket) -> Callable[[Backend], Any]:
    """Return a key that sorts backends by how soon a ticket could run alone there: an idle one, one kept already, …"""
    model = ticket.wish.model
    return lambda each: (each.guests > 0, each.kept_for is None, not each.has_loaded(model), each.guests)

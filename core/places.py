"""How a backend shares its slots among several balancers that know nothing of each other.

    balancer ── X-ComeAPI-Balancer: a name ────────────────────────> backend
    balancer <── X-ComeAPI-Slots: free=3, slots=8, others=2, … ───  backend    with each answer, to a probe too
    balancer <── 503 slots_full at once, X-ComeAPI-Full: 1 ────────  backend    where it is not this balancer's turn
    balancer ── GET /turn ─────────────────────────────────────────> backend    answered when it is, or after a while

    slots      how many requests it works on at once
    free       how many of them nobody uses now
    others     how many requests are here that this balancer has not sent: other balancers' and plain clients'
    balancers  how many have called in the last two minutes

A balancer knows best what it has sent itself, so it is told what the others use: it may have `slots - others` requests
here, whatever is on its way. While all slots are taken, balancers wait for a turn, and get free slots in turn: the next
one is for the balancer with the fewest requests here; of several, for the one that waits longest. One that does not
wait comes after all that do. So a balancer that always has a queue can't keep the slots from another one.

A client that gives no name is told nothing and refused nothing: the engine's queue takes its request. What is not known
in a header is ignored, so that versions can be mixed. A request counts as one, however many answers it wants, as
balancers count it.
"""

import contextlib
import hashlib
import re
import threading
import time
from collections import Counter, OrderedDict
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from core.errors import APIError

BALANCER = "x-comeapi-balancer"
SLOTS = "x-comeapi-slots"
FULL = "x-comeapi-full"
TURN = "/turn"
TURN_SECONDS = 0.5  # that a balancer waits for its turn before it is told how things are
_GRACE = 0.1  # seconds in which one whose turn has come must send its request, or wait again
_MOST_BALANCERS = 64  # that are known, and can wait, at the same time
_LATELY = 120.0  # seconds; balancers probe more often, unless told otherwise
_LONGEST = 200  # characters of a header that are read
_MOST = 100_000
_MEMBER = re.compile(r"([a-z]{1,20})=([0-9]{1,6})")


class Told(NamedTuple):
    """What a backend has told a balancer: how many slots it has, and how many requests of others are there.

    `balancers` have called it lately, the one that is told included.
    """

    slots: int
    others: int
    balancers: int = 1

    @property
    def room(self) -> int:
        """How many requests of the balancer's own fit there."""
        return max(0, self.slots - self.others)


def read_told(text: str) -> Optional[Told]:
    """Return what the header SLOTS tells; None for an empty one, and for nonsense."""
    members = dict(_MEMBER.findall(text[:_LONGEST]))
    slots, others = int(members.get("slots", 0)), int(members.get("others", _MOST + 1))
    if not 0 < slots <= _MOST or others > _MOST:
        return None
    return Told(slots, others, int(members.get("balancers", 1)))


class Places:
    """A backend's count of the requests that it works on, by the balancers that have sent them. Any thread may use it.

    `most` is the largest number that were there at once.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic):
        self.most = 0
        self._slots = slots
        self._clock = clock
        self._changed = threading.Condition()  # guards what follows; notified when a request has left
        self._count = 0
        self._by_balancer: "Counter[str]" = Counter()
        self._called: "OrderedDict[str, float]" = OrderedDict()  # when each balancer has called; the latest last
        self._turns: Dict[str, Tuple[float, float]] = {}  # of balancers that wait: since when, and until when

    @property
    def free(self) -> int:
        """How many more requests can be worked on at once."""
        return max(0, self._slots - self._count)

    @contextlib.contextmanager
    def place(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Count a request in for as long as the `with` lasts. Raises APIError 503 where its balancer shall keep it."""
        name = headers.get(BALANCER, "")
        with self._changed:
            if name and not self._is_turn_of(name):
                raise _full(self._slots)
            self._turns.pop(name, None)
            self._count += 1
            self._by_balancer[name] += 1
            self.most = max(self.most, self._count)
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._by_balancer[name] -= 1
                if not self._by_balancer[name]:
                    del self._by_balancer[name]
                self._changed.notify_all()

    def wait(self, headers: Mapping[str, str], seconds: float) -> bool:
        """Let a balancer wait for its turn, so many seconds at most; return whether that has come."""
        name = headers.get(BALANCER, "")
        with self._changed:
            now = self._clock()
            since, _ = self._turns.get(name, (now, now))
            if name and (name in self._turns or len(self._turns) < _MOST_BALANCERS):
                self._turns[name] = since, now + seconds + _GRACE
            return self._changed.wait_for(lambda: self._is_turn_of(name), seconds)

    def told(self, headers: Mapping[str, str]) -> List[Tuple[str, str]]:
        """Return the header that an answer has for a balancer, by its request's headers; for others, none."""
        name = headers.get(BALANCER, "")
        if not name:
            return []
        with self._changed:
            others = self._count - self._by_balancer.get(name, 0)
            facts = self.free, self._slots, others, self._balancers(name)
        return [(SLOTS, "free=%d, slots=%d, others=%d, balancers=%d" % facts)]

    def _balancers(self, name: str) -> int:
        """Return how many balancers have called lately; this one does now."""
        now = self._clock()
        self._called[name] = now
        self._called.move_to_end(name)
        while len(self._called) > _MOST_BALANCERS or next(iter(self._called.values())) < now - _LATELY:
            self._called.popitem(last=False)
        return len(self._called)

    def _is_turn_of(self, name: str) -> bool:
        """Whether a slot is free, and no other balancer that waits comes first."""
        if self._count >= self._slots:
            return False
        now = self._clock()
        self._turns = {each: turn for each, turn in self._turns.items() if turn[1] > now}
        since, _ = self._turns.get(name, (now, now))
        own = self._by_balancer.get(name, 0), since
        return all((self._by_balancer.get(each, 0), turn[0]) >= own for each, turn in self._turns.items())


def _full(slots: int) -> APIError:
    headers = [("Retry-After", "1"), (FULL, "1")]
    return APIError(503, "All %d slots are taken." % slots, "slots_full", headers=headers)


def name_of(host: str, port: int) -> str:
    """Return a name by which balancers know a backend, whatever URL each calls it by; it does not tell the host's."""
    return hashlib.sha256(("%s:%d" % (host, port)).encode("utf-8", "replace")).hexdigest()[:16]

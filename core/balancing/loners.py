"""Requests that must run alone, since a backend has died under them (quarantine.py), and the backends kept for them.

A loner is given an idle backend that takes no other request meanwhile. Where none is idle, one is kept for it: it gets
no new request, as in a drain, until its last one has ended. At most half of the backends that are up are kept at the
same time, or the only one. Two equal requests never run alone at the same time.
"""

from typing import Any, Callable, List, Optional, Sequence

from core.balancing.backends import Backend, Ticket
from core.balancing.choice import find_able, find_usable
from core.balancing.queueing import Full


class Loners:
    """The requests that wait to run alone, the first to come first. The pool's lock guards it.

    `backends` is the pool's own list. `give(ticket, backends)` gives a request one of some backends. `freed(backend)`
    is told of a backend that is kept no more, so that others may use its free slots.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        most: int,
        clock: Callable[[], float],
        give: Callable[[Ticket, Sequence[Backend]], None],
        freed: Callable[[Backend], None],
    ):
        self._backends = backends
        self._most = most  # that may wait
        self._clock = clock
        self._give = give
        self._freed = freed
        self._waiting: List[Ticket] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: Ticket, hope: bool, again: bool) -> None:
        """Give a request its idle backend, or let it wait for one; pool.Pool.request has the arguments. Raises Full."""
        able = find_able(self._backends, ticket)
        if not able and hope:
            ticket.tried.clear()
            able = find_able(self._backends, ticket)
        if not hope and not any(backend.vitals.up for backend in able):
            return
        ticket.start_waiting()
        self._waiting.append(ticket)
        self.place()
        if ticket.waiting and not again and len(self._waiting) > self._most:
            self._remove(ticket)
            raise Full()

    def leave(self, ticket: Ticket) -> None:
        """Let a request wait no more; the next one may get what was kept for it."""
        self._remove(ticket)
        self.place()

    def place(self) -> None:
        """Keep a backend for each request, as far as there are enough, and give it the one that is idle."""
        for ticket in list(self._waiting):
            backend = self._keep_for(ticket)
            if backend and not backend.guests:
                self._waiting.remove(ticket)
                self._give(ticket, [backend])
                ticket.stop_waiting()

    def _remove(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        self._keep_no_more(ticket)

    def _keep_for(self, ticket: Ticket) -> Optional[Backend]:
        """Return the backend that is kept for a request from now on, or None where it must wait for one."""
        best = self._soonest(ticket) if self._may_keep(ticket) else None
        if best is None or best.kept_for is None:
            self._keep_no_more(ticket)
        if best:
            best.kept_for = ticket
        return best

    def _soonest(self, ticket: Ticket) -> Optional[Backend]:
        """Return the backend where a request can run alone soonest: an idle one, else one that is kept for it already,
        else one that has its model loaded, else the one with the fewest requests.
        """
        model = ticket.wish.model

        def readiness(backend: Backend) -> Any:
            return backend.guests > 0, backend.kept_for is None, not backend.has_loaded(model), backend.guests

        able = [backend for backend in find_able(self._backends, ticket) if backend.kept_for in (None, ticket)]
        return min(find_usable(able, self._clock()), key=readiness, default=None)

    def _may_keep(self, ticket: Ticket) -> bool:
        """Whether a backend may be kept for a request: enough are left to the others, and no equal one runs."""
        kept = [
            backend.kept_for.alone for backend in self._backends
            if backend.kept_for and backend.kept_for is not ticket
        ]  # fmt: skip
        up = sum(backend.vitals.up for backend in self._backends)
        return ticket.alone not in kept and len(kept) < max(1, up // 2)

    def _keep_no_more(self, ticket: Ticket) -> None:
        for backend in self._backends:
            if backend.kept_for is ticket:
                backend.kept_for = None
                self._freed(backend)

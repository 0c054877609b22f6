"""A request's way to a place at a backend: at once, or after a wait in the queue, for as long as there is a reason.

    Admission.admit(errand)          a place, as far as this balancer knows
    note_slots(pool, backend, …)     what the backend says: it may have given its slots to others' requests meanwhile
"""

from typing import Any, Callable, Optional

from core.balancing.backends import Backend, Ticket
from core.balancing.catalogue import no_backend
from core.balancing.counting import Counts
from core.balancing.errand import Errand, Visit
from core.balancing.pool import Pool
from core.balancing.quarantine import Quarantine
from core.balancing.queueing import Full
from core.errors import APIError, HangUp
from core.http.answers import Answer
from core.places import FULL, SLOTS, read_told

_TICK = 0.25  # seconds between two looks whether a request still has a reason to wait
_REFUSAL = 1 << 16  # bytes of a refusal's body


class Taken(Exception):
    """A backend has refused a request at once, since it has no slot for it (core/places.py)."""


def note_slots(pool: Pool, backend: Backend, answer: Answer) -> None:
    """Note what an answer's head tells of its backend's slots. Raises Taken where there was none for this request."""
    refused = bool(answer.header(FULL))
    pool.told(backend, read_told(answer.header(SLOTS)), refused)
    if refused:
        answer.read_and_close(_REFUSAL)
        raise Taken()


class _Otherwise(Exception):
    """What is known of a waiting request has changed: it must run alone now, or need not any more."""


class Admission:
    """Gives requests their places. `config` has the limits (balancing/settings.py, and `child`).

    `draining` tells whether the service is stopping; then no request waits for a backend to come up.
    """

    def __init__(
        self, config: Any, pool: Pool, quarantine: Quarantine, count: Counts, draining: Callable[[], bool]
    ):
        self._config = config
        self._pool = pool
        self._quarantine = quarantine
        self._count = count
        self._draining = draining

    def admit(self, errand: Errand) -> Optional[Visit]:
        """Return a place at a backend, after waiting for one where that may help, or None.

        Raises APIError 429 where too many wait already, 503 when it takes too long, 500 for a request that ends
        backends, HangUp when the client leaves.
        """
        pool = self._pool
        while True:
            hope = errand.failure is None and not self._draining() and (self._config.child or pool.hopeful())
            alone = errand.fingerprint(self._quarantine) if self.is_suspect(errand) else b""
            try:
                ticket = pool.request(
                    errand.wish, errand.tried, hope, again=errand.sent > 0, alone=alone, resumes=errand.begun
                )
            except Full:
                raise self._queue_full()
            try:
                self._wait(ticket, errand)
                self.check(ticket, errand)
            except _Otherwise:
                continue
            except BaseException:
                pool.release(ticket)  # it may have been given a backend at the last moment
                raise
            return Visit(errand, ticket, ticket.backend) if ticket.backend else None

    def _wait(self, ticket: Ticket, errand: Errand) -> None:
        """Wait in the queue until the ticket has a backend, or is nowhere. Raises as _admit does, and _Otherwise."""
        if not ticket.decided:
            return
        asked = self._pool.clock()
        # A request that ran for long before its backend died still gets its time to wait for another.
        started = asked if ticket.alone or errand.begun else errand.started
        try:
            while not errand.request.wait(ticket.decided.wait, _TICK):
                errand.request.say_alive()
                self._look_round(ticket, errand, started)
        except HangUp:
            self._pool.leave(ticket)
            raise
        finally:
            self._count.queue_wait.observe(self._pool.clock() - errand.started)
        if ticket.displaced:
            raise self._queue_full()

    def _look_round(self, ticket: Ticket, errand: Errand, started: float) -> None:
        """Leave the queue where there is a reason to; the reason is raised, unless the backend has come meanwhile."""
        try:
            self.check(ticket, errand)
            error = self._overdue(ticket, started)
            if error:
                raise error
        except (APIError, _Otherwise):
            if self._pool.leave(ticket):
                raise

    def check(self, ticket: Ticket, errand: Errand) -> None:
        """Raise APIError 500 where a request has been found guilty, _Otherwise where it must run alone, or no more."""
        if self.is_suspect(errand) != bool(ticket.alone):
            self._pool.release(ticket)
            raise _Otherwise()

    def _overdue(self, ticket: Ticket, started: float) -> Optional[APIError]:
        """Return the error of a request that has waited too long, or None."""
        waited = self._pool.clock() - started
        stranded = min(waited, self._pool.stranded(ticket))
        if stranded and (stranded >= self._config.recovery_timeout or self._draining()):
            return no_backend(self._pool)
        if waited >= self._config.queue_timeout and not stranded:
            return self._too_busy(503, "No slot has become free in %g s." % self._config.queue_timeout, "queue_timeout")
        return None

    def _queue_full(self) -> APIError:
        return self._too_busy(429, "%d requests wait for a slot already." % self._pool.queued(), "queue_full")

    def _too_busy(self, status: int, message: str, code: str) -> APIError:
        after = self._pool.retry_after()
        return APIError(status, message, code, type="overloaded_error", headers=[("Retry-After", str(after))])

    def is_suspect(self, errand: Errand) -> bool:
        """Whether a request must run alone. Raises APIError 500 where it, or an equal one, has ended two backends."""
        if self._quarantine.empty:
            return False
        return self._quarantine.check(errand.fingerprint(self._quarantine))

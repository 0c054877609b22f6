"""How a request waits for its backend: until bytes come, the client leaves, or the backend is found to be down.

    Client.open(…, wait=Watch(pool, visit, patience, may_leave))

It wakes up twice a second. While nothing comes, it doubts the backend, so that the health thread looks at it, and it
notices what that thread has found out: the backend is down, or its engine stalls and another one can go on. Sending a
large body waits in the same way as reading an answer. In a stream, the time without data adds up, keep-alives or not
(keepalive.py).
"""

from typing import Any, Callable

from core.balancing.errand import Visit
from core.balancing.keepalive import Patience
from core.balancing.pool import Pool
from core.balancing.vitals import DOWN
from core.errors import HangUp
from core.http.failures import Broken
from core.http.outgoing import room_to_send

SLICE = 0.5  # seconds between two checks whether a silent backend is still up


class GaveUp(Broken):
    """Probes have found out that the backend is down; the connection itself has not ended."""


class Leaving(Exception):
    """Another backend is to go on with the answer now: this one is `drained`, or `stalled`, as `reason` says."""

    def __init__(self, why: str, reason: str):
        super().__init__(why)
        self.reason = reason


class Watch:
    """Waits for one request's backend; called as core.http.client.plain_wait is.

    `may_leave()` says whether another backend could go on with the answer now; it is asked while this one is stalled.
    """

    def __init__(self, pool: Pool, visit: Visit, patience: Patience, may_leave: Callable[[], bool]):
        self._pool = pool
        self._backend = visit.backend
        self._request = visit.errand.request
        self._patience = patience
        self._may_leave = may_leave

    def __call__(self, sock: Any, timeout: float, sending: bool = False) -> bool:
        """Wait for bytes of the backend, or for room to send; False after `timeout` seconds, or without patience left.

        Raises HangUp the moment the client leaves, GaveUp where the backend is down, Leaving where it is left.
        """
        clock, backend = self._pool.clock, self._backend
        began = clock()
        deadline = began + (timeout if sending else min(timeout, self._patience.left))
        while not self._look(sock, min(SLICE, max(0.0, deadline - clock())), sending):
            if backend.vitals.state == DOWN:
                raise GaveUp("by its probes, it is down: %s" % backend.vitals.why)
            if backend.stalled and self._may_leave():
                raise Leaving("its engine does not go on", "stalled")
            if clock() >= deadline:
                return False
            self._pool.doubt(backend)
            self._request.say_alive()
        if not sending:
            backend.heard = clock()
            self._patience.waited(backend.heard - began)
        return True

    def _look(self, sock: Any, timeout: float, sending: bool) -> bool:
        if not sending:
            return self._request.wire.wait_for(sock, timeout)
        if self._request.hung_up():
            raise HangUp("the client closed the connection")
        return room_to_send(sock, timeout)

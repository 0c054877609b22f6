"""How a request waits for its backend: until bytes come, the client leaves, or the backend is found to be down.

    Client.open(…, wait=Watch(pool, backend, request, patience))

It wakes up twice a second. While nothing comes, it doubts the backend, so that the health thread looks at it, and it
notices what that thread has found out. Sending a large body waits in the same way as reading an answer. In a stream,
the time without data adds up, keep-alives or not (keepalive.py).
"""

from typing import Any

from core.balancing.backends import Backend
from core.balancing.keepalive import Patience
from core.balancing.pool import Pool
from core.balancing.vitals import DOWN
from core.errors import HangUp
from core.http.failures import Broken
from core.http.messages import Request
from core.http.outgoing import room_to_send

SLICE = 0.5  # seconds between two checks whether a silent backend is still up


class GaveUp(Broken):
    """Probes have found out that the backend is down; the connection itself has not ended."""


class Watch:
    """Waits for one request's backend; called as core.http.client.plain_wait is."""

    def __init__(self, pool: Pool, backend: Backend, request: Request, patience: Patience):
        self._pool = pool
        self._backend = backend
        self._request = request
        self._patience = patience

    def __call__(self, sock: Any, timeout: float, sending: bool = False) -> bool:
        """Wait for bytes of the backend, or for room to send; False after `timeout` seconds, or without patience left.

        Raises HangUp the moment the client leaves, GaveUp where the backend is down.
        """
        clock, backend = self._pool.clock, self._backend
        began = clock()
        deadline = began + (timeout if sending else min(timeout, self._patience.left))
        while not self._look(sock, min(SLICE, max(0.0, deadline - clock())), sending):
            if backend.vitals.state == DOWN:
                raise GaveUp("by its probes, it is down: %s" % backend.vitals.why)
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

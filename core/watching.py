"""How a request waits for its backend: until bytes come, the client leaves, or the backend is found to be down.

    Client.open(…, wait=Watch(pool, backend, request))

It looks twice a second. While nothing comes, it doubts the backend, so that the health thread has a look at it; and it
notices what the health thread has found out. Sending a large body waits in the same way as reading an answer.
"""

from typing import Any

from core.errors import HangUp
from core.pool import Backend, Pool
from core.service import Request
from core.upstream import Broken, room_to_send
from core.vitals import DOWN

SLICE = 0.5  # seconds between two looks whether a backend that is silent is still there


class Watch:
    """One request's way to wait for its backend; called as upstream.plain_wait is."""

    def __init__(self, pool: Pool, backend: Backend, request: Request):
        self._pool = pool
        self._backend = backend
        self._request = request

    def __call__(self, sock: Any, timeout: float, sending: bool = False) -> bool:
        """Wait for bytes of the backend, or for room to send; False after `timeout` seconds.

        Raises HangUp the moment the client leaves, Broken where the backend is down.
        """
        clock, backend = self._pool.clock, self._backend
        deadline = clock() + timeout
        while not self._look(sock, min(SLICE, max(0.0, deadline - clock())), sending):
            if backend.vitals.state == DOWN:
                raise Broken("it does not answer its probes any more")
            if clock() >= deadline:
                return False
            self._pool.doubt(backend)
        if not sending:
            backend.heard = clock()
        return True

    def _look(self, sock: Any, timeout: float, sending: bool) -> bool:
        if not sending:
            return self._request.wire.wait_for(sock, timeout)
        if self._request.hung_up():
            raise HangUp("the client closed the connection")
        return room_to_send(sock, timeout)

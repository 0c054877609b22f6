"""A backend that registers itself at a balancer, and repeats it as a heartbeat.

    reachable_url(balancer_url, port)                  where the balancer finds this machine
    Registrar(balancer_url, own_url, key).start() ── POST /admin/backends {"url", "ttl", "key"} every `interval` seconds
                                          .stop() ── DELETE /admin/backends: the balancer sends no more requests

A balancer that is not there yet, or starts again, hears of the backend at the next beat.
"""

import json
import logging
import socket
from typing import Any, Dict
from urllib.parse import quote, urlsplit

from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.http.messages import http_url
from core.loops import Loop

log = logging.getLogger("comeapi.registration")
PATH = "/admin/backends"
_MOST_SAID = 64 << 10  # bytes of the balancer's answer
BEATS = 3  # how many may be missed before the balancer forgets a backend


def reachable_url(balancer_url: str, port: int, scheme: str = "http") -> str:
    """Return the URL of `port` at the address from which this machine calls the balancer. Raises OSError."""
    parts = urlsplit(balancer_url)
    found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as sock:
        sock.connect(address)  # sends nothing: the system only chooses the route, and so our address
        return http_url(sock.getsockname()[0], port, scheme)


class Registrar:
    """Keeps one backend registered at one balancer; start() and stop() are called once each. `loop` is its thread.

    `key` is the balancer's admin key. `own_key` is an API key that the backend asks for, "" where it asks for none.
    """

    def __init__(self, balancer_url: str, own_url: str, key: str, interval: float = 5.0, own_key: str = ""):
        self._balancer_url = balancer_url.rstrip("/")
        self._own_url = own_url
        self._headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
        self._patience = max(1.0, interval)  # seconds for one call of the balancer
        facts: Dict[str, Any] = {"url": own_url, "ttl": max(1.0, BEATS * interval)}
        if own_key:
            facts["key"] = own_key
        self._body = json.dumps(facts).encode("ascii")
        self._client = Client()
        self._last = ""  # what the last beat has led to
        self.loop = Loop("registrar", interval, self._beat, step_seconds=2 * self._patience, log=log)

    def start(self) -> "Registrar":
        """Register now, and again every `interval` seconds, in a thread."""
        self.loop.start()
        return self

    def stop(self) -> None:
        """Take the backend away from the balancer; requests that run there go on."""
        self.loop.stop(2 * self._patience)
        self._say(self._ask("DELETE", "?url=" + quote(self._own_url, safe="")))
        self._client.close()

    def _beat(self) -> None:
        self._say(self._ask("POST", "", self._body))

    def _ask(self, method: str, query: str, body: bytes = b"") -> str:
        """Call the balancer; return what came of it."""
        try:
            url = self._balancer_url + PATH + query
            patience = self._patience
            answer = self._client.open(url, method, self._headers, body or None, patience, within=patience)
            said = answer.read_and_close(_MOST_SAID).decode("utf-8", "replace")
        except (Unreachable, Broken, Slow) as error:
            return "%s can't be told: %s" % (self._balancer_url, error)
        if answer.status >= 400:
            return "%s refuses: %d %s" % (self._balancer_url, answer.status, said[:1000])
        return "%s knows %s" % (self._balancer_url, self._own_url)

    def _say(self, outcome: str) -> None:
        """Log an outcome once, not at every beat."""
        if outcome != self._last:
            self._last = outcome
            log.info("registration: %s", outcome)

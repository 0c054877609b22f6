"""A backend that registers itself at a balancer, and repeats it as a heartbeat.

    own_url(balancer_url, config, port)                where the balancer finds a backend of these settings
    Registrar(balancer_url, own_url, key).start() ── POST /admin/backends {"url", "ttl", …} every `interval` seconds
                                          .stop() ── DELETE /admin/backends: the balancer sends no more requests
    take_leave(registrars)                             all stop() at once, for a moment at most

A balancer that is not there yet, or starts again, hears of the backend at the next beat. A backend that comes back at
another URL takes its old place, where it has a name.
"""

import json
import logging
import socket
import threading
import time
from typing import Any, Dict, Sequence
from urllib.parse import quote, urlsplit

from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.http.messages import http_url
from core.loops import Loop
from core.process import is_loopback

log = logging.getLogger("comeapi.registration")
PATH = "/admin/backends"
_LEAVE_SECONDS = 2.0
_MOST_SAID = 64 << 10  # bytes of the balancer's answer
INTERVAL = 5.0  # seconds between two beats
BEATS = 3  # how many may be missed before the balancer forgets a backend


def checked_balancer(text: str) -> str:
    """Check a balancer's URL. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("%r is not a URL such as http://balancer:9000" % text)
    return text


def own_url(balancer_url: str, config: Any, port: int) -> str:
    """Return the URL by which a balancer reaches the server that listens on `port` with the settings `config`.

    Raises OSError where there is no way to the balancer, ValueError where there is none back.
    """
    try:
        url = reachable_url(balancer_url, port, "https" if config.tls_cert else "http")
    except OSError as error:
        raise OSError("no way to %s: %s" % (balancer_url, error))
    if is_loopback(config.host) and not is_loopback(str(urlsplit(url).hostname)):
        raise ValueError(
            "%s can't reach a backend that listens on %s only; add --host 0.0.0.0, and --api-key where others reach "
            "it, too" % (balancer_url, config.host)
        )
    return url


def reachable_url(balancer_url: str, port: int, scheme: str = "http") -> str:
    """Return the URL of `port` at the address from which this machine calls the balancer. Raises OSError."""
    parts = urlsplit(balancer_url)
    found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as sock:
        sock.connect(address)  # sends nothing: the system only chooses the route, and so our address
        return http_url(sock.getsockname()[0], port, scheme)


def take_leave(registrars: "Sequence[Registrar]") -> None:
    """Take a backend away from all balancers. One that does not answer holds its end up for a moment only."""
    threads = [threading.Thread(target=each.stop, name="leave", daemon=True) for each in registrars]
    until = time.monotonic() + _LEAVE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


class Registrar:
    """Keeps one backend registered at one balancer; start() and stop() are called once each. `loop` is its thread.

    `key` is the balancer's admin key. `own_key` is an API key that the backend asks for, "" where it asks for none.
    `name` is the backend's own, which outlives its process; "" for none.
    """

    def __init__(
        self, balancer_url: str, own_url: str, key: str, interval: float = INTERVAL, own_key: str = "", name: str = ""
    ):  # fmt: skip
        self._balancer_url = balancer_url.rstrip("/")
        self._own_url = own_url
        self._headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
        self._patience = max(1.0, interval)  # seconds for one call of the balancer
        facts: Dict[str, Any] = {"url": own_url, "ttl": max(1.0, BEATS * interval)}
        facts.update({field: value for field, value in (("key", own_key), ("name", name)) if value})
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

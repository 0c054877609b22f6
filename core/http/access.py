"""Who may call: API keys, and how much each may ask for.

    presented_key, key_is_one_of, key_error    the key that a request carries
    KeyLimits                                  requests at once, and a minute, for each key
"""

import collections
import hmac
import math
import re
import threading
from typing import Dict, Iterable, Mapping, Tuple

from core.errors import APIError


def presented_key(headers: Mapping[str, str]) -> str:
    """Return the API key that a request carries, or an empty text."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def key_is_one_of(given: str, keys: Iterable[bytes]) -> bool:
    """Whether a key that a request carries is one of these. Compares with all of them, in constant time."""
    presented = given.encode("latin-1", "replace")
    return bool(sum(hmac.compare_digest(presented, key) for key in keys))


def key_error(given: str, what: str = "API key") -> APIError:
    """Return the error of a request that carries a wrong key, or none."""
    wrong = "is not one of this server's" if given else "is missing"
    message = "The %s %s. Send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'." % (what, wrong)
    return APIError(401, message, "invalid_api_key", headers=[("WWW-Authenticate", "Bearer")])


def check_key(text: str) -> str:
    """Return an API key, or an @FILE of keys, as it is. Raises ValueError.

    A key is sent in a header, and environment variables list several: so it may hold no spaces and no commas.
    """
    if not re.fullmatch(r"@.+|[^\s,]+", text):
        raise ValueError("an API key may hold no spaces and no commas")
    return text


class KeyLimits:
    """How many requests each API key may have at once, and make in a minute; 0 for any number.

    Each key has a token bucket: it holds a minute's requests and fills evenly, so that a key that was not used for a
    minute may make them all at once.
    """

    def __init__(self, at_once: int, a_minute: int):
        self._at_once = at_once
        self._a_minute = a_minute
        self._running: Dict[str, int] = collections.defaultdict(int)
        self._left: Dict[str, Tuple[float, float]] = {}  # key -> its bucket: requests left, and when that was
        self._lock = threading.Lock()  # guards _running and _left

    def enter(self, key: str, now: float) -> None:
        """Count a request in. Raises APIError 429 where the key has too many running, or makes too many a minute."""
        with self._lock:
            if self._at_once and self._running[key] >= self._at_once:
                raise _over_limit("%d requests of this API key are running; it may have no more." % self._at_once, 1)
            if self._a_minute:
                left, since = self._left.get(key, (float(self._a_minute), now))
                left = min(float(self._a_minute), left + (now - since) * self._a_minute / 60)
                if left < 1:
                    after = math.ceil((1 - left) * 60 / self._a_minute)
                    raise _over_limit("This API key may make %d requests a minute." % self._a_minute, after)
                self._left[key] = (left - 1, now)
            self._running[key] += 1

    def enter_again(self, key: str) -> None:
        """Count a request in that was counted in by another process."""
        with self._lock:
            self._running[key] += 1

    def leave(self, key: str) -> None:
        """Count a request out."""
        with self._lock:
            self._running[key] -= 1


def _over_limit(message: str, after: int) -> APIError:
    return APIError(429, message, "key_limit", headers=[("Retry-After", str(after))])
